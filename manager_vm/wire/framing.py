"""The one frame format of all links: guests' channels, the admin link, the host link (CHANNEL.md, "Frame").

A frame is a 24-byte little-endian header, an optional vTPM name, and a body. The CRC is there for byte
streams that can lose or truncate a message (a virtio-serial port after a restart of either side), not
for security: whoever owns the link can compute it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from manager_vm.errors import LocalProtocolError, RemoteProtocolError

MAGIC = 0x5456  # b"VT" on the wire
HEADER = struct.Struct("<HBBIQHHI")
_START = struct.Struct("<HBBIQHH")
HEADER_SIZE = HEADER.size  # 24 bytes
_CRC_OFFSET = 20
MAX_NAME = 255
_MAGIC_BYTES = struct.pack("<H", MAGIC)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. ``type`` and ``arg`` are u8, ``seq`` is u64; their meaning is the message type's."""

    type: int
    arg: int = 0
    seq: int = 0
    body: bytes = b""
    name: str = ""


def encode(frame: Frame) -> bytes:
    """The frame's bytes: header, name (UTF-8), body."""
    name = frame.name.encode() if frame.name else b""
    if len(name) > MAX_NAME:
        raise LocalProtocolError(f"a vTPM name of {len(name)} bytes does not fit a frame (at most {MAX_NAME})")
    head = _START.pack(MAGIC, frame.type, frame.arg, len(frame.body), frame.seq, len(name), 0)
    rest = name + frame.body if name else frame.body
    return head + zlib.crc32(rest, zlib.crc32(head)).to_bytes(4, "little") + rest


class Decoder:
    """Cuts a byte stream into frames.

    ``resync=False`` (rings, UNIX sockets): any malformed byte raises RemoteProtocolError; the caller closes
    the connection. ``resync=True`` (virtio-serial): malformed bytes are skipped up to the next valid frame
    and counted in ``skipped``. Lengths are checked before anything is buffered for them; ``by_type``: a smaller limit
    for each type there is, others have no body.
    """

    def __init__(self, max_body: int, *, resync: bool = False, by_type: Mapping[int, int] | None = None) -> None:
        self._max_body = max_body
        self._by_type = by_type
        self._resync = resync
        self._buffer = b""
        self._at = 0  # where the next frame begins, within ``feed``
        self.skipped = 0

    def reset(self) -> None:
        """Forget a half-received frame: the other end is a new one."""
        self._buffer = b""

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)

    def expire(self) -> list[Frame]:
        """The rest of a half-received frame is not coming (its sender writes frames whole): skip its start.

        Returns the frames that were hidden behind it. Only meaningful with ``resync=True``.
        """
        if self._buffer:
            self._skip()
            self._drop()
        return self.feed(b"")

    def feed(self, data: bytes) -> list[Frame]:
        """All frames completed by ``data``."""
        self._buffer = self._buffer + data if self._buffer else data
        frames: list[Frame] = []
        try:
            while (frame := self._next()) is not None:
                frames.append(frame)
        finally:
            self._drop()
        return frames

    def _next(self) -> Frame | None:
        while len(self._buffer) - self._at >= HEADER_SIZE:
            try:
                return self._parse(self._buffer, self._at)
            except RemoteProtocolError:
                if not self._resync:
                    raise
                self._skip()
        return None

    def _parse(self, buffer: bytes, start: int) -> Frame | None:
        magic, kind, arg, length, seq, name_length, reserved, crc = HEADER.unpack_from(buffer, start)
        if magic != MAGIC or reserved != 0:
            raise RemoteProtocolError("the other end sent bytes that are no frame header; reconnect it")
        limit = self._max_body if self._by_type is None else self._by_type.get(kind, 0)
        if length > limit or name_length > MAX_NAME:
            raise _too_long(length, name_length, limit)
        body = start + HEADER_SIZE
        end = body + name_length + length
        if len(buffer) < end:
            return None
        rest = buffer[body:end]
        if zlib.crc32(rest, zlib.crc32(buffer[start : start + _CRC_OFFSET])) != crc:
            raise RemoteProtocolError("a frame's CRC is wrong: bytes were lost or garbled on the way; reconnect")
        name = _name(rest[:name_length]) if name_length else ""
        self._at = end
        return Frame(kind, arg, seq, rest[name_length:] if name_length else rest, name)

    def _skip(self) -> None:
        """Go on at the next possible frame start (at least one byte further)."""
        start = self._buffer.find(_MAGIC_BYTES, self._at + 1)
        if start < 0:
            start = max(self._at + 1, len(self._buffer) - (self._buffer[-1:] == _MAGIC_BYTES[:1]))
        self.skipped += start - self._at
        self._at = start

    def _drop(self) -> None:
        """Forget what was read; once for each piece, however many frames are in it."""
        if self._at:
            self._buffer, self._at = self._buffer[self._at :], 0


def _too_long(length: int, name_length: int, most: int) -> RemoteProtocolError:
    what, size, limit = ("body", length, most) if length > most else ("name", name_length, MAX_NAME)
    return RemoteProtocolError(f"the other end announced a {what} of {size} bytes; at most {limit} are allowed")


def _name(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError("a frame's vTPM name is not UTF-8; the sender is broken") from None
