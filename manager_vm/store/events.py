"""What a commit does that the audit log must say: pure, from the contents before and after.

So nothing important is changed without its entry, whoever changed it. ``serial`` is that of the commit; of two
events with one serial the later one holds, the commit of the earlier one failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from manager_vm import crypto
from manager_vm.protocol.lifecycle import State
from manager_vm.store.records import Contents, Identity, Snapshots, VtpmRecord

_MOVING = (State.GONE, State.ARRIVING)  # their events are those of the move
Event = tuple[str, dict[str, Any]]
_STATES = {State.FAILED: "failed", State.QUARANTINED: "quarantined"}


def between(old: Contents, new: Contents) -> list[Event]:
    """The events of the commit that makes ``new`` of ``old``."""
    found = [*_trust(old, new), *_vtpms(old, new), *_snapshots(old, new), *_moves(old, new), *_relocation(old, new)]
    return [(event, {**fields, "serial": new.serial}) for event, fields in found]


def _trust(old: Contents, new: Contents) -> Iterator[Event]:
    yield from _operators(old.operators, new.operators, {})
    if new.recovery != old.recovery:
        yield "recovery recipient", {"statement": crypto.digest(new.recovery.statement).hex(), "off": new.recovery.off}
    if new.identity is not None and new.identity != old.identity:
        yield from _identity(old.identity or Identity(b""), new.identity)
    if old.groups is new.groups:
        return
    for name, group in new.groups.items():
        before = old.groups.get(name)
        if before is None or before.statement != group.statement:
            yield "group added" if before is None else "group changed", {"group": name}
        yield from _operators(before.operators if before else {}, group.operators, {"group": name})
    for name in sorted(old.groups.keys() - new.groups.keys()):
        yield "group removed", {"group": name}


def _operators(old: dict[str, bytes], new: dict[str, bytes], where: dict[str, str]) -> Iterator[Event]:
    changed = sorted(key for key, data in new.items() if old.get(key) != data)
    gone = sorted(old.keys() - new.keys())
    if changed or gone:
        yield "operators changed", {**where, "keys": changed, "superseded": gone}


def _identity(old: Identity, new: Identity) -> Iterator[Event]:
    """Not which SK is whose: the log may be read by those who must not know."""
    if new.statement != old.statement:
        certified = sum(bool(key.certificate) for key in new.keys)
        yield "platform enrolled", {"statement": crypto.digest(new.statement).hex(), "keys": certified}


def _vtpms(old: Contents, new: Contents) -> Iterator[Event]:
    if old.vtpms is new.vtpms:
        return
    yield from _named("created", new, lambda record: record.uuid not in old.vtpms and record.state not in _MOVING)
    yield from _named("destroyed", old, lambda record: record.uuid not in new.vtpms and record.state not in _MOVING)
    for state, event in _STATES.items():
        reasons: dict[str, list[str]] = {}
        for record in _changed(old, new, "state"):
            if record.state is state:
                reasons.setdefault(record.reason, []).append(record.name)
        for reason, names in reasons.items():
            yield event, {"vtpms": names, "reason": reason}
    for record in _changed(old, new, "released"):
        yield "released", {"vtpm": record.name, "state": str(record.state), "mark": record.released}
    for record in _changed(old, new, "keep"):
        yield "snapshots", {"vtpm": record.name, "keep": record.keep}
    for record in _changed(old, new, "reverted"):
        yield "reverted", {"vtpm": record.name, "times": record.reverted, "boot": record.boot, "park": record.ticket}
    for record in _changed(old, new, "vm"):
        yield "bound", {"vtpm": record.name, "vm": record.vm}
    for record in _changed(old, new, "channel"):
        yield "attached" if record.channel else "detached", {"vtpm": record.name, "channel": record.channel}
    for record in _changed(old, new, "boot"):
        yield "boot", {"vtpm": record.name, "boot": record.boot}


def _snapshots(old: Contents, new: Contents) -> Iterator[Event]:
    """What is kept of a vTPM, and what may come back."""
    for uuid, found in new.snapshots.items():
        before, record = old.snapshots.get(uuid, Snapshots()), new.vtpms.get(uuid)
        if found is before or record is None:
            continue
        for each in found.kept:
            if each not in before.kept:
                yield "snapshot kept", {"vtpm": record.name, "snapshot": each.id}
        if found.permitted and found.permitted != before.permitted:
            yield "revert permitted", {"vtpm": record.name, "snapshot": found.permitted}
    for uuid, before in old.snapshots.items():
        left = {each.id for each in new.snapshots.get(uuid, Snapshots()).kept}
        gone = [each.id for each in before.kept if each.id not in left]
        if gone and uuid in new.vtpms:
            yield "snapshots dropped", {"vtpm": new.vtpms[uuid].name, "snapshots": gone}


def _moves(old: Contents, new: Contents) -> Iterator[Event]:
    for id_, move in new.moves.items():
        before = old.moves.get(id_)
        if before is not move and (before is None or before.state != move.state):
            said = {"vtpm": move.name, "move": id_, "state": move.state, "generation": move.generation}
            yield "move out" if move.out else "move in", {**said, "peer": move.peer, "cause": move.cause}


def _relocation(old: Contents, new: Contents) -> Iterator[Event]:
    """Of the manager itself, or of another one to here."""
    leaving, before = new.departure, old.departure
    if leaving is not None and (before is None or before.state != leaving.state):
        yield "manager moves", {"move": leaving.id, "state": str(leaving.state), "peer": leaving.peer}
    if new.relocations != old.relocations:
        yield "manager moved here", {"move": before.id if before else "", "relocations": new.relocations}
    elif leaving is None and before is not None:
        yield "manager stays", {"move": before.id, "peer": before.peer}
    if new.expected is not None and new.expected is not old.expected:
        yield "manager expected", {"move": new.expected.id, "manager": new.expected.manager, "peer": new.expected.peer}
    if new.expected is None and old.expected is not None:
        yield "manager not expected", {"move": old.expected.id}


def _named(event: str, contents: Contents, which: Callable[[VtpmRecord], bool]) -> Iterator[Event]:
    names = [record.name for record in contents.vtpms.values() if which(record)]
    if names:
        yield event, {"vtpms": names}


def _changed(old: Contents, new: Contents, attribute: str) -> Iterator[VtpmRecord]:
    """Records of ``new`` in which ``attribute`` is another one than before."""
    for uuid, record in new.vtpms.items():
        before = old.vtpms.get(uuid)
        if before is not record and before is not None and getattr(before, attribute) != getattr(record, attribute):
            yield record
