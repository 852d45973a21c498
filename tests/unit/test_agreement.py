"""protocol.agreement, session, parts; trust.voucher: a whole move between both automata, and everybody in between."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest

from manager_vm.crypto import Key
from manager_vm.errors import EvidenceError, MigrationError, RemoteProtocolError
from manager_vm.protocol import agreement, parts
from manager_vm.protocol.agreement import Agreed, Conversation
from manager_vm.trust import voucher
from manager_vm.trust.signing import SigningKey, VerifyKey
from manager_vm.wire import framing, migration
from manager_vm.wire.migration import (
    MAX_BODY,
    MAX_PART,
    Accept,
    Cause,
    Confirm,
    Handover,
    Kind,
    Offer,
    Outer,
    Ready,
    Record,
    Refuse,
)

MOVE, VTPM, STATE = bytes(range(16)), bytes(16), os.urandom(2 * MAX_PART + 7)
ORDER = b"an order"


class Wrong(Exception):
    """A verification that must not have been reached."""


@dataclass
class Side:
    """One platform: its evidence is its name and what it is over, which nobody else can say (``said`` is the TPM)."""

    name: str
    other: str
    said: set[bytes]
    share: SigningKey = field(default_factory=SigningKey.create)
    key: SigningKey = field(default_factory=SigningKey.create)
    quotes: int = 0

    def evidence(self, binding: bytes) -> bytes:
        self.quotes += 1
        made = self.name.encode() + b"\0" + binding
        self.said.add(made)
        return made

    def verify(self, evidence: bytes, binding: bytes) -> None:
        if evidence not in self.said or evidence != self.other.encode() + b"\0" + binding:
            raise MigrationError("this is not the platform in the order, or not in this move", Cause.EVIDENCE.word)

    def agree(self, share: bytes) -> Key:
        try:
            return self.share.agree(VerifyKey.from_point(share))
        except EvidenceError as error:
            raise MigrationError(str(error), Cause.TAMPERED.word) from None

    def admit(self, offer: Offer) -> Accept:
        if offer.order != ORDER:
            raise MigrationError("this order is not signed", Cause.ORDER.word)
        points = self.share.public.uncompressed, bytes(32), self.key.public.uncompressed
        return Accept(1, offer.move, *points, "level=1", b"")


def offer_of(side: Side, order: bytes = ORDER) -> Offer:
    share, key = side.share.public.uncompressed, side.key.public.uncompressed
    return Offer(1, 1, MOVE, order, share, bytes(32), key, "level=1\nname=web", "127.0.0.1:1")


class Pair:
    """A source and a destination with a wire between them; ``between`` sees, and may change, each frame's bytes."""

    def __init__(self, between: Callable[[int, bytes], bytes] = lambda number, data: data) -> None:
        self.said: set[bytes] = set()
        self.source, self.destination = Side("a", "b", self.said), Side("b", "a", self.said)
        self._between = between
        self.carried = 0

    def carry(self, message: Outer) -> Outer:
        data = self._between(self.carried, framing.encode(migration.to_frame(message)))
        self.carried += 1
        decoder = framing.Decoder(max(MAX_BODY.values()))
        frames = decoder.feed(data)
        if len(frames) != 1:
            raise RemoteProtocolError("the rest of a frame never came")
        return migration.from_frame(frames[0])

    def agree(self) -> tuple[Agreed, Agreed]:
        out = agreement.offer(self.source, offer_of(self.source))
        offered = self.carry(next(out))
        assert_is(offered, Offer)
        into = agreement.accept(self.destination, offered)  # type: ignore[arg-type]
        ours = finish(out, self.carry(next(into)))
        return ours, finish(into, self.carry(ours.confirm))

    def whole(self) -> bytes:
        """A whole move; the state as it has come."""
        ours, theirs = self.agree()
        assert_is(ours.session.open(as_record(self.carry(theirs.session.seal(Ready())))), Ready)
        assembly, data = parts.Assembly(), None
        for part in parts.split(STATE):
            data = assembly.add(theirs_open(ours, theirs, self, part))
        assert data is not None
        for kind, by, to, sender in self._words(ours, theirs):
            word = voucher.sign(self.word(kind, ours.session.transcript), by.key)
            heard = to.session.open(as_record(self.carry(sender.session.seal(word))))
            assert_is(heard, Handover)
            expected = self.word(kind, to.session.transcript)
            point = (theirs.offer if by is self.source else ours.accept).move_key
            voucher.verify(heard, expected, point)  # type: ignore[arg-type]
        return data

    def _words(self, ours: Agreed, theirs: Agreed) -> Iterator[tuple[Kind, Side, Agreed, Agreed]]:
        yield Kind.PREPARED, self.destination, ours, theirs
        yield Kind.COMMIT, self.source, theirs, ours
        yield Kind.COMMITTED, self.destination, ours, theirs

    @staticmethod
    def word(kind: Kind, transcript: bytes) -> Handover:
        return Handover(kind, MOVE, transcript, bytes(32), VTPM, 2)


