"""wire/swtpm, the server's side: what QEMU's tpm-emulator sends is cut into requests, whatever pieces it comes in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager_vm.errors import RemoteProtocolError
from manager_vm.wire import swtpm
from manager_vm.wire.swtpm import Blob, Cmd, Request

BYTES = [  # QEMU 7.2, backends/tpm/tpm_ioctl.h
    ("00000001", Request(Cmd.CMD_GET_CAPABILITY)),
    ("00000002 00000001", Request(Cmd.CMD_INIT, 1)),
    ("00000003", Request(Cmd.CMD_SHUTDOWN)),
    ("00000004", Request(Cmd.CMD_GET_TPMESTABLISHED)),
    ("00000005 03000000", Request(Cmd.CMD_SET_LOCALITY, 3)),
    ("00000009", Request(Cmd.CMD_CANCEL_TPM_CMD)),
    ("0000000b 04000000", Request(Cmd.CMD_RESET_TPMESTABLISHED, 4)),
    ("0000000c 00000001 00000002 00000000", Request(Cmd.CMD_GET_STATEBLOB, 1, Blob.VOLATILE)),
    ("0000000d 00000002 00000003 00000002 abcd", Request(Cmd.CMD_SET_STATEBLOB, 2, Blob.SAVESTATE, b"\xab\xcd")),
    ("0000000e", Request(Cmd.CMD_STOP)),
    ("00000010", Request(Cmd.CMD_SET_DATAFD)),
    ("00000011 00000f80", Request(Cmd.CMD_SET_BUFFERSIZE, 3968)),
]


@pytest.mark.parametrize(("sent", "request_"), BYTES)
def test_a_request_is_cut_off_when_it_is_whole_and_not_before(sent: str, request_: Request) -> None:
    data = bytes.fromhex(sent)
    for length in range(len(data)):
        part = bytearray(data[:length])
        assert swtpm.take_request(part) is None
        assert part == data[:length]
    whole = bytearray(data + b"rest")
    assert swtpm.take_request(whole) == request_
    assert whole == b"rest"


def test_every_served_command_was_tried() -> None:
    assert {request.command for _, request in BYTES} == set(swtpm.SERVED)


@given(st.lists(st.sampled_from(BYTES), max_size=20), st.integers(1, 30))
def test_requests_are_the_same_however_the_stream_is_cut(sent: list[tuple[str, Request]], piece: int) -> None:
    stream, found, buffer = b"".join(bytes.fromhex(data) for data, _ in sent), [], bytearray()
    for start in range(0, len(stream), piece):
        buffer += stream[start : start + piece]
        while (request := swtpm.take_request(buffer)) is not None:
            found.append(request)
    assert found == [request for _, request in sent]


@pytest.mark.parametrize(
    "sent",
    [
        "00000000",
        "00000006",  # HASH_START, not among the capabilities
        "00000013",
        "0000000c 00000001 00000004 00000000",  # no such blob
        "0000000c 00000001 00000001 00000001",  # an offset
        "0000000d 00000000 00000000 00000001",
        "0000000d 00000000 00000001 00040001",  # 256 KiB + 1, before any of it is there
    ],
)
def test_what_no_qemu_sends_is_refused(sent: str) -> None:
    with pytest.raises(RemoteProtocolError):
        swtpm.take_request(bytearray(bytes.fromhex(sent)))


@given(st.binary(max_size=64))
def test_any_bytes_are_a_request_or_refused_or_too_few(data: bytes) -> None:
    buffer = bytearray(data)
    try:
        request = swtpm.take_request(buffer)
    except RemoteProtocolError:
        return
    assert (request is None) == (bytes(buffer) == data)


def test_answers_have_swtpms_bytes() -> None:
    assert swtpm.result() == bytes(4)
    assert swtpm.result(swtpm.TPM_FAIL).hex() == "00000009"
    assert swtpm.capabilities().hex() == "00000000000037af"  # all that QEMU's tpm-emulator asks for
    assert swtpm.established(True) == bytes.fromhex("00000000 01000000")
    assert swtpm.buffersize(3968, 2808, 4096) == bytes.fromhex("00000000 00000f80 00000af8 00001000")
    assert swtpm.set_buffersize(3968) == bytes.fromhex("00000011 00000f80")


@given(st.binary(max_size=100), st.integers(0, 0xFFFFFFFF))
def test_a_blob_that_is_answered_is_one_that_a_client_reads(data: bytes, flags: int) -> None:
    answer = swtpm.blob(data, flags)
    size = swtpm.BLOB_HEAD.size
    head = swtpm.parse_blob_head(answer[:size])
    assert (head.flags, head.length, answer[size:]) == (flags, len(data), data)
    assert head.result == (0 if data else swtpm.ABSENT)


def test_a_requests_state_is_not_shown() -> None:
    assert "secret" not in repr(Request(Cmd.CMD_SET_STATEBLOB, 0, Blob.PERMANENT, b"secret"))
