"""guest_frontend/qemu_session: what each control command of a QEMU is answered, and when the vTPM is touched; and what
comes of messages that are none (wire/swtpm, vchan/emulator)."""

from __future__ import annotations

import hashlib
import struct
from itertools import product

import pytest

from guest_frontend import qemu_session
from guest_frontend.qemu_session import (
    FIRMWARE_PATIENCE,
    Answer,
    Begins,
    Execute,
    GoOn,
    Leave,
    PowerOn,
    Redeem,
    Session,
)
from manager_vm.errors import RemoteProtocolError
from manager_vm.protocol.channel_client import KERNEL_PATIENCE
from manager_vm.wire import swtpm as wire
from manager_vm.wire import tpm
from manager_vm.wire.swtpm import Blob, Cmd, Request
from manager_vm.wire.tpm import CC

OK, FAIL, NOT_NOW = (Answer(wire.result(code)) for code in (0, wire.TPM_FAIL, wire.TPM_BAD_ORDINAL))
BAD_LOCALITY = Answer(wire.result(wire.TPM_BAD_LOCALITY))
LEAST, MOST = 0xAF8, 0x1000  # swtpm 0.7.1
COMMAND = tpm.get_random(8)
POWER_ON, ARRIVE = Request(Cmd.CMD_INIT, 0), Request(Cmd.CMD_INIT, wire.PTM_INIT_FLAG_DELETE_VOLATILE)
STOP, SHUTDOWN = Request(Cmd.CMD_STOP), Request(Cmd.CMD_SHUTDOWN)
EXIT = b"Exit Boot Services Returned with Success"


def buffer(size: int, code: int = 0) -> Answer:
    return Answer(struct.pack(">IIII", code, size, LEAST, MOST))


# command, value -> the answer without power, and with it (None: the same)
ANSWERS: list[tuple[Cmd, int, Answer | PowerOn, Answer | PowerOn | None]] = [
    (Cmd.CMD_GET_CAPABILITY, 0, Answer(bytes.fromhex("00000000000034af")), None),
    (Cmd.CMD_INIT, 0, PowerOn(), None),
    (Cmd.CMD_INIT, 1, FAIL, None),
    (Cmd.CMD_SHUTDOWN, 0, OK, None),
    (Cmd.CMD_STOP, 0, OK, None),
    (Cmd.CMD_GET_TPMESTABLISHED, 0, Answer(bytes(8)), None),
    *((Cmd.CMD_SET_LOCALITY, locality, OK, None) for locality in range(5)),
    (Cmd.CMD_SET_LOCALITY, 5, BAD_LOCALITY, None),
    (Cmd.CMD_SET_LOCALITY, 255, BAD_LOCALITY, None),
    (Cmd.CMD_CANCEL_TPM_CMD, 0, NOT_NOW, OK),
    *((Cmd.CMD_RESET_TPMESTABLISHED, locality, NOT_NOW, BAD_LOCALITY) for locality in (0, 1, 2, 5)),
    *((Cmd.CMD_RESET_TPMESTABLISHED, locality, NOT_NOW, OK) for locality in (3, 4)),
    (Cmd.CMD_GET_STATEBLOB, 1, Answer(struct.pack(">IIII", 0x101, 0, 0, 0)), None),
    (Cmd.CMD_SET_STATEBLOB, 1, Answer(struct.pack(">I", 0x101)), None),
    (Cmd.CMD_SET_BUFFERSIZE, 0, buffer(MOST), None),
    (Cmd.CMD_SET_BUFFERSIZE, 3968, buffer(3968), buffer(MOST, wire.TPM_BAD_ORDINAL)),
    (Cmd.CMD_SET_BUFFERSIZE, 1, buffer(LEAST), buffer(MOST, wire.TPM_BAD_ORDINAL)),
    (Cmd.CMD_SET_BUFFERSIZE, 99999, buffer(MOST), buffer(MOST, wire.TPM_BAD_ORDINAL)),
]


def running() -> Session:
    """A QEMU whose VM was powered on."""
    session = Session()
    assert session.control(POWER_ON) == PowerOn()
    assert session.powered(True) == bytes(4)
    return session


def executed(session: Session, command: bytes) -> Execute:
    effect = session.execute(command)
    assert isinstance(effect, Execute)
    return effect


