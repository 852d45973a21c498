"""The audit log's lines and the chain that they make. Pure: a manager writes it, anybody verifies it, also offline.

A line is one JSON object: {"n": number from 1, "prev": SHA-256 of the line before (hex), "time": seconds since 1970 (of
the host's clock: advisory), "event": words, ...}. The head, number and SHA-256 of the newest line, is in the anchored
manifest. The oldest lines are dropped in the course of time; an event says up to where, so nobody else can drop them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from manager_vm.errors import IntegrityError

NONE = bytes(32)  # what the first line has as the digest of the line before
BROKEN = "chain broken"  # a chain that begins anew behind the anchored head, because what led there is not what was
DROPPED = "dropped"  # {"first": the oldest line that is kept}
MAX_LINE = 1 << 17  # bytes; a thousand names of vTPMs in one event take about 64 kB


@dataclass(frozen=True, slots=True)
class Entry:
    """One line, parsed. ``digest``: of the line."""

    n: int
    prev: bytes
    time: float
    event: str
    fields: dict[str, Any]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Report:
    """What a whole chain is: lines ``first`` to ``count``. ``unanchored``: those behind the head that was asked for."""

    first: int
    count: int
    digest: bytes
    unanchored: int | None


def digest(line: bytes) -> bytes:
    """SHA-256 of a line without its end."""
    return hashlib.sha256(line).digest()


def encode(n: int, prev: bytes, time: float, event: str, fields: dict[str, Any]) -> bytes:
    """A line (without its end)."""
    head = {"n": n, "prev": prev.hex(), "time": round(time, 3), "event": event}
    return json.dumps({**head, **fields, **head}, separators=(",", ":"), ensure_ascii=True).encode()


def parse(line: bytes) -> Entry:
    """The entry of a line; IntegrityError for what is none."""
    try:
        value = json.loads(line if len(line) <= MAX_LINE else b"")
        n, prev, time, event = value.pop("n"), bytes.fromhex(value.pop("prev")), value.pop("time"), value.pop("event")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise IntegrityError("the audit log has a line that is no entry: it was changed, or cut off") from None
    good = isinstance(n, int) and n > 0 and isinstance(time, int | float) and isinstance(event, str)
    if not good or len(prev) != len(NONE):
        raise IntegrityError("the audit log has a line that is no entry: it was changed, or cut off")
    return Entry(n, prev, float(time), event, value, digest(line))


@dataclass(slots=True)
class Chain:
    """Takes lines in their order. ``first``, ``count``: numbers of the oldest and the newest one, 0 = none yet."""

    first: int = 0
    count: int = 0
    digest: bytes = NONE
    _may_begin: int = 1  # the newest number that the oldest line may have

    def add(self, line: bytes) -> Entry:
        """The entry of the next line; IntegrityError, with its number, if it does not follow."""
        entry = parse(line)
        if self.count and (entry.n, entry.prev) != (self.count + 1, self.digest):
            raise IntegrityError(
                f"entry {self.count + 1} of the audit log does not follow entry {self.count}: "
                "lines were changed, removed or reordered"
            )
        if not self.count:
            self.first = entry.n
            if entry.event == BROKEN:
                self._may_begin = entry.n
            elif entry.n == 1 and entry.prev != NONE:
                raise IntegrityError("the first entry of the audit log does not begin a chain: it was changed")
        if entry.event == DROPPED and isinstance(first := entry.fields.get("first"), int):
            self._may_begin = max(self._may_begin, first)
        self.count, self.digest = entry.n, entry.digest
        return entry

    def end(self) -> None:
        """IntegrityError if older lines are missing that nobody has dropped in order."""
        if self.first > self._may_begin:
            raise IntegrityError(f"the audit log begins with entry {self.first}: those before it were removed")


def verify(lines: Iterable[bytes], head: bytes | None = None) -> Report:
    """What ``lines`` (oldest first) prove; IntegrityError if they are no chain, or ``head`` (a digest) is not in it."""
    chain = Chain()
    anchored = 0 if head in (None, NONE) else None
    for line in lines:
        entry = chain.add(line)
        if entry.digest == head:
            anchored = entry.n
    chain.end()
    if anchored is None:
        raise IntegrityError(
            f"the anchored entry {(head or b'').hex()[:16]} is not in this audit log: it was cut, or is another one's"
        )
    unanchored = None if head is None else chain.count - max(anchored, chain.first - 1 if chain.count else 0)
    return Report(chain.first, chain.count, chain.digest, unanchored)
