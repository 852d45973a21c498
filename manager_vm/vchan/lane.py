"""One lane of a carrier that many channels share (``lanes``): an end point like any other.

The lanes' thread brings and fetches frames; the owner reads and writes. Neither waits for the other.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from manager_vm.errors import LocalProtocolError, RemoteProtocolError
from manager_vm.vchan.endpoint import Endpoint, State
from manager_vm.wire import channel, framing

_MOST = 8  # frames that are kept in each direction


class Lane(Endpoint):
    """``epoch`` counts the carrier's peers. ``wants``: told that there is something to send, ``forget``: the end."""

    def __init__(self, name: str, wants: Callable[[Lane], None], forget: Callable[[Lane], None]) -> None:
        self.name = name
        self._wants, self._forget = wants, forget
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._here = State.WAITING
        self._visit = 0  # as the lanes' thread counts; ``epoch``: as the owner has noticed
        self._in: deque[bytes] = deque()
        self._out: deque[bytes] = deque()

    # -- for the lanes' thread ------------------------------------------------------------------------------

    def peer_is(self, state: State) -> None:
        """Another peer of the carrier, or none, or (CLOSED) no carrier any more."""
        with self._lock:
            if self._here is State.CLOSED:
                return
            self._here = state
            self._visit += state is State.OPEN
            self._in.clear()
            self._out.clear()
            os.eventfd_write(self._event, 1)

    def deliver(self, frame: bytes) -> None:
        """What has come for this lane."""
        with self._lock:
            if self._here is State.OPEN and len(self._in) < _MOST:
                self._in.append(frame)
                os.eventfd_write(self._event, 1)

    def next_frame(self) -> tuple[bytes, bool]:
        """To be sent; whether there is more."""
        with self._lock:
            frame = self._out.popleft() if self._out else b""
            if len(self._out) == _MOST - 1 and self._here is not State.CLOSED:
                os.eventfd_write(self._event, 1)  # its owner may wait for room
            return frame, bool(self._out)

    # -- for its owner --------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._event

    def update(self) -> State:
        with self._lock:
            if self._here is not State.CLOSED:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._event)
            self.epoch = self._visit
            return self._here

    def data_ready(self) -> int:
        with self._lock:
            return sum(map(len, self._in)) if self.epoch == self._visit else 0

    def buffer_space(self) -> int:
        with self._lock:
            room = _MOST - len(self._out) if self._here is State.OPEN else 0
        return room * (framing.HEADER_SIZE + channel.MAX_BODY)

    def read(self, limit: int) -> bytes:
        """Whole frames, as many as fit, and one at least; none of a peer that ``update`` has not noticed."""
        found: list[bytes] = []
        with self._lock:
            if self.epoch != self._visit:
                return b""
            while self._in and (not found or sum(map(len, found)) + len(self._in[0]) <= limit):
                found.append(self._in.popleft())
            if self._in:
                os.eventfd_write(self._event, 1)
        return b"".join(found)

    def write(self, data: bytes) -> int:
        """All of it or nothing: frames of the channel protocol. LocalProtocolError for anything else."""
        frames = [framing.encode(replace(frame, name=self.name)) for frame in _whole(data)]
        with self._lock:
            if self._here is not State.OPEN or self.epoch != self._visit or len(self._out) + len(frames) > _MOST:
                return 0
            self._out.extend(frames)
        self._wants(self)
        return len(data)

    def drop_peer(self) -> None:
        """Forget what the peer has said; it has to greet again. Other lanes notice nothing."""
        with self._lock:
            self._in.clear()
            self._out.clear()

    def close(self) -> None:
        with self._lock:
            if self._event < 0:
                return
            self._here = State.CLOSED
            event, self._event = self._event, -1
        self._forget(self)
        os.close(event)


def _whole(data: bytes) -> list[framing.Frame]:
    decoder = framing.Decoder(channel.MAX_BODY)
    try:
        frames = decoder.feed(data)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"a lane carries whole frames only: {error}") from None
    if decoder.pending:
        raise LocalProtocolError("a lane carries whole frames only")
    return frames
