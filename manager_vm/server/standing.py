"""Standing orders at a manager: which VMs may take their vTPMs along, and where (``trust/standing``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from manager_vm.errors import ConfigError, EvidenceError, MigrationError, StateError
from manager_vm.server import groups
from manager_vm.store.records import Contents
from manager_vm.trust import envelope, standing
from manager_vm.trust.order import Order
from manager_vm.trust.standing import Standing
from manager_vm.wire.migration import Cause

MOST = 2000


def add(contents: Contents, statement: bytes) -> Contents:
    """With this one, which replaces an older one of the same VM. EvidenceError for one that is not newer."""
    new, known = _verified(contents, statement), current_of(contents, standing.peek_vm(statement))
    if known is not None and contents.standing[new.vm] == statement:
        return contents
    if known is not None and new.serial <= known.serial:
        raise EvidenceError(f"this standing order of VM {new.vm} has serial {new.serial}, {known.serial} is known")
    if known is None and len(contents.standing) >= MOST:
        raise StateError(f"a manager keeps {MOST} standing orders, and has them")
    return replace(contents, standing={**contents.standing, new.vm: statement})


def current_of(contents: Contents, vm: str) -> Standing | None:
    """The newest that is known of this VM; None if there is none that is good here."""
    statement = contents.standing.get(vm)
    return _verified(contents, statement) if statement is not None else None


def table(contents: Contents) -> list[dict[str, Any]]:
    """All, by VM."""
    found = [_verified(contents, contents.standing[vm]) for vm in sorted(contents.standing)]
    return [
        {"vm": each.vm, "group": each.group, "platforms": list(each.platforms), "serial": each.serial} for each in found
    ]


def demand_allowed(contents: Contents, vm: str, source: str, destination: str) -> bytes:
    """The statement by which this VM's vTPM may go from one platform to the other; MigrationError (order) without."""
    found = current_of(contents, vm)
    if found is None:
        raise MigrationError(f"there is no standing order of VM {vm} here ('standing add')", Cause.ORDER.word)
    for each in (source, destination):
        if each not in found.platforms:
            told = f"does not name platform {each!r}" if found.platforms else "was revoked"
            raise MigrationError(f"the standing order of VM {vm} {told}", Cause.ORDER.word)
    return contents.standing[vm]


def as_order(contents: Contents, statement: bytes, said: Mapping[str, str], here: str) -> Order:
    """The order that a standing one is for the move that its source describes (``said``: features of its OFFER).

    MigrationError (order) if it is not good, or a newer one is known here that does not allow it.
    """
    try:
        found = _verified(contents, statement)
        newest = current_of(contents, found.vm) or found
        newest = newest if newest.serial > found.serial else found
        order = Order(
            id=said["park"],
            vtpm=said["vtpm"],
            generation=int(said["generation"]),
            group=found.group,
            source=said["from"],
            destination=here,
            issued=found.issued,
            digest=found.digest,
            vm=found.vm,
        )
    except (EvidenceError, ConfigError, KeyError, ValueError) as error:
        raise MigrationError(f"the standing order is not good here: {error}", Cause.ORDER.word) from None
    if not {order.source, here} <= set(newest.platforms) or order.source == here:
        raise MigrationError(f"no standing order leads VM {found.vm} from {order.source!r} to here", Cause.ORDER.word)
    return order


def digest_of(statement: bytes) -> bytes:
    """SHA-256 of its payload, for receipts."""
    return envelope.digest(standing.STANDING, statement)


def _verified(contents: Contents, statement: bytes) -> Standing:
    return standing.verify(statement, lambda group: groups.authority(contents, group))
