"""What both ends of a move agree on: transcripts, bindings, keys, encrypted records (MIGRATION.md, 2 and 6)."""

from __future__ import annotations

import struct
from dataclasses import replace

from manager_vm import crypto
from manager_vm.crypto import TAG_SIZE, Key
from manager_vm.errors import IntegrityError, MigrationError
from manager_vm.wire import migration
from manager_vm.wire.migration import MAX_RECORD, Accept, Cause, Inner, Offer, Record

_ACCEPT, _CONFIRM = b"vtpm-manager migration accept 1\0", b"vtpm-manager migration confirm 1\0"
_RECORD = b"vtpm-manager record 1\0"
_LABELS = ("vtpm-manager source 1", "vtpm-manager destination 1")


def first_transcript(offer: Offer, accept: Accept) -> bytes:
    """Transcript 1: all but the evidence of ACCEPT."""
    parts = (migration.body(offer), migration.body(replace(accept, evidence=b"")))
    return _transcript(1, b"".join(struct.pack(">I", len(part)) + part for part in parts))


def second_transcript(first: bytes, evidence: bytes) -> bytes:
    """Transcript 2: with the destination's evidence."""
    return _transcript(2, first + crypto.digest(evidence))


def third_transcript(second: bytes, evidence: bytes) -> bytes:
    """Transcript 3: with the source's evidence."""
    return _transcript(3, second + crypto.digest(evidence))


def destination_binding(first: bytes) -> bytes:
    """What the destination's evidence is over."""
    return crypto.digest(_ACCEPT + first)


def source_binding(second: bytes) -> bytes:
    """What the source's evidence is over."""
    return crypto.digest(_CONFIRM + second)


class Session:
    """Encrypted records, each way in their order. ``shared``: ECDH of the shares; ``transcript``: the third."""

    def __init__(self, transcript: bytes, shared: Key, *, at_source: bool) -> None:
        self.transcript = transcript
        self._keys = [crypto.derive(shared, label, transcript) for label in _LABELS]
        self._own = 0 if at_source else 1
        self._sent = self._received = 0

    def seal(self, message: Inner) -> Record:
        """The next record."""
        number, self._sent = self._sent, self._sent + 1
        associated = self._associated(self._own, number)
        return Record(number, crypto.seal_numbered(self._keys[self._own], number, _plain(message), associated))

    def open(self, record: Record) -> Inner:
        """The message in the next record; MigrationError (tampered, replayed) for any other."""
        if record.seq < self._received:
            raise MigrationError(f"record {record.seq} came a second time", Cause.REPLAYED.word)
        if record.seq > self._received or not TAG_SIZE < len(record.sealed) <= MAX_RECORD:
            raise MigrationError("a record is missing, or of a size that none has", Cause.TAMPERED.word)
        other = 1 - self._own
        associated = self._associated(other, record.seq)
        try:
            plain = crypto.unseal_numbered(self._keys[other], record.seq, record.sealed, associated, "a record")
        except IntegrityError as error:
            raise MigrationError(str(error), Cause.TAMPERED.word) from None
        self._received += 1
        return migration.parse_inner(plain)

    def _associated(self, sender: int, number: int) -> bytes:
        return _RECORD + bytes([sender]) + self.transcript + struct.pack(">Q", number)


def _plain(message: Inner) -> bytes:
    return migration.pack_inner(message)


def _transcript(number: int, rest: bytes) -> bytes:
    return crypto.digest(f"vtpm-manager transcript {number}\0".encode() + rest)
