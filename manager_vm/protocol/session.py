"""The encrypted records of a move (MIGRATION.md, sections 2 and 6)."""

from __future__ import annotations

import struct

from manager_vm import crypto
from manager_vm.crypto import TAG_SIZE, Key
from manager_vm.errors import IntegrityError, MigrationError
from manager_vm.wire import migration
from manager_vm.wire.migration import MAX_RECORD, Cause, Inner, Record

_RECORD = b"vtpm-manager record 1\0"
_LABELS = ("vtpm-manager source 1", "vtpm-manager destination 1")
_EXPORTER = "vtpm-manager exporter 1"


class Session:
    """Encrypted records, each way in their order. ``shared``: ECDH of the shares; ``transcript``: the third."""

    def __init__(self, transcript: bytes, shared: Key, *, at_source: bool) -> None:
        self.transcript = transcript
        self._exporter = crypto.derive(shared, _EXPORTER, transcript)
        self._keys = [crypto.derive(shared, label, transcript) for label in _LABELS]
        self.at_source = at_source
        self._own = 0 if at_source else 1
        self._sent = self._received = 0

    def export(self, label: str) -> Key:
        """A key for something else that only these two sides know, in this conversation alone."""
        return crypto.derive(self._exporter, label, self.transcript)

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