def theirs_open(ours: Agreed, theirs: Agreed, pair: Pair, part: migration.StatePart) -> migration.StatePart:
    found = theirs.session.open(as_record(pair.carry(ours.session.seal(part))))
    assert_is(found, migration.StatePart)
    return found  # type: ignore[return-value]


def as_record(message: Outer) -> Record:
    if not isinstance(message, Record):
        raise RemoteProtocolError(f"{type(message).__name__} in clear")
    return message


def assert_is(message: object, kind: type) -> None:
    if not isinstance(message, kind):
        raise RemoteProtocolError(f"{type(message).__name__} where {kind.__name__} was due")


def finish(conversation: Conversation, message: Outer) -> Agreed:
    try:
        conversation.send(message)
    except StopIteration as end:
        agreed: Agreed = end.value
        return agreed
    raise Wrong("the conversation goes on")


def test_both_sides_agree_and_the_state_comes_whole() -> None:
    pair = Pair()
    ours, theirs = pair.agree()
    assert ours.session.transcript == theirs.session.transcript
    assert Pair().whole() == STATE


def test_no_two_moves_have_the_same_transcript() -> None:
    assert Pair().agree()[0].session.transcript != Pair().agree()[0].session.transcript


def frame_sizes() -> list[int]:
    sizes: list[int] = []

    def measure(number: int, data: bytes) -> bytes:
        sizes.append(len(data))
        return data

    Pair(measure).whole()
    return sizes


def positions(number: int, size: int) -> Iterator[int]:
    """Every byte of a short frame; of a part of the state its head, its tail, and some between."""
    if size < 2048:
        yield from range(size)
    else:
        yield from (*range(64), *range(64, size - 32, 997), *range(size - 32, size))


CLEAN = {Cause.TAMPERED.word, Cause.EVIDENCE.word, Cause.ORDER.word, Cause.VERSION.word, Cause.REPLAYED.word}


def test_one_flipped_byte_anywhere_ends_the_move_with_a_named_cause_and_nothing_is_taken() -> None:
    sizes = frame_sizes()
    assert len(sizes) == 3 + 1 + 3 + 3
    for number, size in enumerate(sizes):
        for at in positions(number, size):
            for forged_crc in (False, True):
                pair = Pair(changer(number, at, forged_crc))
                with pytest.raises((MigrationError, RemoteProtocolError, EvidenceError)) as failed:
                    pair.whole()
                if isinstance(failed.value, MigrationError):
                    assert failed.value.cause in CLEAN, (number, at, failed.value)


def changer(number: int, at: int, forged_crc: bool) -> Callable[[int, bytes], bytes]:
    return lambda carried, data: flipped(data, at, forged_crc) if carried == number else data


def flipped(data: bytes, at: int, forged_crc: bool) -> bytes:
    """One byte changed; with the CRC made to fit, as an attacker would."""
    changed = data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]
    if not forged_crc or not (at in (2, 3) or 8 <= at < 16 or at >= framing.HEADER_SIZE):
        return changed
    kind, arg, seq = changed[2], changed[3], int.from_bytes(changed[8:16], "little")
    return framing.encode(framing.Frame(kind, arg, seq, changed[framing.HEADER_SIZE :]))


def test_nothing_is_quoted_before_the_order_was_verified() -> None:
    pair = Pair()
    into = agreement.accept(pair.destination, offer_of(pair.source, order=b"another"))
    with pytest.raises(MigrationError, match="not signed") as refused:
        next(into)
    assert refused.value.cause == "order" and pair.destination.quotes == 0


def test_a_version_that_is_not_spoken_is_refused() -> None:
    pair = Pair()
    for lowest, highest in ((2, 3), (0, 0)):
        offered = replace(offer_of(pair.source), lowest=lowest, highest=highest)
        with pytest.raises(MigrationError, match="we speak 1") as refused:
            next(agreement.accept(pair.destination, offered))
        assert refused.value.cause == "version"


def test_somebody_in_between_who_puts_in_his_own_share_or_key_fits_no_quote() -> None:
    thief = SigningKey.create().public.uncompressed
    for name in ("share", "move_key", "nonce", "features"):
        value: bytes | str = "level=9" if name == "features" else (bytes([1] * 32) if name == "nonce" else thief)
        pair = Pair()
        out = agreement.offer(pair.source, offer_of(pair.source))
        into = agreement.accept(pair.destination, replace(next(out), **{name: value}))  # type: ignore[arg-type]
        accept = next(into)
        with pytest.raises(MigrationError) as refused:
            finish(out, accept)
        assert refused.value.cause == "evidence"
        again = Pair()
        out = agreement.offer(again.source, offer_of(again.source))
        accept = next(agreement.accept(again.destination, next(out)))  # type: ignore[arg-type]
        with pytest.raises(MigrationError) as refused:
            finish(out, replace(accept, **{name: value}))  # type: ignore[arg-type]
        assert refused.value.cause == "evidence"


