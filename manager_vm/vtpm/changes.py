"""What the registry's commits do to the manifest's contents: pure functions."""

from __future__ import annotations

from dataclasses import replace

from manager_vm.errors import BusyError, StateError, UnknownVtpmError
from manager_vm.keys import identity
from manager_vm.protocol.lifecycle import Event, State, after
from manager_vm.store import moves
from manager_vm.store.records import MAX_REASON, Contents, Snapshots, VtpmKeys, VtpmRecord
from manager_vm.vtpm import binding
from manager_vm.vtpm.steps import Result

_TAKEN_OVER = "the manager ended while it took it over; every command answers TPM_RC_FAILURE until the guest is reset"
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
        if result.snapshots is not None:
            contents = with_snapshots(contents, result.record.uuid, result.snapshots)
        if new and identity.free(contents):  # else the first use finds out, and says which verb makes more
            contents = identity.assign(contents, result.record.uuid)
    return contents


def with_snapshots(contents: Contents, uuid: str, found: Snapshots) -> Contents:
    """With these snapshots of a vTPM."""
    others = {key: value for key, value in contents.snapshots.items() if key != uuid}
    return replace(contents, snapshots=others if found == Snapshots() else {**others, uuid: found})


def wire(contents: Contents, uuid: str, channel: str, vm: str = "") -> Contents:
    """Another channel ("" = none), to this VM; BoundError if the vTPM belongs to another."""
    record = contents.vtpms.get(uuid)
    if record is None:
        raise UnknownVtpmError("the vTPM was destroyed meanwhile")
    if channel:
        binding.demand(record, vm)
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


def welcomed(contents: Contents, record: VtpmRecord, keys: VtpmKeys) -> Contents:
    """With a vTPM that comes from another manager, and an SK for it if one is free.

    StateError if it is here already, or was here a generation as far: two moves of it may have come at once.
    """
    if record.uuid in contents.vtpms or record.generation <= moves.newest(contents, record.uuid):
        raise StateError(f"vTPM {record.name!r} is here already, or was here and has come further since")
    contents = put(contents, record, keys)
    return identity.assign(contents, record.uuid) if identity.free(contents) else contents


_ARRIVALS = {State.OFF: Event.ARRIVED_OFF, State.PARKED: Event.ARRIVED_PARKED}


def arrived(record: VtpmRecord, *, serves: bool, waited: bool) -> VtpmRecord:
    """What a vTPM is that was arriving and has been given up by its source. ``serves``: the process that waited lives.

    ``waited``: it is of this start of the manager. If not, nobody can tell whether it has served before: the COMMIT
    that says so lies in a file, which whoever has the disk can take away. So it is an unclean death, and its last run
    counts.
    """
    before = State(record.before)
    new = replace(record, before="", reason="")
    if before is not State.RUNNING:
        return replace(new, state=after(record.name, record.state, _ARRIVALS[before]) or before)
    if serves:
        after(record.name, record.state, Event.ARRIVED)
        return replace(new, state=State.RUNNING)
    if not waited:
        after(record.name, record.state, Event.ARRIVED_DEAD)
        return replace(new, state=State.FAILED, reason=_TAKEN_OVER)
    after(record.name, record.state, Event.ARRIVED_PARKED)  # it died before it served: from the stored state
    return replace(new, state=State.PARKED, run="", resume=True)


def settled(contents: Contents, new: VtpmRecord) -> Contents:
    """With a vTPM that has arrived: nothing of it that is as old is ever taken again."""
    keys = contents.keys[new.uuid]
    contents = put(contents, new, keys if new.run else VtpmKeys(keys.blob))
    return moves.remember(contents, new.uuid, new.generation)
