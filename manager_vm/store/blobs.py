"""State blobs at rest: one sealed file per park of a vTPM, named in its record (FORMAT.md, "State blob")."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from manager_vm import crypto
from manager_vm.crypto import Key
from manager_vm.errors import IntegrityError
from manager_vm.protocol.channel_server import SessionState
from manager_vm.store import atomic

MAX_SIZE = 1 << 20  # bytes; measured: 6 to 31 kB


@dataclass(frozen=True, slots=True)
class ParkedState:
    """All of a stopped vTPM: swtpm's state blobs (b"" = absent) and its channel's session."""

    permanent: bytes
    volatile: bytes = b""
    savestate: bytes = b""
    session: SessionState = field(default_factory=SessionState)

    def __repr__(self) -> str:
        return f"ParkedState({len(self.permanent)}+{len(self.volatile)}+{len(self.savestate)} bytes)"


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """Where a blob is, what it must hash to, and its key (a new one for each blob)."""

    file: str
    digest: bytes
    key: Key


def store(directory: Path, vtpm: str, state: ParkedState) -> StoredBlob:
    """Seal ``state`` of vTPM ``vtpm`` (its uuid) into a new file; durable on return, but not yet named by a record."""
    key, name = Key.random(), f"{uuid.uuid4()}.blob"
    plain = msgpack.packb(
        {
            "permanent": state.permanent,
            "volatile": state.volatile,
            "savestate": state.savestate,
            "session": pack_session(state.session),
        }
    )
    data = crypto.seal(key, plain, _associated(vtpm, name))
    atomic.write_file(directory / name, data)
    return StoredBlob(name, crypto.digest(data), key)


def load(directory: Path, vtpm: str, blob: StoredBlob) -> ParkedState:
    """Read a blob back; IntegrityError if it is missing, older, changed, or another vTPM's."""
    data = atomic.read_file(directory / blob.file, MAX_SIZE)
    if data is None:
        raise IntegrityError(
            f"the state blob {blob.file} is missing from the state disk; restore the newest copy of the disk"
        )
    if crypto.digest(data) != blob.digest:
        raise IntegrityError(f"the state blob {blob.file} is not the one recorded: it is older, or was changed")
    plain = crypto.unseal(blob.key, data, _associated(vtpm, blob.file), f"the state blob {blob.file}")
    fields: dict[str, Any] = msgpack.unpackb(plain)
    return ParkedState(fields["permanent"], fields["volatile"], fields["savestate"], SessionState(*fields["session"]))


def pack_session(session: SessionState) -> list[Any]:
    """As a list of ``SessionState``'s fields."""
    return [session.session, session.last_seq, session.locality, session.command, session.response, session.shut_down]


def _associated(vtpm: str, name: str) -> bytes:
    return f"vtpm-manager state blob\0{vtpm}\0{name}".encode()