def test_evidence_of_another_platform_or_of_another_move_is_refused() -> None:
    """Relay, bait-and-switch: platform c, approved and honest, quotes for its own move."""
    said: set[bytes] = set()
    source, bait = Side("a", "b", said), Side("c", "a", said)
    out = agreement.offer(source, offer_of(source))
    accept = next(agreement.accept(bait, next(out)))  # type: ignore[arg-type]
    with pytest.raises(MigrationError) as refused:
        finish(out, accept)
    assert refused.value.cause == "evidence"
    first, second = Pair(), Pair()
    second.said |= first.said
    old = agreement.accept(first.destination, offer_of(first.source))
    stale = next(old)
    second.said |= first.said
    out = agreement.offer(second.source, offer_of(second.source))
    next(out)
    with pytest.raises(MigrationError) as refused:
        finish(out, stale)
    assert refused.value.cause == "evidence"


def test_the_evidence_of_one_side_is_never_taken_for_that_of_the_other() -> None:
    """Reflection: the destination's own evidence comes back as the source's."""
    said: set[bytes] = set()
    destination = Side("b", "b", said)  # an order from b to b, if there were one
    into = agreement.accept(destination, offer_of(Side("b", "b", said)))
    accept = next(into)
    assert isinstance(accept, Accept)
    with pytest.raises(MigrationError) as refused:
        finish(into, Confirm(MOVE, accept.evidence))
    assert refused.value.cause == "evidence"


@pytest.mark.parametrize("message", [Confirm(MOVE, b""), Record(0, b"x" * 40), Confirm(bytes(16), b"")])
def test_a_message_out_of_turn_ends_it(message: Outer) -> None:
    pair = Pair()
    out = agreement.offer(pair.source, offer_of(pair.source))
    next(out)
    with pytest.raises(RemoteProtocolError):
        finish(out, message)


def test_what_the_other_side_refuses_has_its_cause_and_harmless_words() -> None:
    pair = Pair()
    out = agreement.offer(pair.source, offer_of(pair.source))
    next(out)
    with pytest.raises(MigrationError, match=r"no room\?\[31m") as refused:
        finish(out, Refuse(MOVE, Cause.POLICY, "no room\x1b[31m"))
    assert refused.value.cause == "policy"


def test_records_are_taken_once_and_in_their_order_alone() -> None:
    ours, theirs = Pair().agree()
    first, second = ours.session.seal(Ready()), ours.session.seal(Ready())
    with pytest.raises(MigrationError) as missing:
        theirs.session.open(second)
    assert missing.value.cause == "tampered"
    theirs.session.open(first)
    with pytest.raises(MigrationError) as twice:
        theirs.session.open(first)
    assert twice.value.cause == "replayed"
    with pytest.raises(MigrationError) as reflected:
        ours.session.open(replace(second, seq=0))
    assert reflected.value.cause == "tampered"


@pytest.mark.parametrize("kind", Kind)
def test_a_word_is_believed_about_its_own_move_and_state_by_its_own_key_alone(kind: Kind) -> None:
    key, word = SigningKey.create(), Handover(kind, MOVE, bytes(32), b"\1" * 32, VTPM, 2)
    point = key.public.uncompressed
    voucher.verify(voucher.sign(word, key), word, point)
    other = Kind.COMMIT if kind is not Kind.COMMIT else Kind.ABORTED
    wrongs = [
        replace(word, kind=other),
        replace(word, move=bytes([9] * 16)),
        replace(word, transcript=b"\2" * 32),
        replace(word, state=b"\2" * 32),
        replace(word, vtpm=bytes([9] * 16)),
        replace(word, generation=3),
    ]
    for wrong in wrongs:
        with pytest.raises(EvidenceError):
            voucher.verify(voucher.sign(wrong, key), word, point)
    with pytest.raises(EvidenceError):
        voucher.verify(voucher.sign(word, SigningKey.create()), word, point)
    unseen = voucher.sign(replace(word, state=bytes(32)), key)
    if kind in (Kind.ABORTED, Kind.RELEASED):
        voucher.verify(unseen, word, point)
    else:
        with pytest.raises(EvidenceError):
            voucher.verify(unseen, word, point)


@pytest.mark.parametrize(
    ("total", "offset", "size"),
    [(10, 1, 9), (10, 0, 11), (10, 0, 0), ((1 << 20) + 1, 0, 10), (0, 0, 0)],
)
def test_a_part_that_does_not_fit_is_refused(total: int, offset: int, size: int) -> None:
    with pytest.raises(RemoteProtocolError):
        parts.Assembly().add(migration.StatePart(total, offset, bytes(size)))
