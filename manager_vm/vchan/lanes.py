"""Many channels over one carrier: each frame names its lane (CHANNEL.md, section 6.4). Both sides use the same code.

A thread moves frames between the carrier and the lanes. A lane is an end point like any other; its owner notices
nothing of the others but that they share the way: lanes with something to send take turns, frame by frame, what comes
for a lane whose owner does not read is dropped beyond a few frames, and nobody waits for it.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from manager_vm.errors import BusyError, VtpmManagerError
from manager_vm.vchan.endpoint import Endpoint, State
from manager_vm.vchan.lane import Lane
from manager_vm.wire import channel, framing

log = logging.getLogger(__name__)

_EXPIRE = 0.3  # seconds: the rest of a frame on a lossy carrier that has not come by then is given up
_PAUSE = 0.5  # seconds between tries to open the carrier
_CHUNK = 65536


class Lanes:
    """Owns the carrier, which ``make`` opens, again after each loss. Thread-safe."""

    def __init__(self, make: Callable[[], Endpoint], name: str) -> None:
        self._make = make
        self._name = name
        self._carrier: Endpoint | None = None
        self._decoder = framing.Decoder(channel.MAX_BODY)
        self._lanes: dict[str, Lane] = {}
        self._turns: deque[Lane] = deque()  # lanes with something to send
        self._rest = b""  # of the frame that the carrier has taken a part of
        self._state, self._epoch, self._fed = State.WAITING, 0, 0.0
        self._complaint = ""
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name=f"lanes {name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread works."""
        return self._thread.is_alive()

    def lane(self, name: str) -> Lane:
        """The end point of this lane; BusyError while somebody has it."""
        with self._lock:
            if name in self._lanes:
                raise BusyError(f"lane {name!r} of {self._name} is in use; one consumer per vTPM")
            lane = self._lanes[name] = Lane(name, self._wants, self._forget)
            lane.peer_is(self._state)
            return lane

    def close(self) -> None:
        """All lanes are CLOSED; idempotent."""
        self._closing = True
        self._wake_up()
        self._thread.join()
        with self._lock:
            lanes = list(self._lanes.values())
            if self._wake >= 0:
                os.close(self._wake)
                self._wake = -1
        for lane in lanes:
            lane.peer_is(State.CLOSED)

    # -- for lanes ------------------------------------------------------------------------------------------

    def _wake_up(self) -> None:
        """Something is to be sent."""
        with suppress(OSError, ValueError):  # it may be closed
            os.eventfd_write(self._wake, 1)

    def _wants(self, lane: Lane) -> None:
        """This lane has something to send."""
        with self._lock:
            if lane not in self._turns:
                self._turns.append(lane)
        self._wake_up()

    def _forget(self, lane: Lane) -> None:
        """Its owner has closed it."""
        with self._lock:
            if self._lanes.get(lane.name) is lane:
                del self._lanes[lane.name]
            if lane in self._turns:
                self._turns.remove(lane)

    # -- the thread -----------------------------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            while not self._closing:
                if self._carrier is None and not self._open():
                    continue
                self._wait()
                try:
                    self._step()
                except VtpmManagerError as error:
                    self._lose(str(error))
        finally:
            self._lose("")

    def _open(self) -> bool:
        try:
            carrier = self._make()
        except VtpmManagerError as error:
            self._complain(str(error))
            self._sleep(_PAUSE)
            return False
        self._decoder = framing.Decoder(channel.MAX_BODY, resync=carrier.lossy)
        self._carrier, self._epoch, self._fed = carrier, carrier.epoch, 0.0
        return True

    def _wait(self) -> None:
        assert self._carrier is not None
        pending = self._carrier.lossy and self._decoder.pending
        self._sleep(_EXPIRE if pending else None, self._carrier.fileno())

    def _sleep(self, timeout: float | None, *more: int) -> None:
        poller = select.poll()
        for fd in (self._wake, *more):
            poller.register(fd, select.POLLIN)
        poller.poll(None if timeout is None else timeout * 1000)
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _step(self) -> None:
        carrier = self._carrier
        assert carrier is not None
        state = carrier.update()
        if state is State.CLOSED:
            self._lose("the other end has left")
            return
        if carrier.epoch != self._epoch or state is not self._state:
            self._epoch = carrier.epoch
            self._begin(state)
        if state is State.OPEN:
            self._complaint = ""
            self._receive(carrier)
            self._send(carrier)

    def _begin(self, state: State) -> None:
        """Another peer, or none: what was half said to or by the one before is void."""
        self._decoder.reset()
        self._rest = b""
        with self._lock:
            self._state = state
            self._turns.clear()
            lanes = list(self._lanes.values())
        for lane in lanes:
            lane.peer_is(state)

    def _receive(self, carrier: Endpoint) -> None:
        now = time.monotonic()
        if data := carrier.read(_CHUNK):
            self._fed = now
            frames = self._decoder.feed(data)
        elif carrier.lossy and self._decoder.pending and now - self._fed >= _EXPIRE:
            frames = self._decoder.expire()
        else:
            return
        for frame in frames:
            with self._lock:
                lane = self._lanes.get(frame.name)
            if lane is not None:  # else: of a vTPM that is not served here
                lane.deliver(framing.encode(replace(frame, name="")))
        if len(data) == _CHUNK:
            self._wake_up()  # there may be more

    def _send(self, carrier: Endpoint) -> None:
        while True:
            if self._rest:
                self._rest = self._rest[carrier.write(self._rest) :]
                if self._rest:
                    return  # the carrier says when there is room
            with self._lock:
                lane = self._turns.popleft() if self._turns else None
            if lane is None:
                return
            self._rest, more = lane.next_frame()
            if more:
                self._wants(lane)

    def _lose(self, why: str) -> None:
        if why:
            self._complain(why)
        if self._carrier is not None:
            self._carrier.close()
            self._carrier = None
        self._begin(State.WAITING)

    def _complain(self, why: str) -> None:
        if why != self._complaint:
            log.warning("%s: %s", self._name, why)
        self._complaint = why
