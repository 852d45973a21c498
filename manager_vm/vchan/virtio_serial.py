"""Carrier (c): a virtio-serial port pair, for guests that must live-migrate (CHANNEL.md section 6).

Bytes can be cut off when either side restarts, so the end point is ``lossy``. The port shows only whether the
*host* side is connected; whether a peer listens behind it is for the session above to find out.
"""

from __future__ import annotations

import errno
import os
import select
from pathlib import Path

from manager_vm.errors import BusyError, UnreachableError
from manager_vm.vchan.endpoint import Endpoint, State

PORTS = Path("/dev/virtio-ports")


class PortEndpoint(Endpoint):
    """Both roles: the port ``name`` of this machine, opened exclusively."""

    lossy = True

    def __init__(self, name: str) -> None:
        self._name = name
        self._fd = _open(name)
        # edge-triggered: a port without a host side is always "ready" (POLLHUP) and would spin a level-triggered loop
        try:
            self._epoll = select.epoll()
        except OSError as error:
            os.close(self._fd)
            raise UnreachableError(f"no descriptor is left for the port {name!r}: {error.strerror}") from None
        self._epoll.register(self._fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        self._poller = select.poll()
        self._poller.register(self._fd, select.POLLIN | select.POLLOUT)
        self._state = State.WAITING
        self._writable = False

    def fileno(self) -> int:
        return self._epoll.fileno()

    def update(self) -> State:
        if self._state is State.CLOSED:
            return State.CLOSED
        self._epoll.poll(0)
        events = dict(self._poller.poll(0)).get(self._fd, 0)
        new = State.WAITING if events & select.POLLHUP else State.OPEN
        if new is State.OPEN and self._state is not State.OPEN:
            self.epoch += 1
        self._state = new
        self._writable = bool(events & select.POLLOUT)
        return self._state

    def data_ready(self) -> int:
        return int(bool(dict(self._poller.poll(0)).get(self._fd, 0) & select.POLLIN))

    def buffer_space(self) -> int:
        return 4096 if self._state is State.OPEN and self._writable else 0

    def read(self, limit: int) -> bytes:
        """Nothing before ``update`` has noticed the peer: what it says belongs to its own epoch."""
        if self._state is not State.OPEN:
            return b""
        parts: list[bytes] = []
        while limit > 0:
            piece = self._read_once(limit)
            if not piece:
                break
            parts.append(piece)
            limit -= len(piece)
        return b"".join(parts)

    def _read_once(self, limit: int) -> bytes:
        try:
            return os.read(self._fd, limit)
        except BlockingIOError:
            return b""
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EIO):
                self._state = State.CLOSED
                return b""
            raise

    def write(self, data: bytes) -> int:
        if self._state is not State.OPEN:
            return 0
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EIO, errno.EPIPE):
                self._state = State.CLOSED if error.errno == errno.ENODEV else State.WAITING
                return 0
            raise

    def drop_peer(self) -> None:
        """Nothing: the port cannot be taken away from the other VM; its bytes are void until its next HELLO."""

    def close(self) -> None:
        if self._fd < 0:
            return
        self._state = State.CLOSED
        self._epoll.close()
        os.close(self._fd)
        self._fd = -1


def _open(name: str) -> int:
    path = PORTS / name
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UnreachableError(f"this machine has no virtio-serial port {name!r}; add it to the VM ({path})") from None
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise BusyError(
                f"the virtio-serial port {name!r} is open in another process; stop that one first"
            ) from None
        raise UnreachableError(f"cannot open {path}: {error.strerror}") from None