def extend(pcr: int, digest: bytes) -> bytes:
    """TPM2_PCR_Extend of one bank."""
    return tpm.command(CC.TPM2_PCR_Extend, struct.pack(">IH", 1, tpm.TPM_ALG_SHA256) + digest, handles=(pcr,), auths=1)


# -- the table ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "value", "off", "on"), ANSWERS)
def test_each_control_command_is_answered_as_the_page_says(
    command: Cmd, value: int, off: Answer | PowerOn, on: Answer | PowerOn | None
) -> None:
    assert Session().control(Request(command, value)) == off
    assert running().control(Request(command, value)) == (on or off)


def test_the_table_has_every_command_that_is_served_but_the_one_about_sockets() -> None:
    assert {command for command, *_ in ANSWERS} == set(wire.SERVED) - {Cmd.CMD_SET_DATAFD}


def test_answers_have_the_sizes_that_qemu_reads_whatever_their_result() -> None:
    sizes = {Cmd.CMD_GET_CAPABILITY: 8, Cmd.CMD_GET_TPMESTABLISHED: 8, Cmd.CMD_GET_STATEBLOB: 16}
    sizes[Cmd.CMD_SET_BUFFERSIZE] = 16
    for command, _, off, on in ANSWERS:
        for effect in (off, on or off):
            assert isinstance(effect, PowerOn) or len(effect.data) == sizes.get(command, 4)


# -- power -------------------------------------------------------------------------------------------------------------


def test_nothing_but_init_is_a_boot_and_each_init_is_one() -> None:
    session = running()
    for _ in range(3):
        assert session.control(STOP) == OK
        assert session.control(POWER_ON) == PowerOn()
        session.powered(True)
    assert session.control(POWER_ON) == PowerOn()  # without STOP before it too
    assert not session.on


@pytest.mark.parametrize("request_", [STOP, SHUTDOWN, POWER_ON, ARRIVE])
def test_between_stop_and_the_next_acknowledged_boot_no_command_reaches_the_vtpm(request_: Request) -> None:
    session = running()
    session.control(request_)
    assert session.execute(COMMAND) == Answer(tpm.error_response(tpm.RC.TPM_RC_FAILURE))
    session.control(POWER_ON)
    assert session.execute(COMMAND) == Answer(tpm.error_response(tpm.RC.TPM_RC_FAILURE))


def test_a_boot_that_is_not_acknowledged_fails_and_the_next_init_tries_again() -> None:
    session = Session()
    session.control(POWER_ON)
    assert session.powered(False) == wire.result(wire.TPM_FAIL)
    assert isinstance(session.execute(COMMAND), Answer)
    assert session.control(POWER_ON) == PowerOn()
    assert session.powered(True) == bytes(4)
    executed(session, COMMAND)


def test_qemus_probe_before_init_is_answered_without_the_vtpm() -> None:
    assert Session().execute(tpm.read_clock()) == Answer(bytes.fromhex("80010000000a00000101"))


def test_no_state_blob_ever_makes_a_running_vm_of_an_arriving_one() -> None:
    session = Session()
    for kind in Blob:
        assert session.control(Request(Cmd.CMD_SET_STATEBLOB, 0, kind, b"state")) == Answer(wire.result(0x101))
    assert session.control(ARRIVE) == FAIL and not session.on


# -- a VM that moves ---------------------------------------------------------------------------------------------------


def moving() -> Session:
    """Whose VM is known, and has power."""
    session = Session(movable=True)
    session.powered(True)
    return session


def get(kind: Blob) -> Request:
    return Request(Cmd.CMD_GET_STATEBLOB, 0, kind)


def test_a_vm_whose_vtpm_can_follow_leaves_with_a_ticket_and_nothing_else() -> None:
    session = moving()
    assert session.control(Request(Cmd.CMD_GET_CAPABILITY)) == Answer(wire.capabilities())
    assert session.control(get(Blob.PERMANENT)) == Leave()
    assert session.left(b"ticket") == wire.blob(b"ticket")
    for kind in (Blob.VOLATILE, Blob.SAVESTATE):
        assert session.control(get(kind)) == Answer(wire.blob(b""))
    assert session.left(None) == wire.no_blob(0x101)  # QEMU's veto
    assert isinstance(session.execute(COMMAND), Execute)  # and the VM goes on


