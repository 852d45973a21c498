"""What the registry's commits do to the manifest's contents: pure functions."""

from __future__ import annotations

from dataclasses import replace

from manager_vm.errors import BusyError, UnknownVtpmError
from manager_vm.keys import identity
from manager_vm.protocol.lifecycle import State
from manager_vm.store.records import MAX_REASON, Contents, VtpmKeys, VtpmRecord
from manager_vm.vtpm.steps import Result

_UNPARKED = "the manager ended without parking it; every command answers TPM_RC_FAILURE until the guest is reset"


def put(contents: Contents, record: VtpmRecord, keys: VtpmKeys | None = None) -> Contents:
    """``record`` with the wiring of now: ``wire`` does not wait for the vTPM's lock. Its group must be there."""
    contents.group(record.group)
    now = contents.vtpms.get(record.uuid)
    return contents.with_vtpm(record if now is None else replace(record, channel=now.channel), keys)


def put_all(contents: Contents, results: list[Result]) -> Contents:
    """What several steps made."""
    for result in results:
        new = result.record.uuid not in contents.vtpms
        contents = put(contents, result.record, result.keys)
        if new and identity.free(contents):  # else the first use finds out, and says which verb makes more
            contents = identity.assign(contents, result.record.uuid)
    return contents


def wire(contents: Contents, uuid: str, channel: str) -> Contents:
    """Another channel ("" = none)."""
    record = contents.vtpms.get(uuid)
    if record is None:
        raise UnknownVtpmError("the vTPM was destroyed meanwhile")
    return contents if record.channel == channel else contents.with_vtpm(replace(record, channel=channel))


def destroy(contents: Contents, uuid: str) -> Contents:
    """Without this vTPM, its keys and its SK; BusyError while it is wired."""
    record = contents.vtpms.get(uuid)
    if record is None:
        raise UnknownVtpmError("the vTPM was destroyed meanwhile")
    if record.channel:
        raise BusyError(f"vTPM {record.name!r} is attached to {record.channel}; 'detach {record.name}' first")
    return identity.release(contents.without_vtpm(uuid), uuid)


def quarantined(record: VtpmRecord, reason: str) -> VtpmRecord:
    """``record`` in quarantine; what it was before is remembered."""
    before = record.before if record.state is State.QUARANTINED else str(record.state)
    return replace(record, state=State.QUARANTINED, reason=reason[:MAX_REASON], resume=False, before=before)


def fail_running(contents: Contents) -> Contents:
    """At a start: what was running ended without being parked."""
    for record in contents.vtpms.values():
        if record.state is State.RUNNING:
            contents = contents.with_vtpm(replace(record, state=State.FAILED, reason=_UNPARKED))
    return contents
