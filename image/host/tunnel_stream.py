"""One stream of the tunnel: a local socket, a TCP connection, the records between them, two threads."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from manager_vm.crypto import Key
from manager_vm.errors import IntegrityError
from manager_vm.protocol.tunnel import RECORD, Opener, Sealer, Suite

_NONCE = 32
_BURST = 0.1  # seconds in which nothing was sent can be made up for
_LOST = 30  # seconds without an answer of the other host's kernel
_SOURCE, _DESTINATION = "source", "destination"
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _LOST // 3),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _LOST // 6),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _LOST * 1000),
)


@dataclass(frozen=True, slots=True)
class Wire:
    """A connection between two hosts that agreed on keys."""

    remote: socket.socket
    sealer: Sealer
    opener: Opener


class _Bucket:
    """At most ``limit`` bytes in a second, over time; 0: no limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = limit * _BURST
        self._at = time.monotonic()

    def delay(self, count: int) -> float:
        """Seconds to wait before these ``count`` bytes may go."""
        if not self._limit:
            return 0.0
        now = time.monotonic()
        self._free = min(self._limit * _BURST, self._free + (now - self._at) * self._limit) - count
        self._at = now
        return max(0.0, -self._free / self._limit)


class Stream:
    """One stream with the sockets that it owns. ``abort`` from any thread ends it; its own thread closes it."""

    def __init__(self, name: str = "", limit: int = 0) -> None:
        self.name = name  # "": a connection that has not said yet which it is
        self.failure = ""
        self.finished = False
        self.sent = self.received = 0
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._bucket = _Bucket(limit)
        self._piece = min(RECORD, max(4096, int(limit * _BURST))) if limit else RECORD

    def own(self, each: socket.socket) -> socket.socket:
        """``each``, which is closed with the stream; OSError if that has ended already."""
        with self._lock:
            self._sockets.append(each)
        if self._over.is_set():
            raise ConnectionAbortedError("the stream was closed")
        return each

    def release(self, each: socket.socket) -> None:
        """Close this socket alone."""
        with self._lock:
            self._sockets.remove(each)
            each.close()

    def abort(self) -> None:
        """End both directions at once; whoever waits at a socket of the stream wakes up."""
        self._over.set()
        with self._lock:
            for each in self._sockets:
                _shut(each, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the sockets."""
        with self._lock:
            while self._sockets:
                self._sockets.pop().close()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What goes wrong in here ends the stream, and ``failure`` says why."""
        try:
            yield
        except IntegrityError as error:
            self._fail("tampered", error)
        except OSError as error:
            self._fail("lost", error)

    def _fail(self, kind: str, error: Exception) -> None:
        with self._lock:
            if not self._over.is_set():
                self.failure = f"{kind}: {self.name or 'a stranger'}: {error}"
                self._over.set()
        self.abort()

    def meet(self, remote: socket.socket, key: Key, suite: Suite, deadline: float, *, at_source: bool) -> Wire:
        """Exchange nonces: this connection's keys."""
        _set_up(remote)
        own, other = os.urandom(_NONCE), b""
        remote.sendall(own)
        while len(other) < _NONCE:
            other += self._greeting(remote, _NONCE - len(other), deadline)
        self.sent += _NONCE
        context = own + other if at_source else other + own
        mine, theirs = (_SOURCE, _DESTINATION) if at_source else (_DESTINATION, _SOURCE)
        return Wire(remote, Sealer(key, mine, suite, context), Opener(key, theirs, suite, context))

    def hear(self, wire: Wire, deadline: float) -> list[bytes]:
        """The first record, and those that came along with it."""
        pieces: list[bytes] = []
        while not pieces:
            pieces = wire.opener.feed(self._greeting(wire.remote, RECORD, deadline))
        return pieces

    def _greeting(self, remote: socket.socket, count: int, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the other host did not say who it is in time")
        remote.settimeout(left)
        data = remote.recv(count)
        if not data:
            raise ConnectionResetError("the other host closed the connection before anything was agreed")
        self.received += len(data)
        return data

    def pump(self, wire: Wire, local: socket.socket, first: Iterable[bytes] = ()) -> None:
        """Carry data both ways until both ends are finished or one fails. ``first``: already received."""
        wire.remote.settimeout(None)
        outward = threading.Thread(
            target=self._outward, args=(wire, local), name=f"tunnel {self.name} out", daemon=True
        )
        outward.start()
        with self.guarded():
            self._inward(wire, local, first)
        outward.join()
        with self._lock:
            self.finished = not self._over.is_set()

    def send(self, wire: Wire, data: bytes) -> None:
        """Send sealed bytes, as fast as the limit allows."""
        if wait := self._bucket.delay(len(data)):
            self._over.wait(wait)
        wire.remote.sendall(data)
        self.sent += len(data)

    def _outward(self, wire: Wire, local: socket.socket) -> None:
        view = memoryview(bytearray(self._piece))
        with self.guarded():
            while count := local.recv_into(view):
                self.send(wire, wire.sealer.seal(view[:count]))
            if not self._over.is_set():  # a local end that we shut ourselves is no end of its data
                self.send(wire, wire.sealer.finish())
                _shut(wire.remote, socket.SHUT_WR)

    def _inward(self, wire: Wire, local: socket.socket, pieces: Iterable[bytes]) -> None:
        view = memoryview(bytearray(RECORD))
        while True:
            for piece in pieces:
                local.sendall(piece)
            if wire.opener.finished:
                return _shut(local, socket.SHUT_WR)
            count = wire.remote.recv_into(view)
            if not count:
                raise ConnectionResetError("the connection ended before the stream did")
            self.received += count
            pieces = wire.opener.feed(view[:count])


def _shut(each: socket.socket, how: int) -> None:
    """Shut a socket down; the other end may have done so before."""
    with suppress(OSError):
        each.shutdown(how)


def _set_up(remote: socket.socket) -> None:
    """Small records go at once; a host that is gone is noticed."""
    remote.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for level, option, value in _KEEPALIVE:
        remote.setsockopt(level, option, value)
