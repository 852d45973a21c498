"""``qemu``: stand-ins for the swtpms of QEMU's ``-tpmdev emulator``, each in front of a vTPM in the manager (QEMU.md).

One service for all guests of a host, over one carrier. ``qemu_session`` has the rules, ``qemu_server`` the sockets of
one guest; here is who is served: one guest, or those that are named in a directory while it is so.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from guest_frontend.device import notify
from guest_frontend.host_link import HostLink
from guest_frontend.link import Link
from guest_frontend.qemu_server import Server
from guest_frontend.qemu_session import FIRMWARE_PATIENCE
from manager_vm.errors import ConfigError, UnknownVtpmError, VtpmManagerError
from manager_vm.vchan import address
from manager_vm.vchan.lanes import Lanes

log = logging.getLogger(__name__)

NAMED = ".guest"  # DIR/NAME.guest: vTPM NAME has a guest; in the file is its VM's UUID, or nothing
_CHECK_LIMIT = 5.0  # seconds for the first look at the manager
_LOOK = 0.5  # seconds between looks at the directory
_STACK = 256 << 10  # bytes for a thread: there may be hundreds


class Guest:
    """One guest's QEMU is served at ``path`` from a thread, until ``close``. ConfigError if nobody can listen there."""

    def __init__(self, lanes: Lanes, host: HostLink, name: str, path: Path) -> None:
        channel = str(address.parse(f"shim:{name}"))
        self._path = path
        self._stopped, self._stop = os.pipe2(os.O_CLOEXEC)

        def link(introduce: Callable[[], bool]) -> Link:
            return Link(channel, FIRMWARE_PATIENCE, introduce, lambda where: lanes.lane(where.argument))

        try:
            self._server = Server(_listen(path), link, host.of(self._stopped), self._stopped)
        except ConfigError:
            os.close(self._stop)
            os.close(self._stopped)
            raise
        self._thread = threading.Thread(target=self._server.loop, name=f"guest {name}")
        self._thread.start()
        print(f"QEMU finds vTPM {name} at {path}", flush=True)

    @property
    def alive(self) -> bool:
        """Whether it is served."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End it and take its socket along; idempotent."""
        if self._stop >= 0:
            os.close(self._stop)
            self._stop = -1
            self._thread.join()
            self._server.close()
            os.close(self._stopped)
            self._path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Service:
    """What all guests share. ``stop``: readable when we are to end."""

    lanes: Lanes
    host_socket: str
    stop: int
    turn: threading.Lock = field(default_factory=threading.Lock)  # at the host link, which takes one client at a time

    def host(self, name: str, vm: str) -> HostLink:
        """What is said of this vTPM."""
        return HostLink(self.host_socket, name, vm, self.stop, self.turn)

    def ended(self, timeout: float) -> bool:
        """Whether we are to end, within so many seconds."""
        return bool(select.select([self.stop], [], [], timeout)[0])


def run(carrier: str, path: str, name: str, host_socket: str, vm: str = "") -> None:
    """Serve one guest at ``path`` until SIGTERM or SIGINT."""
    with _service(carrier, host_socket) as service:
        host = service.host(name, vm)
        _check(host, name)
        with closing(Guest(service.lanes, host, name, Path(path))) as guest:
            notify("READY=1")
            while not service.ended(_LOOK):
                if not guest.alive:
                    raise ConfigError(f"the guest of vTPM {name!r} is not served any more; the log above says why")


def run_all(carrier: str, directory: str, host_socket: str) -> None:
    """Serve DIR/NAME.sock for each DIR/NAME.guest that is there, until SIGTERM or SIGINT."""
    with _service(carrier, host_socket) as service:
        guests = Guests(service, Path(directory))
        try:
            guests.look()
            notify("READY=1")
            while not service.ended(_LOOK):
                guests.look()
        finally:
            guests.close()


class Guests:
    """Those that a directory names."""

    def __init__(self, service: Service, directory: Path) -> None:
        self._service = service
        self._directory = directory
        self._guests: dict[str, Guest] = {}
        self._complaints: dict[str, str] = {}

    def look(self) -> None:
        """Begin with those that are new there, end those that are gone."""
        named = {each.name.removesuffix(NAMED): each for each in self._directory.glob(f"*{NAMED}")}
        for name in [name for name, guest in self._guests.items() if name not in named or not guest.alive]:
            self._guests.pop(name).close()
        for name in sorted(named.keys() - self._guests.keys()):
            try:
                host = self._service.host(name, named[name].read_text().strip())
                self._guests[name] = Guest(self._service.lanes, host, name, self._directory / f"{name}.sock")
            except (VtpmManagerError, OSError) as error:
                if self._complaints.get(name) != str(error):
                    log.error("the guest of vTPM %s cannot be served: %s", name, error)
                self._complaints[name] = str(error)

    def close(self) -> None:
        """End all."""
        for guest in self._guests.values():
            guest.close()


@contextmanager
def _service(carrier: str, host_socket: str) -> Iterator[Service]:
    where = address.parse(carrier)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    threading.stack_size(_STACK)
    stop, wake = os.pipe2(os.O_CLOEXEC)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.write(wake, b"x"))
    lanes = Lanes(lambda: address.connect(where), f"carrier {where}")
    with closing(lanes):
        yield Service(lanes, host_socket, stop)


def _check(host: HostLink, name: str) -> None:
    """Mistakes of the command line show now, not at the VM's start."""
    try:
        attached = str(host.record(_CHECK_LIMIT)["channel"])
    except UnknownVtpmError:
        if host.names_vm:  # it may come with its VM
            return
        raise
    if attached not in ("", f"shim:{name}"):
        raise ConfigError(f"vTPM {name!r} is attached to {attached}; 'vtpmctl detach {name}' first")


def _listen(path: Path) -> socket.socket:
    """For the owner only; what an earlier run left there is removed."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    umask = os.umask(0o177)
    try:
        if path.is_socket():
            if not listener.connect_ex(str(path)):
                raise ConfigError(f"somebody serves {path} already; end that, or choose another socket")
            path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(4)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen at {path}: {error.strerror or error}; choose another socket") from None
    except ConfigError:
        listener.close()
        raise
    finally:
        os.umask(umask)
    return listener
