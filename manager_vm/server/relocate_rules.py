"""Which manager may move where, as its order, its receiver and its own state say (RELOCATION.md, section 2)."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from manager_vm.errors import EvidenceError, HardwareTpmError, MigrationError, StateError
from manager_vm.keys import keyslot
from manager_vm.keys import place as places
from manager_vm.keys.hwtpm import nv
from manager_vm.keys.keyslot import Keyslot, Slot
from manager_vm.keys.place import Footing
from manager_vm.protocol.relocation import Leaving
from manager_vm.store import atomic
from manager_vm.store.records import Contents
from manager_vm.store.relocation import MOST_WORDS, Departure, Expected, Place
from manager_vm.trust import policy
from manager_vm.trust import relocation as trust
from manager_vm.trust.platform import Platform
from manager_vm.trust.relocation import Order
from manager_vm.trust.signing import VerifyKey
from manager_vm.wire.migration import Cause

log = logging.getLogger(__name__)

_INDICES = (policy.ANCHOR_INDEX, policy.OTHER_ANCHOR_INDEX)


def verified(contents: Contents, ordered: bytes) -> Order:
    """The order, by the authority of this manager; MigrationError (order) otherwise."""
    try:
        return trust.verify(ordered, VerifyKey.from_der(contents.authority))
    except EvidenceError as error:
        raise MigrationError(f"the order is not good here: {error}", Cause.ORDER.word) from None


def demand_ordered(contents: Contents, ordered: bytes, here: str) -> Order:
    """The order, which is for this manager at the platform called ``here``, as often as it has moved."""
    order = verified(at_rest(contents), ordered)
    if (order.manager, order.relocations, order.source) != (contents.manager, contents.relocations, here):
        raise MigrationError(
            f"the order is for manager {order.manager[:16]}... of platform {order.source!r}, moved {order.relocations} "
            f"times; this is {contents.manager[:16]}... of {here!r}, moved {contents.relocations} times",
            Cause.ORDER.word,
        )
    return order


def at_rest(contents: Contents) -> Contents:
    """StateError while a vTPM moves."""
    moving = [move.name for move in contents.moves.values() if not move.ended]
    if moving:
        raise StateError(f"vTPM {moving[0]!r} moves; wait for that, or 'abort' it: see 'migrations'")
    return contents


def demand_empty(contents: Contents, order: Order) -> None:
    """MigrationError (policy) unless this manager can be a receiver for the one in the order."""
    expected = contents.expected
    if order.manager == contents.manager or contents.departure is not None:
        raise MigrationError("this is the manager that moves, or one that moves itself", Cause.POLICY.word)
    if contents.vtpms or any(not move.ended for move in contents.moves.values()):
        raise MigrationError(
            f"this platform has a manager with {len(contents.vtpms)} vTPMs, and a hardware TPM serves one manager: use "
            "'evacuate', or another platform",
            Cause.POLICY.word,
        )
    if expected is not None and expected.manager != order.manager:
        raise MigrationError(f"a place is kept for manager {expected.manager[:16]}... here", Cause.POLICY.word)
    if len(contents.released) >= MOST_WORDS:
        raise MigrationError(
            f"{MOST_WORDS} moves to this platform came to nothing, and a word of each is kept: use another platform",
            Cause.POLICY.word,
        )


def expecting(contents: Contents, order: Order, expected: Expected) -> Contents:
    """The receiver that keeps a place."""
    demand_empty(contents, order)
    return replace(contents, expected=expected)


def demand_fits(contents: Contents, own: Footing, slot: Slot, place: Place, peer: Platform) -> None:
    """MigrationError (tampered) unless the place is at the platform that was attested, and its keyslot fits to both."""
    same = place.ak == peer.ak.area and slot.srk == place.srk != contents.owner and place.index in _INDICES
    if not same or slot.authority.der != contents.authority or not places.opens(own.root, slot, place):
        raise MigrationError("the place is not at the platform that was attested", Cause.TAMPERED.word)


def left(contents: Contents, departure: Departure, place: Place, *, unwired: bool) -> Contents:
    """Owned by the destination. ``unwired``: no channel is any vTPM's, wherever the manager goes on."""
    vtpms = at_rest(contents).vtpms
    if unwired:
        vtpms = {uuid: replace(record, channel="") for uuid, record in vtpms.items()}
    return replace(contents, vtpms=vtpms, owner=place.srk, departure=departure)


def settle_in(state: Path, own: Footing, srk: bytes) -> None:
    """Behind the claim: the keyslot of this platform is ours, the receiver's anchor is nobody's. Can be repeated."""
    coming = Keyslot(state / keyslot.NEXT, own.tpm)
    if not coming.exists() or coming.read().srk != srk:
        return
    try:
        nv.remove(own.tpm, own.auths, policy.other_anchor(own.auths.index))
    except HardwareTpmError as error:
        log.warning("the receiver's anchor is still there, and means nothing: %s", error)
    with atomic.store_errors("take the keyslot of this platform"):
        os.rename(state / keyslot.NEXT, state / keyslot.FILE)
        atomic.sync_directory(state)
    own.slot.is_at(state / keyslot.FILE)


def told(contents: Contents, *, settled: bool = False) -> dict[str, Any]:
    """For people and programs."""
    departure, expected = contents.departure, contents.expected
    found: dict[str, Any] = {
        "relocations": contents.relocations,
        "state": "settled" if settled else "",
        "move": "",
        "peer": "",
    }
    if departure is not None and not settled:
        found |= {"state": str(departure.state), "move": departure.id, "peer": departure.peer, "since": departure.since}
    if expected is not None:
        found |= {"state": "expecting", "move": expected.id, "peer": expected.peer, "since": expected.since}
    return found


def demand_serving(contents: Contents, verb: str, *, changes: bool) -> None:
    """StateError for what cannot be done while the manager itself is elsewhere, or keeps a place."""
    departure, expected = contents.departure, contents.expected
    if changes and departure is not None and departure.state is Leaving.LEFT:
        raise StateError(f"{verb!r} is not served: this manager has left for platform {departure.peer}")
    if changes and expected is not None:
        raise StateError(f"{verb!r} is not served: this manager keeps its place for one from {expected.peer}")
