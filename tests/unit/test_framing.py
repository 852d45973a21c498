"""wire/framing: the frame format byte by byte, and what the decoder does about everything else."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager_vm.errors import LocalProtocolError, RemoteProtocolError
from manager_vm.wire import framing
from manager_vm.wire.framing import Decoder, Frame, encode

LIMIT = 4096

# magic type arg | length | seq | name length, reserved | crc | name, body
VECTORS = [
    (Frame(8), "5654 08 00 00000000 0000000000000000 0000 0000 a779bbfe"),
    (
        Frame(6, 0, 0x0102030405060708),
        "5654 06 00 00000000 0807060504030201 0000 0000 87a1224a",
    ),
    (
        Frame(3, 2, 7, bytes.fromhex("80010000000c000001440000")),
        "5654 03 02 0c000000 0700000000000000 0000 0000 dfa588f3 80010000000c000001440000",
    ),
    (
        Frame(32, 0, 1, b"", "web-1"),
        "5654 20 00 00000000 0100000000000000 0500 0000 8839e6e3 7765622d31",
    ),
]

frames = st.builds(
    Frame,
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=300),
    st.text(st.characters(codec="utf-8"), max_size=60),
)


def header(
    *, magic: int = 0x5456, length: int = 0, name_length: int = 0, reserved: int = 0, body: bytes = b""
) -> bytes:
    """A frame with any field as wanted and the right CRC."""
    head = struct.pack("<HBBIQHH", magic, 6, 0, length, 1, name_length, reserved)
    return head + zlib.crc32(head + body).to_bytes(4, "little") + body


@pytest.mark.parametrize(("frame", "vector"), VECTORS)
def test_a_frame_has_exactly_the_bytes_of_the_specification(frame: Frame, vector: str) -> None:
    assert encode(frame) == bytes.fromhex(vector)
    assert Decoder(LIMIT).feed(bytes.fromhex(vector)) == [frame]


def test_the_crc_covers_header_name_and_body() -> None:
    data = encode(Frame(3, 1, 9, b"body", "name"))
    assert data[20:24] == zlib.crc32(data[:20] + data[24:]).to_bytes(4, "little")


@given(frames)
def test_decoding_undoes_encoding(frame: Frame) -> None:
    assert Decoder(LIMIT).feed(encode(frame)) == [frame]


@given(st.lists(frames, max_size=4), st.data())
def test_it_does_not_matter_how_the_stream_is_cut(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(map(encode, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder, got = Decoder(LIMIT), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    assert got == sent
    assert decoder.pending == 0


def test_a_frame_that_comes_byte_by_byte_is_there_with_its_last_byte() -> None:
    frame = Frame(3, 0, 1, b"0123456789", "name")
    data = encode(frame)
    decoder = Decoder(LIMIT)
    for count, byte in enumerate(data[:-1], 1):
        assert decoder.feed(bytes([byte])) == []
        assert decoder.pending == count
    assert decoder.feed(data[-1:]) == [frame]


@given(frames, st.data())
def test_any_wrong_bit_is_found(frame: Frame, data: st.DataObject) -> None:
    raw = bytearray(encode(frame))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    try:
        got = Decoder(LIMIT).feed(bytes(raw))
    except RemoteProtocolError:
        return
    assert got == []  # a length that grew: the frame is not complete


def test_a_wrong_crc_is_an_error_that_says_so() -> None:
    data = bytearray(encode(Frame(3, 0, 1, b"body")))
    data[-1] ^= 1
    with pytest.raises(RemoteProtocolError, match="CRC"):
        Decoder(LIMIT).feed(bytes(data))


@pytest.mark.parametrize("data", [header(magic=0x5457), header(magic=0x5654), header(reserved=1)])
def test_bytes_that_are_no_header_are_an_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="no frame header"):
        Decoder(LIMIT).feed(data)


@pytest.mark.parametrize("length", [LIMIT + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_corrupt_length_is_an_error_that_names_the_field(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"body of {length} bytes; at most {LIMIT}"):
        Decoder(LIMIT).feed(header(length=length))


@pytest.mark.parametrize("length", [256, 0xFFFF])
def test_a_corrupt_name_length_is_an_error_that_names_the_field(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"name of {length} bytes; at most 255"):
        Decoder(LIMIT).feed(header(name_length=length))


def test_an_oversized_length_is_refused_before_any_of_the_body_has_come() -> None:
    decoder = Decoder(LIMIT)
    assert decoder.feed(header(length=LIMIT + 1)[:23]) == []
    with pytest.raises(RemoteProtocolError, match="body of 4097 bytes"):
        decoder.feed(header(length=LIMIT + 1)[23:])


def test_the_longest_body_and_the_longest_name_pass() -> None:
    frame = Frame(3, 0, 1, bytes(LIMIT), "n" * 255)
    assert Decoder(LIMIT).feed(encode(frame)) == [frame]
    with pytest.raises(RemoteProtocolError):
        Decoder(LIMIT - 1).feed(encode(frame))


def test_a_name_that_is_no_utf8_is_an_error() -> None:
    with pytest.raises(RemoteProtocolError, match="not UTF-8"):
        Decoder(LIMIT).feed(header(name_length=2, body=b"\xff\xfe"))


def test_a_name_that_does_not_fit_is_our_own_error() -> None:
    with pytest.raises(LocalProtocolError, match="256 bytes"):
        encode(Frame(32, 0, 1, b"", "é" * 128))


@pytest.mark.parametrize("cut", [0, 1, 23, 24, 30])
def test_a_truncated_frame_gives_nothing_and_is_forgotten_by_reset(cut: int) -> None:
    decoder = Decoder(LIMIT)
    assert decoder.feed(encode(Frame(3, 0, 1, b"0123456789"))[:cut]) == []
    assert decoder.pending == cut
    decoder.reset()
    assert decoder.feed(encode(Frame(8))) == [Frame(8)]


# -- a carrier that can lose bytes ----------------------------------------------------------------------------


@given(st.binary(max_size=200), frames)
def test_garbage_before_a_frame_is_skipped_and_counted(garbage: bytes, frame: Frame) -> None:
    decoder = Decoder(LIMIT, resync=True)
    got = decoder.feed(garbage + encode(frame))
    while decoder.pending:
        got += decoder.expire()
    assert got[-1:] == [frame]
    assert decoder.skipped == len(garbage) - sum(len(encode(each)) for each in got[:-1])


@given(st.binary(max_size=400))
def test_no_bytes_whatever_make_a_resyncing_decoder_raise_or_keep_more_than_a_frame(data: bytes) -> None:
    decoder = Decoder(LIMIT, resync=True)
    decoder.feed(data * 3)
    assert decoder.pending <= framing.HEADER_SIZE + framing.MAX_NAME + LIMIT
    while decoder.pending:
        before = decoder.pending
        decoder.expire()
        assert decoder.pending < before


@pytest.mark.parametrize("lost", [1, 12, 23, 24, 30])
def test_after_a_frame_whose_end_was_lost_the_next_one_is_found(lost: int) -> None:
    first, second = encode(Frame(3, 0, 1, b"0123456789")), Frame(3, 0, 2, b"abcdefghij" * 4)
    decoder = Decoder(LIMIT, resync=True)
    assert decoder.feed(first[:-lost] + encode(second)) == [second]
    assert decoder.skipped == len(first) - lost


def test_expire_finds_the_frame_behind_one_that_never_gets_complete() -> None:
    announced = header(length=4000)  # and then nothing of its 4000 bytes
    decoder = Decoder(LIMIT, resync=True)
    assert decoder.feed(announced + encode(Frame(8))) == []
    assert decoder.expire() == [Frame(8)]
    assert decoder.pending == 0


@pytest.mark.parametrize("rest", [b"V", b"VT", b"VTVT", b"V" * 30])
def test_expire_always_drops_something(rest: bytes) -> None:
    decoder = Decoder(LIMIT, resync=True)
    decoder.feed(rest)
    before = decoder.pending
    decoder.expire()
    assert decoder.pending < before


def test_expire_of_nothing_is_nothing() -> None:
    assert Decoder(LIMIT, resync=True).expire() == []