def test_a_vm_that_comes_goes_on_only_behind_a_ticket_that_was_redeemed() -> None:
    session = Session(movable=True)
    assert session.control(Request(Cmd.CMD_INIT)) == PowerOn() and session.waits() == bytes(4)
    assert session.control(ARRIVE) == FAIL
    session.control(Request(Cmd.CMD_INIT))
    session.waits()
    assert session.control(Request(Cmd.CMD_SET_STATEBLOB, 0, Blob.PERMANENT, b"ticket")) == Redeem(b"ticket")
    assert session.redeemed(False) == wire.result(0x101) and session.control(ARRIVE) == FAIL
    assert session.redeemed(True) == bytes(4)
    assert session.control(ARRIVE) == GoOn() and session.powered(True) == bytes(4)
    assert not session.firmware and not session.used
    effect = session.execute(COMMAND)
    assert isinstance(effect, Execute) and effect.patience == KERNEL_PATIENCE and session.used


def test_a_qemu_that_begins_may_wait_for_a_vm_and_says_nothing_more_of_it() -> None:
    session = Session(movable=True)
    assert session.control(Request(Cmd.CMD_SET_BUFFERSIZE, 0)) == buffer(MOST)  # it only asks
    begins = session.control(Request(Cmd.CMD_SET_BUFFERSIZE, 3968))
    assert begins == Begins(buffer(3968).data)
    assert session.control(Request(Cmd.CMD_SET_BUFFERSIZE, 3968)) == buffer(3968)  # a reset is no beginning
    assert Session().control(Request(Cmd.CMD_SET_BUFFERSIZE, 3968)) == buffer(3968)  # nobody knows whose it is


@pytest.mark.parametrize("success", [True, False])
def test_a_vm_is_expected_until_it_has_come_or_boots(success: bool) -> None:
    session = Session(movable=True)
    session.expected = True
    session.redeemed(success)
    assert session.expected is not success
    session.expected = True
    session.powered(success)
    assert session.expected is not success


def test_a_vm_that_asks_its_tpm_for_something_before_any_ticket_is_one_that_boots() -> None:
    session = Session(movable=True)
    session.control(Request(Cmd.CMD_INIT))
    session.waits()
    assert session.execute(tpm.startup()) == PowerOn()
    session.powered(True)
    executed(session, tpm.startup())


def test_only_the_first_blob_is_a_ticket() -> None:
    session = Session(movable=True)
    for kind in (Blob.VOLATILE, Blob.SAVESTATE):
        assert session.control(Request(Cmd.CMD_SET_STATEBLOB, 0, kind, b"state")) == Answer(wire.result(0x101))


def test_firmware_has_the_tpm_its_startup_and_platform_auth_are_the_tpms_to_answer() -> None:
    executed(running(), tpm.startup())
    executed(running(), tpm.startup(tpm.TPM_SU_STATE))
    executed(running(), tpm.hierarchy_change_auth(tpm.TPM_RH_PLATFORM, b"new"))


# -- commands ----------------------------------------------------------------------------------------------------------


def test_each_command_goes_with_the_locality_that_was_set_last_over_a_reset_too() -> None:
    session = running()
    assert executed(session, COMMAND).locality == 0
    session.control(Request(Cmd.CMD_SET_LOCALITY, 3))
    session.control(Request(Cmd.CMD_SET_LOCALITY, 5))  # refused
    assert executed(session, COMMAND) == Execute(COMMAND, 3, FIRMWARE_PATIENCE)
    session.control(STOP)
    session.control(POWER_ON)
    session.powered(True)
    assert executed(session, COMMAND).locality == 3  # QEMU remembers it too, and does not say it again


