"""A manifest's bytes: an open part, and a key table that opens with the store key alone (FORMAT.md, "Manifest").

store key = HKDF(root key, erase secret). Where the authority has named a recovery recipient, the open part holds both
keys wrapped to him, anew in each commit.
"""

from __future__ import annotations

from dataclasses import dataclass

from manager_vm import crypto
from manager_vm.crypto import Key
from manager_vm.errors import IntegrityError
from manager_vm.store import packing
from manager_vm.store.records import Contents
from manager_vm.trust import recovery
from manager_vm.trust.signing import VerifyKey

MAGIC = b"VTPMMAN1"
_LENGTH_SIZE = 4  # bytes, big-endian, length of the open part
_START = len(MAGIC) + _LENGTH_SIZE
_LABEL = "vtpm-manager store key"


@dataclass(frozen=True, slots=True)
class Outside:
    """What a manifest says to everybody. Nobody has verified it before the key table is open.

    ``owner``: Name of an SRK. ``statement``, ``stanza``: the recovery recipient's, b"" if there is none.
    """

    serial: int
    manager: str
    owner: bytes
    statement: bytes
    stanza: bytes


def store_key(root: Key, secret: Key) -> Key:
    """The key of the key table that was written with this erase secret."""
    return crypto.derive(root, _LABEL, secret.reveal())


def seal(contents: Contents, root: Key, secret: Key) -> bytes:
    """The file. EvidenceError if the recovery recipient in it is not the authority's."""
    store = store_key(root, secret)
    opened = packing.pack_open(contents, _stanza(contents, root, store))
    head = MAGIC + len(opened).to_bytes(_LENGTH_SIZE, "big") + opened
    return head + crypto.seal(store, packing.pack_secret(contents), head)


def open_with(data: bytes, store: Key) -> Contents:
    """Verified contents; IntegrityError if one bit differs, or the store key is another file's."""
    end = _end(data)
    secret_part = crypto.unseal(store, data[end:], data[:end], "the manifest's key table")
    return packing.unpack(data[_START:end], secret_part)


def look(data: bytes) -> Outside:
    """What can be read without a key; IntegrityError for something of another format."""
    return Outside(*packing.unpack_outside(data[_START : _end(data)]))


def _stanza(contents: Contents, root: Key, store: Key) -> bytes:
    if contents.recovery.off or not contents.recovery.statement:
        return b""
    recipient = recovery.verify_recipient(contents.recovery.statement, VerifyKey.from_der(contents.authority))
    return recovery.wrap_keys(recipient, root, store, contents.manager)


def _end(data: bytes) -> int:
    """Where the open part ends."""
    if data[: len(MAGIC)] != MAGIC or len(data) < _START:
        raise IntegrityError("the manifest is of another format; run the version that wrote it")
    return _START + int.from_bytes(data[len(MAGIC) : _START], "big")
