"""Somebody in between two managers: a relay on loopback that sees each frame, and may drop, change, hold or keep it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from manager_vm.wire import framing

# (number of the frame on this connection, whether it is the source's, its bytes) -> what goes on, None: cut here
Between = Callable[[int, bool, bytes], bytes | None]


class Middle:
    """Listens at ``address``; each connection there goes on to ``target`` ("host:port")."""

    def __init__(self, target: str, between: Between) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._between = between
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.kept: list[tuple[bool, bytes]] = []  # all frames, whose they were
        self._sources: list[socket.socket] = []
        self._closing = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closing = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def hang_up(self) -> None:
        """The sources lose their connections; what is under way in between still goes on to the other side."""
        for each in self._sources:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closing:
            try:
                near, _ = self._socket.accept()
            except OSError:
                return
            self._sources.append(near)
            _Relay(self, near, self._target, self._between)


class _Relay:
    def __init__(self, middle: Middle, near: socket.socket, target: tuple[str, int], between: Between) -> None:
        self._middle = middle
        self._near, self._far = near, socket.create_connection(target)
        self._between = between
        self._number = 0
        self._lock = threading.Lock()
        for source, one, other in ((True, self._near, self._far), (False, self._far, self._near)):
            threading.Thread(target=self._pump, args=(source, one, other), daemon=True).start()

    def _pump(self, source: bool, one: socket.socket, other: socket.socket) -> None:
        buffer = b""
        with suppress(OSError):
            while data := one.recv(65536):
                buffer += data
                while (size := _complete(buffer)) is not None:
                    frame, buffer = buffer[:size], buffer[size:]
                    if not self._pass(source, frame, other):
                        return
        self._cut()

    def _pass(self, source: bool, frame: bytes, other: socket.socket) -> bool:
        with self._lock:
            number, self._number = self._number, self._number + 1
            self._middle.kept.append((source, frame))
        changed = self._between(number, source, frame)
        if changed is None:
            self._cut()
            return False
        other.sendall(changed)
        return True

    def _cut(self) -> None:
        for each in (self._near, self._far):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def _complete(buffer: bytes) -> int | None:
    """How many bytes the first frame has, None while it is not complete."""
    if len(buffer) < framing.HEADER_SIZE:
        return None
    _, _, _, length, _, name, _, _ = framing.HEADER.unpack_from(buffer)
    size = framing.HEADER_SIZE + name + length
    return size if len(buffer) >= size else None
