"""A receipt of a move (MIGRATION.md, section 11): both sides' messages and signed words, verified step by step.

Offline. Trusted are the authority's key, and that of the vTPM's group where it has one of its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from manager_vm.errors import EvidenceError, ProtocolError
from manager_vm.trust import bundle, linked, order, peer, transcript, voucher
from manager_vm.trust.order import Order
from manager_vm.trust.peer import Rules
from manager_vm.trust.signing import VerifyKey
from manager_vm.wire import framing, migration
from manager_vm.wire.migration import MAX_BODY, Accept, Confirm, Handover, Kind, Offer, Outer

_AT_DESTINATION = frozenset({Kind.PREPARED, Kind.COMMITTED, Kind.RELEASED})  # whose words these are
_MOST_WORDS = 2
MAX_SIZE = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class _Parts:
    offer: Offer
    accept: Accept
    confirm: Confirm
    words: tuple[Handover, ...]


def pack(messages: Sequence[Outer]) -> bytes:
    """OFFER, ACCEPT, CONFIRM and the words of the hand-over: their frames, one behind the other."""
    return b"".join(framing.encode(migration.to_frame(each)) for each in messages)


def verify(data: bytes, authority: VerifyKey, group_authority: Callable[[str], VerifyKey]) -> Iterator[str]:
    """What is proven, a line each; EvidenceError, after the lines before it, for the first thing that is not.

    ``group_authority``: who orders moves of the vTPMs of a group, by its name.
    """
    parts = _parse(data)
    ordered = order.verify(parts.offer.order, group_authority)
    yield (
        f"order {ordered.id}: the authority of group {ordered.group!r} lets vTPM {ordered.vtpm}, generation "
        f"{ordered.generation}, move from platform {ordered.source!r} to {ordered.destination!r}"
    )
    one = transcript.first(parts.offer, parts.accept)
    two = transcript.second(one, parts.accept.evidence)
    whole = transcript.third(two, parts.confirm.evidence)
    yield from _platform(parts.accept.evidence, transcript.destination_binding(one), ordered.destination, authority)
    yield from _platform(parts.confirm.evidence, transcript.source_binding(two), ordered.source, authority)
    yield f"transcript {whole.hex()}: the keys of this move are those that both hardware TPMs have quoted"
    yield from _words(parts, ordered, whole)


def _parse(data: bytes) -> _Parts:
    if len(data) > MAX_SIZE:
        raise EvidenceError(f"a receipt has at most {MAX_SIZE} bytes")
    try:
        decoder = framing.Decoder(max(MAX_BODY.values()), by_type=MAX_BODY)
        messages = [migration.from_frame(frame) for frame in decoder.feed(data)]
    except ProtocolError as error:
        raise EvidenceError(f"this is no receipt of a move: {error}") from None
    match messages:
        case [Offer() as offer, Accept() as accept, Confirm() as confirm, *words] if not decoder.pending:
            spoken = tuple(each for each in words if isinstance(each, Handover))
            same = {offer.move, accept.move, confirm.move, *(each.move for each in spoken)}
            if len(spoken) == len(words) <= _MOST_WORDS and len(same) == 1:
                return _Parts(offer, accept, confirm, spoken)
    raise EvidenceError("this is no receipt of a move: its parts are not those of one move")


def _platform(evidence: bytes, binding: bytes, name: str, authority: VerifyKey) -> Iterator[str]:
    rules = Rules(authority, revoked_image=lambda number: False, revoked_platform=lambda ak: False)
    found = peer.verify(evidence, binding, name, rules)
    for line in linked.host_steps(bundle.parse_host(evidence), binding, authority):
        yield f"platform {found.platform.name!r}: {line}"


def _words(parts: _Parts, ordered: Order, whole: bytes) -> Iterator[str]:
    if not parts.words:
        yield "no word of the hand-over: neither side has said that it came to it"
    state = next((each.state for each in parts.words if each.state != voucher.NO_STATE), voucher.NO_STATE)
    vtpm = uuid.UUID(ordered.vtpm).bytes
    for each in parts.words:
        expected = Handover(each.kind, parts.offer.move, whole, state, vtpm, ordered.generation + 1)
        theirs = each.kind in _AT_DESTINATION
        voucher.verify(each, expected, (parts.accept if theirs else parts.offer).move_key)
        who = ordered.destination if theirs else ordered.source
        yield f"{who!r} has signed {each.kind.name}: {_MEANING[each.kind]} (state {each.state.hex()})"


_MEANING = {
    Kind.PREPARED: "it has the whole state, and does not run it",
    Kind.COMMIT: "it has given the vTPM up for ever",
    Kind.COMMITTED: "it has the vTPM",
    Kind.RELEASED: "it does not have the vTPM, and never will by this move",
    Kind.ABORTED: "it has given this move up, and keeps the vTPM",
}
