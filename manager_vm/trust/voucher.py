"""Signed words of a hand-over (MIGRATION.md, section 2, HANDOVER): who has the vTPM, by the key of this very move."""

from __future__ import annotations

from dataclasses import replace

from manager_vm.errors import EvidenceError
from manager_vm.trust.signing import SigningKey, VerifyKey
from manager_vm.wire import migration
from manager_vm.wire.migration import DIGEST_SIZE, Handover, Kind

_UNSEEN = frozenset({Kind.RELEASED, Kind.ABORTED})  # said also by a side that never saw the state
NO_STATE = bytes(DIGEST_SIZE)


def sign(message: Handover, key: SigningKey) -> Handover:
    """The same with its signature."""
    return replace(message, signature=key.sign(migration.signed_bytes(message)))


def verify(message: Handover, expected: Handover, point: bytes) -> None:
    """EvidenceError unless the holder of ``point``'s key says just what was expected; who gives up may know none."""
    states = {expected.state, NO_STATE} if message.kind in _UNSEEN else {expected.state}
    if message.state not in states or replace(message, state=b"", signature=b"") != replace(expected, state=b""):
        raise EvidenceError(f"this {message.kind.name} is about another move, vTPM, state or generation")
    what = f"this {message.kind.name}"
    VerifyKey.from_point(point).verify(message.signature, migration.signed_bytes(message), what)
