"""All that moves of a vTPM, as one msgpack map (MIGRATION.md, section 5): what the destination needs to be it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack

from manager_vm.errors import IntegrityError
from manager_vm.protocol.channel_server import SessionState
from manager_vm.protocol.lifecycle import State
from manager_vm.store.blobs import ParkedState, pack_session
from manager_vm.store.marks import Recovered
from manager_vm.store.records import MAX_REASON, Contents, VtpmRecord

VERSION = 3  # 1 had no VM, 2 no snapshots
_CARRIED = (
    "uuid",
    "name",
    "boot",
    "group",
    "ek_names",
    "certificates",
    "released",
    "recovered",
    "vm",
    "keep",
    "reverted",
)
_MOVABLE = {State.OFF, State.PARKED, State.RUNNING}


@dataclass(frozen=True, slots=True)
class FinalState:
    """``status``: what it is at the source and becomes at the destination. ``issuer``: of its EK certificates, DER.

    ``vm``: UUID of the VM that it belongs to, "" = any. ``keep``, ``reverted``: of snapshots, which stay behind.
    """

    uuid: str
    name: str
    status: State
    boot: int
    group: str
    ek_names: dict[str, bytes]
    certificates: dict[str, bytes]
    issuer: bytes
    released: str
    recovered: tuple[Recovered, ...]
    state: ParkedState
    vm: str = ""
    keep: int = 0
    reverted: int = 0


def of(contents: Contents, record: VtpmRecord, state: ParkedState) -> FinalState:
    """What moves of the vTPM with this record."""
    return FinalState(status=record.state, issuer=contents.issuer(record), state=state, **carried(record))


def carried(found: VtpmRecord | FinalState) -> dict[str, Any]:
    """What a record and a final state have alike."""
    return {name: getattr(found, name) for name in _CARRIED}


def pack(final: FinalState) -> bytes:
    """The bytes that move."""
    marks = [[each.old, each.order, each.time] for each in final.recovered]
    record = {
        "uuid": final.uuid,
        "name": final.name,
        "status": str(final.status),
        "boot": final.boot,
        "group": final.group,
        "ek_names": final.ek_names,
        "certificates": final.certificates,
        "issuer": final.issuer,
        "released": final.released,
        "recovered": marks,
        "vm": final.vm,
        "keep": final.keep,
        "reverted": final.reverted,
    }
    state = {name: getattr(final.state, name) for name in ("permanent", "volatile", "savestate")}
    said = {"version": VERSION, "record": record, **state, "session": pack_session(final.state.session)}
    return bytes(msgpack.packb(said))


def unpack(data: bytes) -> FinalState:
    """The inverse; IntegrityError for anything else. The bytes are authentic: then it is of another version."""
    try:
        said: dict[str, Any] = msgpack.unpackb(data)
        if said["version"] != VERSION:
            raise ValueError(f"version {said['version']}")
        return _final(said["record"], said)
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise IntegrityError(f"the state that came is of another format ({error})") from None


def _final(record: dict[str, Any], said: dict[str, Any]) -> FinalState:
    blobs = [_bytes(said[name]) for name in ("permanent", "volatile", "savestate")]
    status = State(record["status"])
    if status not in _MOVABLE or not blobs[0]:
        raise ValueError("it is no state that can move")
    return FinalState(
        uuid=_text(record["uuid"]),
        name=_text(record["name"]),
        status=status,
        boot=_number(record["boot"]),
        group=_text(record["group"]),
        ek_names=_table(record["ek_names"]),
        certificates=_table(record["certificates"]),
        issuer=_bytes(record["issuer"]),
        released=_text(record["released"])[:MAX_REASON],
        recovered=tuple(_mark(*each) for each in record["recovered"]),
        state=ParkedState(blobs[0], blobs[1], blobs[2], _session(*said["session"])),
        vm=_text(record["vm"]),
        keep=_number(record["keep"]),
        reverted=_number(record["reverted"]),
    )


def _mark(old: Any, order: Any, time: Any) -> Recovered:
    return Recovered(_bytes(old), _bytes(order), _number(time))


def _session(session: Any, last: Any, locality: Any, command: Any, response: Any, down: Any) -> SessionState:
    answer = None if response is None else _bytes(response)
    if not isinstance(down, bool):
        raise TypeError("a truth value is missing")
    return SessionState(_bytes(session), _number(last), _number(locality), _bytes(command), answer, down)


def _table(value: Any) -> dict[str, bytes]:
    return {_text(key): _bytes(each) for key, each in dict(value).items()}


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("bytes are missing")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text is missing")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise TypeError("a number is missing")
    return value
