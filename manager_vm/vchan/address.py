"""Channel addresses: what stands in ``CHANNEL`` on every command line, and how an end point comes of it.

unix:PATH | ivshmem[:PCI-ADDRESS] | virtio-serial:NAME | shim:NAME; on a host also socket:PATH
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from manager_vm.errors import ConfigError
from manager_vm.vchan.endpoint import Endpoint

GRAMMAR = "unix:PATH | ivshmem[:PCI-ADDRESS] | virtio-serial:NAME | shim:NAME"
_PCI = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_PORT = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Kind(StrEnum):
    """The carriers."""

    UNIX = "unix"
    IVSHMEM = "ivshmem"
    VIRTIO_SERIAL = "virtio-serial"
    SOCKET = "socket"  # the host's end of a VM's virtio-serial port: front ends only
    SHIM = "shim"  # a lane of the carrier that all QEMU shims of a host share


@dataclass(frozen=True, slots=True)
class Address:
    """A carrier and its argument: a path, a PCI address ("" = the only device), a port name."""

    kind: Kind
    argument: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.argument}" if self.argument else str(self.kind)


def parse(text: str) -> Address:
    """The address; ConfigError with the grammar if it is none."""
    kind, _, argument = text.partition(":")
    valid = {
        Kind.UNIX: argument.startswith("/"),
        Kind.IVSHMEM: not argument or bool(_PCI.fullmatch(argument)),
        Kind.VIRTIO_SERIAL: bool(_PORT.fullmatch(argument)),
        Kind.SOCKET: argument.startswith("/"),
        Kind.SHIM: bool(_PORT.fullmatch(argument)),
    }
    if kind not in list(Kind) or not valid[Kind(kind)]:
        raise ConfigError(f"{text!r} is no channel: use {GRAMMAR} (PATH absolute, PCI-ADDRESS like 0000:05:00.0)")
    return Address(Kind(kind), argument)


def serve(address: Address) -> Endpoint:
    """The manager's end."""
    match address.kind:
        case Kind.UNIX:
            from manager_vm.vchan.local import LocalServer

            return LocalServer(Path(address.argument))
        case Kind.IVSHMEM:
            from manager_vm.vchan.ivshmem import IvshmemServer

            return IvshmemServer(address.argument)
        case Kind.VIRTIO_SERIAL:
            from manager_vm.vchan.virtio_serial import PortEndpoint

            return PortEndpoint(address.argument)
        case Kind.SOCKET:
            raise ConfigError("socket:PATH is the end of a VM's port at its host: front ends use it")
        case Kind.SHIM:
            raise ConfigError("a lane is part of a carrier that others share, and has no end point of its own")


def connect(address: Address) -> Endpoint:
    """The front end's end; UnreachableError if nobody is there (yet)."""
    match address.kind:
        case Kind.UNIX:
            from manager_vm.vchan.local import LocalClient

            return LocalClient(Path(address.argument))
        case Kind.IVSHMEM:
            from manager_vm.vchan.ivshmem import IvshmemClient

            return IvshmemClient(address.argument)
        case Kind.VIRTIO_SERIAL:
            from manager_vm.vchan.virtio_serial import PortEndpoint

            return PortEndpoint(address.argument)
        case Kind.SOCKET:
            from manager_vm.vchan.socket_stream import SocketStream

            return SocketStream(Path(address.argument))
        case Kind.SHIM:
            raise ConfigError("a lane is part of a carrier that others share, and has no end point of its own")
