"""Between the two sides of a move: loopback with a round-trip time, or a cable with a bandwidth."""

from __future__ import annotations

import socket
from typing import Protocol

from tests.bench.migrate.cable import FAR, NEAR, Cable
from tests.bench.migrate.delay import Delay


class Road(Protocol):
    """How the source reaches a listener of the destination."""

    name: str
    rtt: float  # milliseconds that a relay has to add

    def listen(self) -> socket.socket:
        """A listener at the destination."""

    def way(self, listener: socket.socket) -> Delay:
        """What leads to it; ``close`` it."""

    def connect(self, address: str) -> socket.socket:
        """From the source."""

    def settings(self, end: int) -> tuple[list[str], str]:
        """(how a manager at this end is started, where it listens)."""


class Loopback:
    """``rtt``: milliseconds, by a relay in this process."""

    def __init__(self, rtt: float) -> None:
        self.rtt = rtt
        self.name = f"{rtt:g} ms"

    def listen(self) -> socket.socket:
        return socket.create_server(("127.0.0.1", 0))

    def way(self, listener: socket.socket) -> Delay:
        return Delay(f"127.0.0.1:{listener.getsockname()[1]}", self.rtt)

    def connect(self, address: str) -> socket.socket:
        return _connect(address)

    def settings(self, end: int) -> tuple[list[str], str]:
        return [], "127.0.0.1:0"


class Limited:
    """A cable; no round-trip time is added."""

    def __init__(self, cable: Cable, mbit: float) -> None:
        self._cable = cable
        self.rtt = 0.0
        self.name = f"{mbit:g} Mbit/s"

    def listen(self) -> socket.socket:
        return self._cable.at(1, lambda: socket.create_server((FAR, 0)))

    def way(self, listener: socket.socket) -> Delay:
        return Delay(f"{FAR}:{listener.getsockname()[1]}", 0)

    def connect(self, address: str) -> socket.socket:
        return self._cable.at(0, lambda: _connect(address))

    def settings(self, end: int) -> tuple[list[str], str]:
        return self._cable.prefix(end), f"{(NEAR, FAR)[end]}:0"


def _connect(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)))
