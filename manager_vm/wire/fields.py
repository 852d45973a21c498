"""Bodies that are a row of fields, as byte tables give them: integers big-endian, byte strings behind their length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manager_vm.errors import LocalProtocolError, RemoteProtocolError


@dataclass(frozen=True, slots=True)
class Number:
    """An unsigned integer of ``size`` bytes."""

    size: int

    def pack(self, value: int) -> bytes:
        """Its bytes."""
        return value.to_bytes(self.size, "big")

    def take(self, data: bytes, at: int) -> tuple[int, int]:
        """(value, where the next field begins)."""
        return int.from_bytes(_slice(data, at, self.size), "big"), at + self.size


@dataclass(frozen=True, slots=True)
class Fixed:
    """Exactly ``size`` bytes."""

    size: int

    def pack(self, value: bytes) -> bytes:
        """Its bytes."""
        if len(value) != self.size:
            raise LocalProtocolError(f"a field of {len(value)} bytes where {self.size} belong")
        return value

    def take(self, data: bytes, at: int) -> tuple[bytes, int]:
        """(value, where the next field begins)."""
        return _slice(data, at, self.size), at + self.size


@dataclass(frozen=True, slots=True)
class Sized:
    """A length in ``prefix`` bytes, then so many bytes, at most ``limit``."""

    prefix: int
    limit: int

    def pack(self, value: bytes) -> bytes:
        """Its bytes."""
        if len(value) > self.limit:
            raise LocalProtocolError(f"a field of {len(value)} bytes; at most {self.limit} fit")
        return len(value).to_bytes(self.prefix, "big") + value

    def take(self, data: bytes, at: int) -> tuple[bytes, int]:
        """(value, where the next field begins)."""
        length = int.from_bytes(_slice(data, at, self.prefix), "big")
        if length > self.limit:
            raise RemoteProtocolError(f"the other end sent a field of {length} bytes; at most {self.limit} are allowed")
        begin = at + self.prefix
        return _slice(data, begin, length), begin + length


@dataclass(frozen=True, slots=True)
class Text:
    """UTF-8 as ``Sized``."""

    raw: Sized

    def pack(self, value: str) -> bytes:
        """Its bytes."""
        return self.raw.pack(value.encode())

    def take(self, data: bytes, at: int) -> tuple[str, int]:
        """(value, where the next field begins)."""
        data, after = self.raw.take(data, at)
        try:
            return data.decode(), after
        except UnicodeDecodeError:
            raise RemoteProtocolError("the other end sent text that is not UTF-8") from None


Field = Number | Fixed | Sized | Text
Layout = Mapping[str, Field]


def pack(layout: Layout, message: object) -> bytes:
    """The body of ``message``, whose attributes are the layout's fields."""
    packers: Mapping[str, Any] = layout
    return b"".join(field.pack(getattr(message, name)) for name, field in packers.items())


def parse(layout: Layout, data: bytes) -> dict[str, Any]:
    """The fields of a body; RemoteProtocolError unless it has exactly these."""
    found: dict[str, Any] = {}
    at = 0
    for name, field in layout.items():
        found[name], at = field.take(data, at)
    if at != len(data):
        raise RemoteProtocolError(f"the other end sent {len(data) - at} bytes behind the last field of a message")
    return found


def _slice(data: bytes, at: int, size: int) -> bytes:
    if len(data) - at < size:
        raise RemoteProtocolError("the other end sent a message that ends within a field")
    return data[at : at + size]
