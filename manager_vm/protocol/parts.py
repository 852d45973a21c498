"""The state of a vTPM in parts that fit a record, and back (MIGRATION.md, section 2, STATE)."""

from __future__ import annotations

from collections.abc import Iterator

from manager_vm.errors import RemoteProtocolError
from manager_vm.wire.migration import MAX_PART, MAX_STATE, StatePart


def split(data: bytes) -> Iterator[StatePart]:
    """The parts, in their order; at least one."""
    for offset in range(0, max(len(data), 1), MAX_PART):
        yield StatePart(len(data), offset, data[offset : offset + MAX_PART])


class Assembly:
    """Puts parts together. Nothing is kept for what was not sent yet."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._total: int | None = None

    def add(self, part: StatePart) -> bytes | None:
        """The whole with its last part, None before; RemoteProtocolError for a part that does not fit."""
        total = part.total if self._total is None else self._total
        room = total - len(self._data)
        if part.total != total or total > MAX_STATE or part.offset != len(self._data) or not 0 < len(part.data) <= room:
            raise RemoteProtocolError("the other end sent a part of a state that does not fit to those before")
        self._total = total
        self._data += part.data
        return bytes(self._data) if len(self._data) == total else None
