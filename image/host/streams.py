"""The source's end of everything that goes to the other host: requests, memory, disk, each a stream of the tunnel."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from image.host.requests import Other
from image.host.tunnel import Entrance
from manager_vm.crypto import Key
from manager_vm.errors import HostError
from manager_vm.protocol.tunnel import Suite

_REACH = 30.0  # seconds for the other host to open its tunnel
_PAUSE = 0.1


class Streams:
    """To the tunnel's end at ``to``. ``directory``: of their local sockets. ``limit``: bytes/s of each, 0: none."""

    def __init__(self, directory: Path, to: tuple[str, int], key: Key, suite: Suite, limit: int) -> None:
        self._directory = directory
        self._to, self._key, self._suite, self._limit = to, key, suite, limit
        self._entrances: list[Entrance] = []
        self._tasks = ExitStack()

    @property
    def sent(self) -> int:
        """Bytes given to TCP."""
        return sum(each.sent for each in self._entrances)

    def control(self) -> Other:
        """Reach the other host: its tunnel opens when it has the key from the receiver."""
        deadline = time.monotonic() + _REACH
        while True:
            entrance = Entrance(self._path("control"), self._to, self._key, self._suite, "control")
            asking = Other(self._path("control"))
            try:
                asking.ask("hello")
                self._entrances.append(self._tasks.enter_context(entrance))
                self._tasks.callback(asking.close)
                return asking
            except HostError:
                asking.close()
                entrance.close()
                if time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE)

    def entrance(self, stream: str) -> Path:
        """The socket at which this stream begins, for one connection."""
        path = self._path(stream)
        entrance = Entrance(path, self._to, self._key, self._suite, stream, limit=self._limit)
        self._entrances.append(self._tasks.enter_context(entrance))
        return path

    def send(self, stream: str, write: Callable[[int], object]) -> None:
        """Send a whole stream: ``write(descriptor)``. HostError unless the other side has it all."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.connect(str(self.entrance(stream)))
            try:
                write(connection.fileno())
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)
            except OSError as error:
                raise HostError(f"stream {stream!r} to the other host broke: {error}") from None
        if self._entrances[-1].failure:
            raise HostError(f"stream {stream!r} to the other host: {self._entrances[-1].failure}")

    def send_file(self, stream: str, path: Path) -> None:
        """Send this file as a whole stream."""

        def write(fd: int) -> None:
            with open(path, "rb") as source, open(fd, "wb", closefd=False) as target:
                shutil.copyfileobj(source, target)

        self.send(stream, write)

    def close(self) -> None:
        """End all; idempotent."""
        self._tasks.close()

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _path(self, stream: str) -> Path:
        return self._directory / f"{stream}.out"


def free_port(host: str) -> tuple[str, int]:
    """One that is free now: it is named before somebody listens there."""
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
        return host, int(found.getsockname()[1])
