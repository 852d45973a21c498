"""Carrier (a): a ring between two processes. ``unix:PATH`` is where the memory is handed over (CHANNEL.md section 6).

The server listens; each client gets a fresh sealed memfd and two eventfds over the socket (SCM_RIGHTS), then the
socket stays open only to see the other's death. One client at a time.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

from manager_vm.errors import BusyError, RemoteProtocolError, StoreError, UnreachableError
from manager_vm.vchan.endpoint import Endpoint, State
from manager_vm.vchan.ring import MEMORY_SIZE, RingClient, RingServer

_HERE, _BUSY = b"\x01", b"\x00"
_CONNECT_TIMEOUT = 2.0  # seconds
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class _Mapping:
    """One memory, two events, one socket, and the side of the ring on top; freed together."""

    def __init__(self, memory_fd: int, own_event: int, peer_event: int, connection: socket.socket) -> None:
        self._memory_fd = memory_fd
        self.own_event = own_event
        self._peer_event = peer_event
        self.connection = connection
        self._map = mmap.mmap(memory_fd, MEMORY_SIZE)
        self.view = memoryview(self._map)

    def kick(self) -> None:
        try:  # noqa: SIM105 (a context manager costs more than the event: once per message)
            os.eventfd_write(self._peer_event, 1)
        except BlockingIOError:  # the counter is full: the peer has enough to wake up for
            pass

    def drain(self) -> None:
        try:  # noqa: SIM105
            os.eventfd_read(self.own_event)
        except BlockingIOError:
            pass

    def free(self) -> None:
        self.view.release()
        self._map.close()
        for fd in (self._memory_fd, self.own_event, self._peer_event):
            os.close(fd)
        self.connection.close()


class LocalServer(Endpoint):
    """The manager's end: listens at ``path`` (mode 0600) until ``close``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener = _listen(path)
        self._epoll = select.epoll()
        self._listener_fd = self._listener.fileno()
        self._epoll.register(self._listener_fd, select.EPOLLIN)
        self._mapping: _Mapping | None = None
        self._ring: RingServer | None = None
        self._closed = False

    def fileno(self) -> int:
        return self._epoll.fileno()

    def update(self) -> State:
        arrived = False
        for fd, _ in self._epoll.poll(0):
            if self._mapping is not None and fd == self._mapping.own_event:
                self._mapping.drain()
            elif fd == self._listener_fd:
                arrived = True
            else:
                self.drop_peer()
        if arrived:  # after departures
            self._accept()
        if self._closed:
            return State.CLOSED
        if self._ring is None:
            return State.WAITING
        arrivals = self._ring.arrivals
        state = self._ring.update()
        if self._ring.arrivals != arrivals:
            self.epoch += 1
        return state

    def data_ready(self) -> int:
        return self._ring.data_ready() if self._open() and self._ring else 0

    def buffer_space(self) -> int:
        return self._ring.buffer_space() if self._open() and self._ring else 0

    def read(self, limit: int) -> bytes:
        if not self._open() or self._ring is None:
            return b""
        try:
            return self._ring.read(limit)
        except RemoteProtocolError:
            self.drop_peer()
            raise

    def write(self, data: bytes) -> int:
        if not self._open() or self._ring is None:
            return 0
        try:
            return self._ring.write(data)
        except RemoteProtocolError:
            self.drop_peer()
            raise

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.drop_peer()
        self._epoll.close()
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _open(self) -> bool:
        return self._ring is not None and self._ring.state is State.OPEN

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        with suppress(OSError):
            if self._mapping is not None:
                connection.send(_BUSY)
            else:
                self._hand_over(connection)
                return
        connection.close()

    def _hand_over(self, connection: socket.socket) -> None:
        with ExitStack() as made:
            memory = os.memfd_create("vtpm-channel", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            made.callback(os.close, memory)
            os.ftruncate(memory, MEMORY_SIZE)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
            own = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            made.callback(os.close, own)
            peer = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            made.pop_all()
        self._mapping = _Mapping(memory, own, peer, connection)
        self._ring = RingServer(self._mapping.view, self._mapping.kick)
        self._epoll.register(own, select.EPOLLIN)
        self._epoll.register(connection.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
        try:
            socket.send_fds(connection, [_HERE], [memory, peer, own])
        except OSError:
            self.drop_peer()

    def drop_peer(self) -> None:
        if self._ring is None or self._mapping is None:
            return
        self._epoll.unregister(self._mapping.own_event)
        self._epoll.unregister(self._mapping.connection.fileno())
        self._ring.leave()
        self._ring.release()
        self._mapping.free()
        self._ring = self._mapping = None


class LocalClient(Endpoint):
    """The front end's end of one connection."""

    def __init__(self, path: Path) -> None:
        mapping = _receive(path)
        self._mapping: _Mapping | None = mapping
        self._epoll = select.epoll()
        self._epoll.register(mapping.own_event, select.EPOLLIN)
        self._epoll.register(mapping.connection.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
        self._ring = RingClient(mapping.view, mapping.kick)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def update(self) -> State:
        if self._mapping is None:
            return State.CLOSED
        for fd, _ in self._epoll.poll(0):
            if fd != self._mapping.own_event:
                self.close()
                return State.CLOSED
            self._mapping.drain()
        return self._ring.update()

    def data_ready(self) -> int:
        return self._ring.data_ready() if self._ring.state is State.OPEN else 0

    def buffer_space(self) -> int:
        return self._ring.buffer_space() if self._ring.state is State.OPEN else 0

    def read(self, limit: int) -> bytes:
        return self._ring.read(limit) if self._ring.state is State.OPEN else b""

    def write(self, data: bytes) -> int:
        return self._ring.write(data) if self._ring.state is State.OPEN else 0

    def close(self) -> None:
        if self._mapping is None:
            return
        self._ring.leave()
        self._ring.release()
        self._epoll.close()
        self._mapping.free()
        self._mapping = None


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        if path.is_socket():  # of an earlier manager; anything else is somebody's, and bind() refuses it
            path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(8)
    except OSError as error:
        listener.close()
        raise StoreError(f"cannot listen at {path}: {error.strerror or error}; does its directory exist?") from error
    return listener


def _receive(path: Path) -> _Mapping:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(_CONNECT_TIMEOUT)
    try:
        connection.connect(str(path))
        data, fds, _, _ = socket.recv_fds(connection, 1, 3)
    except OSError as error:
        connection.close()
        raise UnreachableError(f"nobody serves the channel {path} ({error}); is the vTPM attached there?") from None
    if data == _HERE and len(fds) == 3:
        connection.setblocking(False)
        for fd in fds:
            os.set_inheritable(fd, False)
        memory, own, peer = fds
        return _Mapping(memory, own, peer, connection)
    for fd in fds:
        os.close(fd)
    connection.close()
    if data == _BUSY:
        raise BusyError(f"the channel {path} has a front end already; one consumer per vTPM")
    raise UnreachableError(f"the channel {path} closed before it was handed over; try again")
