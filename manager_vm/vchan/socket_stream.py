"""The host's end of a virtio-serial port of a VM: the UNIX socket of QEMU's character device (CHANNEL.md, section 6.4).

A byte stream without memory: bytes can be cut off when either side restarts, so the end point is ``lossy``.
"""

from __future__ import annotations

import select
import socket
from contextlib import suppress
from pathlib import Path

from manager_vm.errors import UnreachableError
from manager_vm.vchan.endpoint import Endpoint, State

_CONNECT = 2.0  # seconds


class SocketStream(Endpoint):
    """A connection to the socket at ``path``, where QEMU listens; one client at a time."""

    lossy = True

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_CONNECT)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise UnreachableError(f"no VM's port ends at {path} ({error.strerror or error}); does it run?") from None
        self._socket.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._socket, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
        self._state = State.OPEN

    def fileno(self) -> int:
        return self._epoll.fileno()

    def update(self) -> State:
        if self._state is State.OPEN:
            self._epoll.poll(0)
            if self._poll(select.POLLRDHUP | select.POLLHUP) and not self.data_ready():
                self.close()
        return self._state

    def data_ready(self) -> int:
        if self._state is not State.OPEN:
            return 0
        with suppress(OSError):
            return len(self._socket.recv(1, socket.MSG_PEEK))
        return 0

    def buffer_space(self) -> int:
        return 4096 if self._state is State.OPEN and self._poll(select.POLLOUT) else 0

    def read(self, limit: int) -> bytes:
        parts: list[bytes] = []
        with suppress(OSError):  # nothing more; what ended the connection is noticed by ``update``
            while limit > 0 and self._state is State.OPEN:
                piece = self._socket.recv(limit)
                if not piece:
                    break
                parts.append(piece)
                limit -= len(piece)
        return b"".join(parts)

    def write(self, data: bytes) -> int:
        if self._state is not State.OPEN:
            return 0
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.close()
            return 0

    def close(self) -> None:
        if self._state is State.OPEN:
            self._state = State.CLOSED
            self._epoll.close()
            self._socket.close()

    def _poll(self, events: int) -> int:
        poller = select.poll()
        poller.register(self._socket, events)
        return dict(poller.poll(0)).get(self._socket.fileno(), 0)
