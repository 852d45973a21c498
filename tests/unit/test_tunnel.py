"""protocol/tunnel: a stream of sealed records arrives whole and in order, or is refused."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager_vm.crypto import TAG_SIZE, Key
from manager_vm.errors import IntegrityError, LocalProtocolError
from manager_vm.protocol.tunnel import RECORD, Opener, Sealer, Suite

KEY = Key(bytes(range(32)))
PROTECTED = [Suite.AES, Suite.CHACHA]
MESSAGES = [b"first", b"second!", b"third.."]


def sealed(suite: Suite = Suite.AES, label: str = "ram", context: bytes = b"") -> list[bytes]:
    """The records of MESSAGES and the end mark."""
    sealer = Sealer(KEY, label, suite, context)
    return [*(sealer.seal(message) for message in MESSAGES), sealer.finish()]


def opener(suite: Suite = Suite.AES, key: Key = KEY, label: str = "ram", context: bytes = b"") -> Opener:
    return Opener(key, label, suite, context)


def refuses(opener: Opener, data: bytes) -> None:
    """``data`` is refused, and so is whatever follows."""
    with pytest.raises(IntegrityError):
        opener.feed(data)
    with pytest.raises(IntegrityError):
        opener.feed(b"")


@pytest.mark.parametrize("suite", Suite)
def test_a_stream_arrives_whole(suite: Suite) -> None:
    receiver = opener(suite)
    assert receiver.feed(b"".join(sealed(suite))) == MESSAGES
    assert receiver.finished


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(Suite),
    st.lists(st.binary(max_size=400), max_size=8),
    st.lists(st.integers(1, 200), min_size=1, max_size=20),
)
def test_a_stream_arrives_whole_in_whatever_pieces_it_travels(
    suite: Suite, messages: list[bytes], sizes: list[int]
) -> None:
    sealer, receiver = Sealer(KEY, "ram", suite), opener(suite)
    data = b"".join([*(sealer.seal(message) for message in messages), sealer.finish()])
    plain, at, turn = b"", 0, 0
    while at < len(data):
        assert not receiver.finished
        size = sizes[turn % len(sizes)]
        plain += b"".join(receiver.feed(memoryview(data)[at : at + size]))
        at, turn = at + size, turn + 1
    assert plain == b"".join(messages)
    assert receiver.finished


@pytest.mark.parametrize("suite", Suite)
@pytest.mark.parametrize("size", [0, 1, RECORD - 1, RECORD, RECORD + 1, 3 * RECORD + 5])
def test_long_data_is_cut_into_records_of_a_quarter_mebibyte(suite: Suite, size: int) -> None:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    sealer, receiver = Sealer(KEY, "ram", suite), opener(suite)
    pieces = receiver.feed(sealer.seal(bytearray(data)))
    assert b"".join(pieces) == data
    assert [len(piece) for piece in pieces[:-1]] == [RECORD] * (len(pieces) - 1)
    assert len(pieces) == -(-size // RECORD)
    assert not receiver.finished
    assert receiver.feed(sealer.finish()) == [] and receiver.finished


def test_a_record_is_a_length_in_clear_and_what_is_sealed() -> None:
    record = sealed()[0]
    assert struct.unpack(">I", record[:4]) == (len(MESSAGES[0]) + TAG_SIZE,) == (len(record) - 4,)
    assert MESSAGES[0] not in record


@pytest.mark.parametrize("suite", PROTECTED)
def test_no_byte_of_a_stream_can_be_changed(suite: Suite) -> None:
    whole = b"".join(sealed(suite))
    for at in range(len(whole)):
        for bit in (0, 7):
            changed = bytearray(whole)
            changed[at] ^= 1 << bit
            receiver, plain = opener(suite), b""
            with suppress(IntegrityError):  # none if a length grew: the stream ends within a record
                for byte in changed:
                    plain += b"".join(receiver.feed(bytes([byte])))
            assert b"".join(MESSAGES).startswith(plain)
            assert not receiver.finished


@pytest.mark.parametrize("suite", PROTECTED)
@pytest.mark.parametrize(
    "order", [(1, 0, 2, 3), (0, 0, 1, 2, 3), (0, 2, 3), (1, 2, 3), (0, 1, 3), (3,), (0, 1, 2, 2), (0, 1, 2, 3, 3)]
)
def test_records_that_are_moved_repeated_or_left_out_are_refused(suite: Suite, order: tuple[int, ...]) -> None:
    records = sealed(suite)
    refuses(opener(suite), b"".join(records[number] for number in order))


@pytest.mark.parametrize("suite", Suite)
def test_a_stream_that_was_cut_anywhere_is_not_finished(suite: Suite) -> None:
    whole = b"".join(sealed(suite))
    for size in range(len(whole)):
        receiver = opener(suite)
        receiver.feed(whole[:size])
        assert not receiver.finished


@pytest.mark.parametrize("suite", Suite)
def test_nothing_can_follow_the_end(suite: Suite) -> None:
    receiver = opener(suite)
    receiver.feed(b"".join(sealed(suite)))
    assert receiver.feed(b"") == []
    refuses(receiver, b"\0")


@pytest.mark.parametrize("suite", PROTECTED)
def test_a_stream_opens_with_its_own_key_label_context_and_suite_alone(suite: Suite) -> None:
    records, other = b"".join(sealed(suite)), PROTECTED[1 - PROTECTED.index(suite)]
    refuses(opener(suite, key=Key(bytes(32))), records)
    refuses(opener(suite, label="disk"), records)
    refuses(opener(suite, context=b"nonce"), records)
    refuses(opener(other), records)
    refuses(opener(suite), b"".join(sealed(Suite.NONE)))


@pytest.mark.parametrize("suite", Suite)
def test_the_longest_record_is_waited_for_and_a_longer_one_is_refused_at_its_length(suite: Suite) -> None:
    longest = RECORD + (0 if suite is Suite.NONE else TAG_SIZE)
    assert opener(suite).feed(longest.to_bytes(4, "big")) == []
    refuses(opener(suite), (longest + 1).to_bytes(4, "big"))
    refuses(opener(suite), b"\xff\xff\xff\xff")


@pytest.mark.parametrize("suite", PROTECTED)
def test_a_record_too_short_for_a_tag_is_refused_at_its_length(suite: Suite) -> None:
    refuses(opener(suite), (TAG_SIZE - 1).to_bytes(4, "big"))


def test_an_empty_record_is_an_end_mark_and_no_data_makes_no_record() -> None:
    sealer, receiver = Sealer(KEY, "ram", Suite.AES), opener()
    assert sealer.seal(b"") == b""
    assert receiver.feed(sealer.finish()) == [] and receiver.finished


def test_nothing_is_sealed_after_the_end() -> None:
    sealer = Sealer(KEY, "ram", Suite.AES)
    sealer.finish()
    with pytest.raises(LocalProtocolError):
        sealer.seal(b"more")
    with pytest.raises(LocalProtocolError):
        sealer.finish()
