"""What operators ask of a host, not of its manager: to move the manager or a guest, or to take one.

``vtpmctl relocate``, ``migrate --with-guest`` and ``resume-guest`` ask here.
"""

from __future__ import annotations

import uuid
from typing import Any

from image.host import departure, guest_move
from image.host.departure import Departure
from image.host.guest_landing import GuestLanding
from image.host.guest_move import GuestMove
from image.host.host import Host
from image.host.landing import Landing
from image.host.requests import Server, Tell, Verbs
from manager_vm.errors import ConfigError, HostError, StateError
from manager_vm.protocol.tunnel import Suite

NAME = "relocate.sock"


class Desk:
    """Serves DIR/relocate.sock of ``host`` from a thread until ``close``."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._landing: Landing | None = None
        self._guests: dict[str, GuestLanding] = {}  # that are to come, by the uuid of their vTPM
        verbs: Verbs = {
            "receive": self._receive,
            "relocate": self._relocate,
            "guest_receive": self._guest_receive,
            "guest_move": self._guest_move,
            "guest_go_on": self._guest_go_on,
        }
        self._server = Server(host.directory / NAME, verbs)

    def close(self) -> None:
        """Idempotent."""
        self._server.close()
        if self._landing is not None:
            self._landing.close()
        for each in self._guests.values():
            each.close()

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self, tell: Tell, at: str = "127.0.0.1:0") -> dict[str, Any]:
        """Wait for a manager; where the tunnel will end. Each attempt has its own: the receiver gives a key once."""
        if self._landing is not None:
            if self._landing.busy:
                raise StateError("a manager is on its way to this host; wait for that, or abort it at its source")
            self._landing.close()
        self._landing = Landing(self._host, _address(at))
        host, port = self._landing.address
        return {"at": f"{host}:{port}"}

    def _relocate(
        self, tell: Tell, method: str, receiver: str, to: str, order: bytes, suite: str = "", limit: int = 0
    ) -> dict[str, Any]:
        """Move this host's manager to the host whose tunnel ends at ``to``."""
        chosen = departure.parse(method)
        sealed = Suite(suite) if suite else Suite.AES
        move = Departure(self._host, chosen, receiver, _address(to), order, suite=sealed, limit=limit, progress=tell)
        return self._host.spawner.submit(move.run).result().told()

    def _guest_receive(self, tell: Tell, vtpm: str, at: str = "127.0.0.1:0") -> dict[str, Any]:
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
        self, tell: Tell, name: str, receiver: str, to: str, order: bytes, back: bytes = b""
    ) -> dict[str, Any]:
        """Move a guest with its vTPM to the host whose tunnel ends at ``to``. ``back``: an order for the way back."""
        again = (lambda: back) if back else None
        move = GuestMove(self._host, name, receiver, _address(to), order, back=again, progress=tell)
        return move.run().told()

    def _guest_go_on(self, tell: Tell, name: str) -> None:
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