@pytest.mark.parametrize("command", [b"", COMMAND[:-1], COMMAND + b"x", COMMAND[:9], COMMAND + bytes(4096)])
def test_a_command_whose_length_is_not_what_it_says_is_answered_and_not_executed(command: bytes) -> None:
    assert running().execute(command) == Answer(tpm.error_response(tpm.RC.TPM_RC_COMMAND_SIZE))


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384", "sha512"])
def test_firmware_is_waited_for_until_its_last_word_and_the_kernel_only_as_long_as_it_waits(bank: str) -> None:
    session = running()
    assert executed(session, COMMAND).patience == FIRMWARE_PATIENCE
    last = extend(5, hashlib.new(bank, EXIT).digest())
    assert executed(session, last).patience == FIRMWARE_PATIENCE
    assert executed(session, COMMAND).patience == KERNEL_PATIENCE
    session.control(STOP)
    session.control(POWER_ON)
    session.powered(True)
    assert executed(session, COMMAND).patience == FIRMWARE_PATIENCE


def test_linux_ends_firmware_where_that_says_no_last_word() -> None:
    session = running()
    executed(session, COMMAND)
    probe = tpm.get_capability(tpm.TPM_CAP_TPM_PROPERTIES, 0x129, 1)
    assert executed(session, probe).patience == KERNEL_PATIENCE
    assert executed(session, COMMAND).patience == KERNEL_PATIENCE


@pytest.mark.parametrize(
    "command",
    [
        extend(4, hashlib.sha256(EXIT).digest()),
        extend(5, hashlib.sha256(b"Exit Boot Services Invocation").digest()),
        tpm.stir_random(hashlib.sha256(EXIT).digest()),
        tpm.get_capability(tpm.TPM_CAP_TPM_PROPERTIES, 0x105, 1),
    ],
)
def test_nothing_else_ends_firmware(command: bytes) -> None:
    session = running()
    executed(session, command)
    assert executed(session, COMMAND).patience == FIRMWARE_PATIENCE


def test_firmware_waits_longer_for_a_response_than_the_shim_before_it_says_retry() -> None:
    assert qemu_session.FIRMWARE_PATIENCE < 90  # seconds, EDK2
    assert KERNEL_PATIENCE < 0.75  # seconds, Linux: PCR_Extend


# -- streams of bytes --------------------------------------------------------------------------------------------------


def test_no_order_of_control_commands_breaks_a_session_or_executes_without_an_acknowledged_boot() -> None:
    for first, second, third in product(ANSWERS, repeat=3):
        session, boots = Session(), False
        for command, value, *_ in (first, second, third):
            effect = session.control(Request(command, value))
            if command in (Cmd.CMD_STOP, Cmd.CMD_SHUTDOWN, Cmd.CMD_INIT):
                boots = isinstance(effect, PowerOn)
            if isinstance(effect, PowerOn):
                session.powered(True)
        assert isinstance(session.execute(COMMAND), Execute) == boots


@pytest.mark.parametrize(
    "stream",
    ["00000000", "00000063", "00000006", "0000000c 00000001 00000004 00000000", "0000000c 00000001 00000001 00000001"],
    ids=["0", "unknown", "HASH_START", "a fourth blob", "a blob from its second byte on"],
)
def test_a_control_command_that_is_none_is_named_and_nobody_goes_on(stream: str) -> None:
    with pytest.raises(RemoteProtocolError, match=r"control command|no such blob"):
        wire.take_request(bytearray.fromhex(stream))


def test_a_blob_that_no_swtpm_makes_is_refused_before_its_bytes_are_waited_for() -> None:
    head = struct.pack(">IIII", Cmd.CMD_SET_STATEBLOB, 0, Blob.PERMANENT, wire.MAX_BLOB + 1)
    with pytest.raises(RemoteProtocolError, match="larger than any"):
        wire.take_request(bytearray(head))


@pytest.mark.parametrize("length", range(len(COMMAND)))
def test_half_a_tpm_command_is_waited_for(length: int) -> None:
    buffer_ = bytearray(COMMAND[:length])
    assert tpm.take_command(buffer_) is None
    buffer_ += COMMAND[length:]
    assert tpm.take_command(buffer_) == COMMAND and not buffer_


@pytest.mark.parametrize(
    "stream",
    [COMMAND + b"\0", COMMAND * 2, struct.pack(">HII", 0x8001, 9, 0x17B), struct.pack(">HII", 0x8001, 4097, 0)],
)
def test_a_tpm_command_with_more_behind_it_or_of_an_impossible_size_ends_the_stream(stream: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="a TPM command says"):
        tpm.take_command(bytearray(stream))
