"""The records of the tunnel between two hosts: what of a manager's VM travels there is sealed in them, in order.

A stream is records, then one end mark. A record is a 4-byte big-endian length and that many sealed bytes: at most
256 KiB of data and a tag. The end mark is a record of no data. The number of a record is its nonce and is not
sent; its kind (data or end) is authenticated with it. So a record that was changed, moved, repeated or left out
fails, and a stream that was cut has no end mark.
"""

from __future__ import annotations

import struct
from enum import StrEnum

from manager_vm import crypto
from manager_vm.crypto import TAG_SIZE, Cipher, Key
from manager_vm.errors import IntegrityError, LocalProtocolError

RECORD = 256 * 1024  # bytes of data in one record
_LENGTH = struct.Struct(">I")
_DATA, _END = b"vtpm-manager tunnel 1\0data", b"vtpm-manager tunnel 1\0end"


class Suite(StrEnum):
    """How records are sealed. Both ends are told; nothing on the wire can change it."""

    AES = "aes-256-gcm"
    CHACHA = "chacha20-poly1305"
    NONE = "none"  # for measurements only: the same framing, NO protection; whoever reaches the port can do anything


class _Direction:
    """One direction of one stream: its key and the number of the next record."""

    def __init__(self, key: Key, label: str, suite: Suite, context: bytes) -> None:
        self._label = label
        self._key = crypto.derive(key, f"vtpm-manager tunnel 1 {suite} {label}", context)
        self._cipher = None if suite is Suite.NONE else Cipher(suite.value)
        self._overhead = 0 if suite is Suite.NONE else TAG_SIZE
        self._number = 0


class Sealer(_Direction):
    """The sending end. ``label`` and ``context`` make its key another than any other stream's and direction's.

    One key, label and context seal one stream only: a second one would have the same nonces.
    """

    def __init__(self, key: Key, label: str, suite: Suite, context: bytes = b"") -> None:
        super().__init__(key, label, suite, context)
        self._finished = False

    def seal(self, data: bytes | bytearray | memoryview) -> bytes:
        """The records of ``data``; none of no data."""
        parts: list[bytes | memoryview] = []
        with memoryview(data) as view:
            for start in range(0, len(view), RECORD):
                self._add(parts, view[start : start + RECORD], _DATA)
            return b"".join(parts)

    def finish(self) -> bytes:
        """The end mark. Nothing can be sealed after it."""
        parts: list[bytes | memoryview] = []
        self._add(parts, b"", _END)
        self._finished = True
        return b"".join(parts)

    def _add(self, parts: list[bytes | memoryview], data: bytes | memoryview, kind: bytes) -> None:
        if self._finished:
            raise LocalProtocolError(f"{self._label}: something is sealed after the end of the stream")
        number, self._number = self._number, self._number + 1
        sealed = data if self._cipher is None else crypto.seal_numbered(self._key, number, data, kind, self._cipher)
        parts += (_LENGTH.pack(len(sealed)), sealed)


class Opener(_Direction):
    """The receiving end. ``finished``: the end mark came; without it the stream is not whole."""

    def __init__(self, key: Key, label: str, suite: Suite, context: bytes = b"") -> None:
        super().__init__(key, label, suite, context)
        self._buffer = bytearray()  # less than one record between two calls
        self._broken = False
        self.finished = False

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """The plaintexts of the records that ``data`` completes.

        IntegrityError for anything that is not the next record, now and ever after.
        """
        if self._broken:
            raise self._bad("comes after one that failed")
        self._broken = True
        self._buffer += data
        plain: list[bytes] = []
        with memoryview(self._buffer) as view:
            at = 0
            while end := self._end(view, at):
                self._open(view[at + _LENGTH.size : end], plain)
                at = end
        del self._buffer[:at]
        self._broken = False
        return plain

    def _end(self, view: memoryview, at: int) -> int:
        """Where the record at ``at`` ends; 0 while it is not complete. A bad length is not waited for."""
        if self.finished and len(view) > at:
            raise self._bad("comes after the end of the stream")
        if len(view) - at < _LENGTH.size:
            return 0
        (length,) = _LENGTH.unpack_from(view, at)
        if not self._overhead <= length <= RECORD + self._overhead:
            raise self._bad(f"has {length} bytes, which none has: it was changed")
        end: int = at + _LENGTH.size + length
        return end if end <= len(view) else 0

    def _open(self, sealed: memoryview, plain: list[bytes]) -> None:
        is_end = len(sealed) == self._overhead
        data = self._unseal(sealed, _END if is_end else _DATA)
        self._number += 1
        if is_end:
            self.finished = True
        else:
            plain.append(data)

    def _unseal(self, sealed: memoryview, kind: bytes) -> bytes:
        if self._cipher is None:
            return bytes(sealed)
        what = f"{self._label}: record {self._number}"
        return crypto.unseal_numbered(self._key, self._number, sealed, kind, what, self._cipher)

    def _bad(self, why: str) -> IntegrityError:
        return IntegrityError(f"{self._label}: record {self._number} {why}")
