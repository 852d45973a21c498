"""What operators ask of a host, not of its manager: to move the manager or a guest, or to take one.

``vtpmctl relocate``, ``migrate --with-guest`` and ``resume-guest`` ask here.

DIR/relocate.sock, requests as on the admin link (manager_vm/wire/admin.py), one client at a time.
"""

from __future__ import annotations

import logging
import socket
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from image.host import departure, guest_move, unix
from image.host.departure import Departure
from image.host.guest_landing import GuestLanding
from image.host.guest_move import GuestMove
from image.host.host import Host
from image.host.landing import Landing
from manager_vm.errors import ConfigError, HostError, RemoteProtocolError, VtpmManagerError
from manager_vm.protocol.tunnel import Suite
from manager_vm.wire import admin, framing
from manager_vm.wire.admin import Progress, Reply, Request

log = logging.getLogger(__name__)

NAME = "relocate.sock"
_CHUNK = 65536


class Desk:
    """Serves DIR/relocate.sock of ``host`` from a thread until ``close``."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._path = path = host.directory / NAME
        self._landing: Landing | None = None
        self._guests: dict[str, GuestLanding] = {}  # that are to come, by the uuid of their vTPM
        self._listener = unix.listen(path, 1)
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="desk", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Idempotent."""
        self._closing = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self._path.unlink(missing_ok=True)
        if self._landing is not None:
            self._landing.close()
        for each in self._guests.values():
            each.close()

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while not self._closing:
            with suppress(OSError):
                connection, _ = self._listener.accept()
                with connection:
                    self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        decoder = framing.Decoder(admin.MAX_BODY)
        while data := connection.recv(_CHUNK):
            try:
                requests = [admin.from_frame(frame) for frame in decoder.feed(data)]
            except RemoteProtocolError as error:
                log.warning("the host's desk: %s", error)
                return
            for request in requests:
                if isinstance(request, Request):
                    connection.sendall(framing.encode(admin.to_frame(self._answer(connection, request))))

    def _answer(self, connection: socket.socket, request: Request) -> Reply:
        def tell(text: str) -> None:
            connection.sendall(framing.encode(admin.to_frame(Progress(request.id, text))))

        verbs: dict[str, Callable[..., Any]] = {
            "receive": self._receive,
            "relocate": partial(self._relocate, tell),
            "guest_receive": self._guest_receive,
            "guest_move": partial(self._guest_move, tell),
            "guest_go_on": self._guest_go_on,
        }
        try:
            if request.verb not in verbs:
                raise RemoteProtocolError(f"this host does not serve {request.verb!r}; it serves {', '.join(verbs)}")
            return Reply(request.id, verbs[request.verb](**request.args))
        except VtpmManagerError as error:
            return Reply(request.id, error=error)
        except TypeError as error:
            return Reply(request.id, error=ConfigError(f"{request.verb}: {error}"))

    def _receive(self, at: str = "127.0.0.1:0") -> dict[str, Any]:
        """Wait for a manager; where the tunnel will end."""
        if self._landing is None or self._landing.arrived.is_set():
            if self._landing is not None:
                self._landing.close()
            self._landing = Landing(self._host, _address(at))
        host, port = self._landing.address
        return {"at": f"{host}:{port}"}

    def _relocate(
        self, tell: Any, method: str, receiver: str, to: str, order: bytes, suite: str = "", limit: int = 0
    ) -> dict[str, Any]:
        """Move this host's manager to the host whose tunnel ends at ``to``."""
        chosen = departure.parse(method)
        sealed = Suite(suite) if suite else Suite.AES
        move = Departure(self._host, chosen, receiver, _address(to), order, suite=sealed, limit=limit, progress=tell)
        return self._host.spawner.submit(move.run).result().told()

    def _guest_receive(self, vtpm: str, at: str = "127.0.0.1:0") -> dict[str, Any]:
        """Wait for the guest that comes with this vTPM; where the tunnel will end."""
        try:
            vtpm = str(uuid.UUID(vtpm))
        except ValueError:
            raise ConfigError(f"{vtpm[:80]!r} is no vTPM's uuid: use the one that 'show' prints") from None
        if vtpm in self._guests:
            self._guests.pop(vtpm).close()
        landing = self._guests[vtpm] = GuestLanding(self._host, vtpm, _address(at))
        host, port = landing.address
        return {"at": f"{host}:{port}"}

    def _guest_move(
        self, tell: Any, name: str, receiver: str, to: str, order: bytes, back: bytes = b""
    ) -> dict[str, Any]:
        """Move a guest with its vTPM to the host whose tunnel ends at ``to``. ``back``: an order for the way back."""
        again = (lambda: back) if back else None
        move = GuestMove(self._host, name, receiver, _address(to), order, back=again, progress=tell)
        return move.run().told()

    def _guest_go_on(self, name: str) -> None:
        """A guest that a failed move has left standing still."""
        guest = self._host.guests.get(name)
        if guest is None:
            raise HostError(f"this host has no guest {name[:80]!r}")
        guest_move.go_on(self._host, guest)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit():
        raise ConfigError(f"{text[:80]!r} is no address of a host: use HOST:PORT")
    return host.strip("[]"), int(port)
