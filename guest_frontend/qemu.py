"""``qemu``: a stand-in for the swtpm of QEMU's ``-tpmdev emulator``, in front of a vTPM in the manager (QEMU.md).

``qemu_session`` has the rules, ``qemu_server`` the sockets; here are the beginning and the end.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from pathlib import Path

from guest_frontend.device import notify
from guest_frontend.host_link import HostLink
from guest_frontend.qemu_server import Server
from guest_frontend.qemu_session import LOCALITIES
from manager_vm.errors import ConfigError
from manager_vm.vchan import address

_CHECK_LIMIT = 5.0  # seconds for the first look at the manager


def run(channel: str, path: str, name: str, host_socket: str) -> None:
    """Serve ``path`` until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    stop, wake = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.write(wake, b"x"))
    host = HostLink(host_socket, name, stop, LOCALITIES)
    _check(host, channel, name)
    listener = _listen(Path(path))
    server = Server(listener, channel, host, stop)
    try:
        print(f"QEMU finds vTPM {name} at {path}", flush=True)
        notify("READY=1")
        server.loop()
    finally:
        server.close()
        Path(path).unlink(missing_ok=True)


def _check(host: HostLink, channel: str, name: str) -> None:
    """Mistakes of the command line show now, not at the VM's start."""
    kinds = [address.parse(each).kind for each in channel.split(",")]
    attached = str(host.record(_CHECK_LIMIT)["channel"])
    if not attached:
        raise ConfigError(f"vTPM {name!r} is not attached to any channel; 'vtpmctl attach {name}' first")
    if kinds == [address.Kind.UNIX] and attached != channel:
        raise ConfigError(f"vTPM {name!r} is attached to {attached}, not to {channel}")


def _listen(path: Path) -> socket.socket:
    """For the owner only; what an earlier run left there is removed."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    umask = os.umask(0o177)
    try:
        if path.is_socket():
            if not listener.connect_ex(str(path)):
                raise ConfigError(f"somebody serves {path} already; end that, or choose another --socket")
            path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(4)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen at {path}: {error.strerror or error}; choose another --socket") from None
    except ConfigError:
        listener.close()
        raise
    finally:
        os.umask(umask)
    return listener
