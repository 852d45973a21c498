"""wire/channel, wire/tpm, wire/swtpm, wire/admin: messages to bytes and back, and what is refused on the way."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from manager_vm import errors
from manager_vm.errors import RemoteProtocolError, SwtpmError, UnknownVtpmError, VtpmManagerError
from manager_vm.wire import admin, channel, quote, swtpm, tpm
from manager_vm.wire.channel import Reason, Type
from manager_vm.wire.framing import Frame

seqs = st.integers(0, 2**63 - 1)
sessions = st.binary(min_size=16, max_size=16)
small = st.binary(max_size=1000)
u8, u32 = st.integers(0, 255), st.integers(0, 2**32 - 1)

MESSAGES: dict[Type, st.SearchStrategy[channel.Message]] = {
    Type.HELLO: st.builds(channel.Hello, sessions, seqs, u8, u32),
    Type.WELCOME: st.builds(channel.Welcome, sessions, seqs, st.booleans(), u8, u32, st.booleans()),
    Type.COMMAND: st.builds(channel.Command, seqs, u8, st.binary(max_size=4096)),
    Type.RESPONSE: st.builds(channel.Response, seqs, st.binary(min_size=10, max_size=4096)),
    Type.NOT_ACCEPTED: st.builds(channel.NotAccepted, seqs, st.sampled_from(Reason)),
    Type.PING: st.builds(channel.Ping, st.integers(0, 2**64 - 1)),
    Type.PONG: st.builds(channel.Pong, st.integers(0, 2**64 - 1)),
    Type.BYE: st.builds(channel.Bye),
    Type.ERROR: st.builds(channel.Error, st.text(st.characters(codec="ascii"), max_size=512)),
    Type.QUOTE_REQUEST: st.builds(quote.QuoteBegin, seqs, u32, small, small, small)
    | st.builds(quote.QuoteFetch, seqs, u32),
    Type.QUOTE_REPLY: st.builds(
        lambda token, data, offset, behind: quote.QuotePart(token, offset + len(data) + behind, offset, data),
        *(seqs, st.binary(min_size=1, max_size=quote.MAX_PART), st.integers(0, 1 << 17), st.integers(0, 1 << 16)),
    )
    | st.builds(
        quote.QuoteRefused, seqs, st.sampled_from(quote.Refusal), st.text(st.characters(codec="ascii"), max_size=512)
    ),
}
EXACT = {Type.HELLO: 20, Type.WELCOME: 24, Type.NOT_ACCEPTED: 0, Type.PING: 0, Type.PONG: 0, Type.BYE: 0}
WITH_SEQ = (Type.HELLO, Type.WELCOME, Type.COMMAND, Type.RESPONSE, Type.NOT_ACCEPTED)


@pytest.mark.parametrize("kind", MESSAGES)
@given(data=st.data())
def test_every_message_survives_its_frame(kind: Type, data: st.DataObject) -> None:
    message = data.draw(MESSAGES[kind])
    frame = channel.to_frame(message)
    assert frame.type == kind
    assert frame.name == ""
    assert channel.from_frame(frame) == message


def test_the_bodies_have_the_bytes_of_the_specification() -> None:
    session = bytes(range(16))
    hello = channel.to_frame(channel.Hello(session, 7, 1, 4096))
    assert (hello.type, hello.arg, hello.seq) == (1, 1, 7)
    assert hello.body == bytes.fromhex("000102030405060708090a0b0c0d0e0f 00100000")
    welcome = channel.to_frame(channel.Welcome(session, 8, True))
    assert (welcome.type, welcome.arg, welcome.seq) == (2, 1, 8)
    assert welcome.body == bytes.fromhex("000102030405060708090a0b0c0d0e0f 03000000 00100000")
    assert channel.to_frame(channel.Command(9, 3, b"c")) == Frame(3, 3, 9, b"c")
    assert channel.to_frame(channel.Response(9, b"r")) == Frame(4, 0, 9, b"r")
    assert channel.to_frame(channel.NotAccepted(9, Reason.BUSY)) == Frame(5, 6, 9)
    assert channel.to_frame(channel.Ping(5)) == Frame(6, 0, 5)
    assert channel.to_frame(channel.Pong(5)) == Frame(7, 0, 5)
    assert channel.to_frame(channel.Bye()) == Frame(8)
    assert channel.to_frame(channel.Error("no")) == Frame(9, 0, 0, b"no")


@pytest.mark.parametrize(("kind", "size"), EXACT.items())
@pytest.mark.parametrize("wrong", [-1, 1, 100])
def test_a_body_of_the_wrong_length_is_refused(kind: Type, size: int, wrong: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"type {kind:d} has"):
        channel.from_frame(Frame(kind, 1, 1, bytes(abs(size + wrong))))


@pytest.mark.parametrize("kind", sorted(set(range(256)) - {kind.value for kind in MESSAGES}))
def test_an_unknown_or_reserved_type_is_refused(kind: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"type {kind} does not belong"):
        channel.from_frame(Frame(kind))


@pytest.mark.parametrize("kind", WITH_SEQ)
def test_a_seq_of_two_to_the_sixty_third_is_refused(kind: Type) -> None:
    body = bytes(EXACT.get(kind, 10))
    channel.from_frame(Frame(kind, 1, 2**63 - 1, body))
    with pytest.raises(RemoteProtocolError, match="out of range"):
        channel.from_frame(Frame(kind, 1, 2**63, body))


@pytest.mark.parametrize("reason", [0, 9, 255])
def test_an_unknown_reason_is_refused(reason: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"unknown reason {reason}"):
        channel.from_frame(Frame(Type.NOT_ACCEPTED, reason, 1))


def test_a_command_longer_than_4096_bytes_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="4097 bytes"):
        channel.from_frame(Frame(Type.COMMAND, 0, 1, bytes(4097)))


def test_a_guest_cannot_name_a_vtpm() -> None:
    for message in (channel.Ping(1), channel.Command(1, 0, bytes(10))):
        frame = channel.to_frame(message)
        with pytest.raises(RemoteProtocolError):
            channel.from_frame(Frame(frame.type, frame.arg, frame.seq, frame.body, "another"))


@example("é" * 300, bytes(600))
@given(st.text(st.characters(codec="utf-8")), st.binary(max_size=600))
def test_an_error_text_takes_at_most_512_bytes_and_never_fails(text: str, raw: bytes) -> None:
    frame = channel.to_frame(channel.Error(text))
    assert len(frame.body) <= 512
    assert isinstance(channel.from_frame(frame), channel.Error)
    assert isinstance(channel.from_frame(Frame(Type.ERROR, 0, 0, raw)), channel.Error)


@given(st.builds(Frame, u8, u8, st.integers(0, 2**64 - 1), st.binary(max_size=64), st.sampled_from(["", "n"])))
def test_any_frame_is_a_message_or_a_protocol_error(frame: Frame) -> None:
    for parse in (channel.from_frame, admin.from_frame):
        with contextlib.suppress(RemoteProtocolError):
            parse(frame)


# -- TPM commands and responses -------------------------------------------------------------------------------

COMMANDS = [  # by hand from the TPM 2.0 Library, Part 3
    (tpm.startup(), "8001 0000000c 00000144 0000"),
    (tpm.shutdown(), "8001 0000000c 00000145 0000"),
    (tpm.get_random(20), "8001 0000000c 0000017b 0014"),
    (tpm.stir_random(b"\1\2\3"), "8001 0000000f 00000146 0003 010203"),
    (tpm.get_capability(6, 0x100, 1), "8001 00000016 0000017a 00000006 00000100 00000001"),
    (tpm.read_clock(), "8001 0000000a 00000181"),
    (tpm.flush_context(0x80000000), "8001 0000000e 00000165 80000000"),
    (tpm.read_public(0x81010001), "8001 0000000e 00000173 81010001"),
    (tpm.nv_read_public(0x01C00002), "8001 0000000e 00000169 01c00002"),
    (
        tpm.hierarchy_change_auth(tpm.TPM_RH_PLATFORM, b"new", b"old"),
        "8002 00000023 00000129 4000000c 0000000c 40000009 0000 00 0003 6f6c64 0003 6e6577",
    ),
    (
        tpm.nv_read(0x01C00002, 16, 512),
        "8002 00000023 0000014e 01c00002 01c00002 00000009 40000009 0000 00 0000 0200 0010",
    ),
    (
        tpm.nv_write(0x01C00002, 4, b"\xaa"),
        "8002 00000024 00000137 4000000c 01c00002 00000009 40000009 0000 00 0000 0001 aa 0004",
    ),
    (
        tpm.nv_define_space(0x01C00002, 0x42072001, 16),
        "8002 0000002d 0000012a 4000000c 00000009 40000009 0000 00 0000 0000 000e 01c00002 000b 42072001 0000 0010",
    ),
    (
        tpm.create_primary(tpm.TPM_RH_ENDORSEMENT, b"\xee\xff"),
        "8002 0000002b 00000131 4000000b 00000009 40000009 0000 00 0000 0004 0000 0000 0002 eeff 0000 00000000",
    ),
]


@pytest.mark.parametrize(("made", "vector"), COMMANDS, ids=lambda value: "" if isinstance(value, bytes) else value[:21])
def test_a_command_has_the_bytes_of_part_3(made: bytes, vector: str) -> None:
    assert made == bytes.fromhex(vector)
    assert tpm.check_frame(made) is None
    assert tpm.command_code(made) == int(vector.split()[2], 16)


@pytest.mark.parametrize("size", [0, 1, 9, 4097])
def test_the_filter_answers_a_command_of_a_wrong_length_with_command_size(size: int) -> None:
    assert tpm.check_frame((b"\x80\x01" + size.to_bytes(4, "big") + bytes(size))[:size]) == 0x142


@pytest.mark.parametrize("said", [0, 9, 11, 0xFFFFFFFF])
def test_the_filter_answers_a_size_field_that_is_not_the_length_with_command_size(said: int) -> None:
    assert tpm.check_frame(b"\x80\x01" + said.to_bytes(4, "big") + bytes(4)) == 0x142


@pytest.mark.parametrize("size", [10, 4096])
def test_the_filter_lets_the_shortest_and_the_longest_command_pass(size: int) -> None:
    assert tpm.check_frame(b"\x80\x01" + size.to_bytes(4, "big") + bytes(size - 6)) is None


def test_an_error_response_is_a_header_with_the_code() -> None:
    assert tpm.error_response(tpm.RC.TPM_RC_RETRY) == bytes.fromhex("8001 0000000a 00000922")
    assert tpm.parse_response(tpm.error_response(0x101)) == (0x101, b"")


@pytest.mark.parametrize(
    "response", ["", "8001 0000000a 000000", "8001 0000000b 00000000", "8001 0000000a 00000000 00"]
)
def test_a_response_that_lies_about_its_size_is_an_error(response: str) -> None:
    with pytest.raises(RemoteProtocolError):
        tpm.parse_response(bytes.fromhex(response))


def test_parameters_stand_behind_handles_and_their_size() -> None:
    assert tpm.parameters(bytes.fromhex("80000000 00000002 abcd 0000010000"), handles=1) == b"\xab\xcd"


# -- swtpm's control protocol ---------------------------------------------------------------------------------


def test_control_commands_have_swtpms_bytes() -> None:
    assert swtpm.plain(swtpm.Cmd.CMD_GET_CAPABILITY).hex() == "00000001"
    assert swtpm.init(1) == bytes.fromhex("00000002 00000001")
    assert swtpm.set_locality(3) == bytes.fromhex("00000005 03000000")
    assert swtpm.get_stateblob(swtpm.Blob.VOLATILE) == bytes.fromhex("0000000c 00000001 00000002 00000000")
    blob = swtpm.set_stateblob(swtpm.Blob.PERMANENT, 0, b"xyz")
    assert blob == bytes.fromhex("0000000d 00000000 00000001 00000003 78797a")


def test_a_result_other_than_zero_names_the_command_and_the_result() -> None:
    swtpm.check_result(bytes(4), "INIT")
    with pytest.raises(SwtpmError, match="INIT with result 0x9"):
        swtpm.check_result(bytes.fromhex("00000009"), "INIT")
    with pytest.raises(RemoteProtocolError, match="INIT is cut short"):
        swtpm.check_result(bytes(3), "INIT")


def test_the_head_of_a_state_blob_is_checked_before_anybody_reads_on() -> None:
    head = struct.Struct(">IIII").pack
    assert swtpm.parse_blob_head(head(0, 2, 100, 100)) == swtpm.BlobHead(0, 2, 100)
    assert swtpm.parse_blob_head(head(swtpm.ABSENT, 0, 5, 9)) == swtpm.BlobHead(swtpm.ABSENT, 0, 0)
    for bad in (
        head(0, 0, 100, 99),
        head(0, 0, 2**32 - 1, 2**32 - 1),
        head(0, 0, swtpm.MAX_BLOB + 1, 0),
        b"",
        bytes(15),
    ):
        with pytest.raises(RemoteProtocolError):
            swtpm.parse_blob_head(bad)


# -- the admin and the host link ------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(max_size=40)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
ids = st.integers(0, 2**64 - 1)
ADMIN = (
    st.builds(admin.Request, ids, st.text(), st.dictionaries(st.text(), values, max_size=4)),
    st.builds(admin.Reply, ids, values),
    st.builds(admin.Progress, ids, st.text(), st.integers(0, 2**31), st.integers(0, 2**31)),
)


@given(st.one_of(*ADMIN))
def test_every_admin_message_survives_its_frame(message: admin.AdminMessage) -> None:
    assert admin.from_frame(admin.to_frame(message)) == message


@pytest.mark.parametrize("kind", errors.BY_NAME.values())
def test_every_error_class_arrives_as_itself_with_its_text(kind: type[VtpmManagerError]) -> None:
    reply = admin.from_frame(admin.to_frame(admin.Reply(4, error=kind("no such thing; make one"))))
    assert isinstance(reply, admin.Reply)
    assert type(reply.error) is kind
    assert str(reply.error) == "no such thing; make one"


def test_an_error_class_of_a_newer_version_arrives_as_the_base_class() -> None:
    reply = admin.from_frame(Frame(49, 0, 1, msgpack.packb({"error": {"name": "Future", "text": "t"}})))
    assert isinstance(reply, admin.Reply)
    assert type(reply.error) is VtpmManagerError
    assert UnknownVtpmError.exit_code != reply.error.exit_code


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (48, {"verb": 3, "args": {}}),
        (48, {"verb": "list"}),
        (48, {"verb": "list", "args": []}),
        (48, {"verb": "list", "args": {1: 2}}),
        (49, {}),
        (49, {"error": "text"}),
        (49, {"error": {"name": "StoreError"}}),
        (50, {"text": "t", "done": "1", "total": 0}),
        (50, []),
        (3, {"verb": "list", "args": {}}),
    ],
)
def test_an_admin_message_with_wrong_fields_is_refused(kind: int, body: Any) -> None:
    with pytest.raises(RemoteProtocolError, match=f"type {kind} is no admin message"):
        admin.from_frame(Frame(kind, 0, 1, msgpack.packb(body)))


@pytest.mark.parametrize("body", ["", "c1", "81", "a5 61", "8190 01", "8180 01", "0102", "dd 00ffffff", "91" * 2000])
def test_a_body_that_is_no_msgpack_is_refused(body: str) -> None:
    with pytest.raises(RemoteProtocolError):
        admin.from_frame(Frame(48, 0, 1, bytes.fromhex(body)))
