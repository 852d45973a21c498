"""Carriers between a guest and the manager: what is plugged where."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from image.host.pair import PairServer
from image.host.vm import Vm
from manager_vm.errors import HostError

GUEST_PORT = "org.vtpm.tpm"


class Carrier(StrEnum):
    """How a guest reaches the manager."""

    IVSHMEM = "ivshmem"
    VIRTIO_SERIAL = "virtio-serial"
    SHIM = "shim"  # QEMU's own TPM device; its front end is on the host, all guests' over one port of the manager


class Wire(ABC):
    """One guest's channel. The manager's end is plugged again after the manager's VM was started anew."""

    carrier: Carrier

    def __init__(self, name: str) -> None:
        self.id = f"vtpm-{name}"

    @abstractmethod
    def plug_guest(self, vm: Vm) -> None:
        """Plug the guest's end."""

    @abstractmethod
    def plug_manager(self, vm: Vm) -> str:
        """Plug the manager's end; the channel's address there."""

    def plug_arriving(self, vm: Vm) -> None:
        """Plug the guest's end into a VM that waits for its memory; ``join`` connects it."""
        raise HostError(f"a guest over {self.carrier} does not move: QEMU cannot move its device; use virtio-serial")

    def join(self, vm: Vm) -> None:
        """The guest, which runs, sees its end hang up and come back: its front end greets who is there now."""
        raise HostError(f"a channel over {self.carrier} cannot hang up")

    def unplug(self, vm: Vm) -> None:
        """Take an end out again."""
        vm.unplug(self.id)

    @abstractmethod
    def follow(self, guest: Vm, socket: Path) -> None:
        """The manager's end is in another VM, which listens for it at ``socket``."""

    @abstractmethod
    def close(self) -> None:
        """Free what the wire needs on the host."""


class IvshmemWire(Wire):
    """A pair of ivshmem devices with a server and a memory of its own."""

    carrier = Carrier.IVSHMEM

    def __init__(self, name: str, directory: Path) -> None:
        super().__init__(name)
        self._server = PairServer(directory / f"{name}.pair")

    def plug_guest(self, vm: Vm) -> None:
        vm.plug_ivshmem(self.id, self._server.path)

    def plug_manager(self, vm: Vm) -> str:
        vm.plug_ivshmem(self.id, self._server.path)
        return f"ivshmem:{vm.pci_address(self.id)}"

    def follow(self, guest: Vm, socket: Path) -> None:
        pass  # the pair's server stays where both ends find it

    def close(self) -> None:
        self._server.close()


class PortWire(Wire):
    """A pair of virtio-serial ports over a UNIX socket between the two QEMUs; the manager's QEMU listens."""

    carrier = Carrier.VIRTIO_SERIAL

    def __init__(self, name: str, directory: Path) -> None:
        super().__init__(name)
        self._port = f"org.vtpm.guest.{name}"[:64]
        self._socket = directory / f"{name}.port"

    def plug_guest(self, vm: Vm) -> None:
        vm.plug_port(self.id, GUEST_PORT, self._socket, server=False)

    def plug_arriving(self, vm: Vm) -> None:
        # nobody listens there: the guest was connected when it left, so it is told that its port has hung up
        vm.plug_port(self.id, GUEST_PORT, self._socket.with_suffix(".none"), server=False)

    def join(self, vm: Vm) -> None:
        vm.change_port(self.id, self._socket)

    def plug_manager(self, vm: Vm) -> str:
        self._socket.unlink(missing_ok=True)
        vm.plug_port(self.id, self._port, self._socket, server=True)
        return f"virtio-serial:{self._port}"

    def follow(self, guest: Vm, socket: Path) -> None:
        self._socket.unlink(missing_ok=True)
        self._socket = socket
        guest.change_port(self.id, socket)

    def close(self) -> None:
        self._socket.unlink(missing_ok=True)


def make(carrier: Carrier, name: str, directory: Path) -> Wire:
    """The wire of guest ``name``; its sockets stand in ``directory``."""
    kinds: dict[Carrier, Callable[[str, Path], Wire]] = {
        Carrier.IVSHMEM: IvshmemWire,
        Carrier.VIRTIO_SERIAL: PortWire,
    }
    return kinds[carrier](name, directory)
