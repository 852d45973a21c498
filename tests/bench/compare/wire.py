"""The network between the managers, which counts, can be slow, and sees when a conversation changes its direction.

A vTPM moves in one TCP connection, in which both sides take turns (MIGRATION.md): OFFER, ACCEPT, CONFIRM, READY, then
STATE, PREPARED, COMMIT, COMMITTED. The vTPM is quiesced between READY and STATE, and active between COMMIT and
COMMITTED: so its pause has bounds.
"""

from __future__ import annotations

import queue
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from image.host.network import Switch

_IPV4, _TCP, _ETHERNET = b"\x08\x00", 6, 14
_READY, _STATE, _COMMIT, _COMMITTED = 3, 4, 6, 7  # turns, from 0
_SLICE = 0.002  # seconds: shorter waits are put together
_WRAP, _HALF = 1 << 32, 1 << 31
_TCP_HEAD = struct.Struct(">HHII")


@dataclass(slots=True)
class Turn:
    """Data in one direction, until the other side speaks."""

    sender: bytes
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Of one vTPM, in seconds: at least, at most."""

    least: float
    most: float


@dataclass(slots=True)
class Conversation:
    """One TCP connection."""

    turns: list[Turn] = field(default_factory=list)
    seen: dict[bytes, int] = field(default_factory=dict)  # sender -> sequence number of what comes next

    def data(self, sender: bytes, sequence: int, size: int, now: float) -> None:
        """A segment. What is sent again is no new word."""
        after = (sequence + size) % _WRAP
        if sender in self.seen and not 0 < (after - self.seen[sender]) % _WRAP < _HALF:
            return
        self.seen[sender] = after
        if not self.turns or self.turns[-1].sender != sender:
            self.turns.append(Turn(sender, now, now))
        self.turns[-1].ended = now

    def pause(self) -> Pause | None:
        """None of a conversation that moves no vTPM."""
        if len(self.turns) <= _COMMITTED:
            return None
        least = self.turns[_COMMIT].ended - self.turns[_STATE].began
        return Pause(least, self.turns[_COMMITTED].ended - self.turns[_READY].ended)


class CountingSwitch(Switch):
    """``limit``: bytes/s of all frames together, 0: none. ``rtt``: ms that a frame and its answer take beside that.

    A frame is looked at when it comes, and held back for half of that then.
    """

    def __init__(self, path: Path, limit: int = 0, rtt: int = 0) -> None:
        self._half = rtt / 2000
        self._held: queue.SimpleQueue[tuple[float, bytes, str]] = queue.SimpleQueue()
        if rtt:
            threading.Thread(target=self._deliver, name="delay", daemon=True).start()
        self.sent = 0  # bytes of frames
        self._limit = limit
        self._free = 0.0  # when the cable is free again
        self._conversations: dict[frozenset[bytes], Conversation] = {}
        super().__init__(path)

    def pauses(self) -> tuple[Pause, ...]:
        """Of the vTPMs that have moved over this network."""
        found = (each.pause() for each in list(self._conversations.values()))
        return tuple(each for each in found if each is not None)

    def _forward(self, frame: bytes, place: str) -> None:
        self.sent += len(frame)
        if self._limit:
            now = time.monotonic()
            self._free = max(self._free, now) + len(frame) / self._limit
            if self._free - now > _SLICE:
                time.sleep(self._free - now)
        self._look(frame)
        if self._half:
            self._held.put((time.monotonic() + self._half, frame, place))
        else:
            super()._forward(frame, place)

    def _deliver(self) -> None:
        """Frames that are due, as long as this process lives: one that comes too late finds no socket."""
        while True:
            due, frame, place = self._held.get()
            time.sleep(max(due - time.monotonic(), 0.0))
            with suppress(OSError):
                super()._forward(frame, place)

    def _look(self, frame: bytes) -> None:
        found = segment(frame)
        if found is not None:
            sender, receiver, sequence, size = found
            talk = self._conversations.setdefault(frozenset((sender, receiver)), Conversation())
            talk.data(sender, sequence, size, time.monotonic())


def segment(frame: bytes) -> tuple[bytes, bytes, int, int] | None:
    """(sender, receiver, sequence number, bytes of data) of a TCP segment with data, over IPv4."""
    packet = frame[_ETHERNET:]
    if frame[12:_ETHERNET] != _IPV4 or len(packet) < 20 or packet[9] != _TCP:
        return None
    head, length = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
    if len(packet) < head + 20:
        return None
    source, target, sequence, _ = _TCP_HEAD.unpack_from(packet, head)
    size = length - head - (packet[head + 12] >> 4) * 4
    if size <= 0:
        return None
    return packet[12:16] + source.to_bytes(2, "big"), packet[16:20] + target.to_bytes(2, "big"), sequence, size
