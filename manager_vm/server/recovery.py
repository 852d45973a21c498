"""Recovery as changes of the manifest: to whom keys are wrapped, and what a manager is after one. Pure functions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from manager_vm.errors import EvidenceError, StateError
from manager_vm.protocol.lifecycle import State
from manager_vm.store.marks import Recovered, Recovery, RevokedPlatform
from manager_vm.store.records import Contents, VtpmRecord
from manager_vm.trust import policy, recovery
from manager_vm.trust.recovery import Order, Recipient
from manager_vm.trust.signing import VerifyKey

_LOST = "recovered from a disk that may be older; every command answers TPM_RC_FAILURE until the guest is reset"
_RESUMABLE = (State.RUNNING, State.PARKED)


def recipient(contents: Contents) -> Recipient | None:
    """Whom the authority has named last, also if it is switched off."""
    if not contents.recovery.statement:
        return None
    return recovery.verify_recipient(contents.recovery.statement, VerifyKey.from_der(contents.authority))


def set_recipient(contents: Contents, statement: bytes) -> Contents:
    """With keys wrapped to whom the authority names; EvidenceError if it is not its newest word."""
    new, known = recovery.verify_recipient(statement, VerifyKey.from_der(contents.authority)), recipient(contents)
    if known is not None and (new.serial < known.serial or (new.serial == known.serial and new.key.id != known.key.id)):
        raise EvidenceError(
            f"this recipient has serial {new.serial}, one with {known.serial} is known: the authority has named another"
        )
    return replace(contents, recovery=Recovery(statement))


def switch_off(contents: Contents) -> Contents:
    """With keys wrapped to nobody. The authority's newest word stays known: nothing older is ever taken again."""
    if not contents.recovery.statement or contents.recovery.off:
        raise StateError("no recovery recipient is set, so there is nothing to switch off")
    return replace(contents, recovery=replace(contents.recovery, off=True))


def told(contents: Contents) -> dict[str, Any]:
    """For ``recovery show``: who can recover, what was recovered, which platforms are revoked since."""
    known = recipient(contents)
    return {
        "recipient": known.key.id if known is not None else "",
        "serial": known.serial if known is not None else 0,
        "active": known is not None and not contents.recovery.off,
        "recovered": [marked(each) for each in contents.recovered],
        "revoked_platforms": [{"srk": each.srk.hex(), "ak": each.ak.hex()} for each in contents.revoked_platforms],
    }


def marked(mark: Recovered) -> dict[str, Any]:
    """A mark, for people."""
    return {"from": mark.old.hex(), "order": mark.order.hex(), "time": mark.time}


def recovered(old: Contents, order: Order, now: int) -> Contents:
    """What the manager is on its new platform.

    Every vTPM is a generation further and marked. A park is single use and may be used up already, so no PCRs and
    sessions come back: only a reset leads on. The old platform's keys that attest are gone; it is revoked.
    """
    mark = Recovered(order.old, order.id, now)
    records = {uuid: _recovered(record, mark) for uuid, record in old.vtpms.items()}
    lost = RevokedPlatform(order.old, policy.name(old.identity.ak) if old.identity is not None else b"")
    return replace(
        old,
        serial=old.serial + 1,
        owner=order.new,
        vtpms=records,
        identity=None,
        recovered=(*old.recovered, mark),
        revoked_platforms=(*old.revoked_platforms, lost),
    )


def _recovered(record: VtpmRecord, mark: Recovered) -> VtpmRecord:
    new = replace(record, generation=record.generation + 1, resume=False, recovered=(*record.recovered, mark))
    if record.state in _RESUMABLE:
        return replace(new, state=State.FAILED, reason=_LOST)
    if record.state is State.QUARANTINED and record.before in _RESUMABLE:
        return replace(new, before=str(State.FAILED))
    return new
