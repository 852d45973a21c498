"""What operators ask of a host, not of its manager: to move it, or to take one. ``vtpmctl relocate`` asks here."""

from __future__ import annotations

from typing import Any

from image.host import departure
from image.host.departure import Departure
from image.host.host import Host
from image.host.landing import Landing
from image.host.requests import Server, Tell
from manager_vm.errors import ConfigError, StateError
from manager_vm.protocol.tunnel import Suite

NAME = "relocate.sock"


class Desk:
    """Serves DIR/relocate.sock of ``host`` from a thread until ``close``."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._landing: Landing | None = None
        self._server = Server(host.directory / NAME, {"relocate": self._relocate, "receive": self._receive})

    def close(self) -> None:
        """Idempotent."""
        self._server.close()
        if self._landing is not None:
            self._landing.close()

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


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit():
        raise ConfigError(f"{text[:80]!r} is no address of a host: use HOST:PORT")
    return host.strip("[]"), int(port)
