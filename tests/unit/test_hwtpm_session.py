"""image/host/standin/session: when a QEMU's commands touch the hardware TPM, and what it is told when they do not."""

from __future__ import annotations

from itertools import product

import pytest

from image.host.standin.session import KEPT, Answer, Arriving, Desk, Execute, Forward, Load, Reset, Session
from manager_vm.wire import swtpm as wire
from manager_vm.wire import tpm
from manager_vm.wire.swtpm import Blob, Cmd, Request

LEAST, MOST = 0xAF8, 0x1000  # swtpm 0.7.1
OK, REFUSED = Answer(bytes(4)), Answer(wire.result(wire.TPM_FAIL))
COMMAND = tpm.get_random(8)
POWER_ON, ARRIVE = Request(Cmd.CMD_INIT, 0), Request(Cmd.CMD_INIT, wire.PTM_INIT_FLAG_DELETE_VOLATILE)
STOP, SHUTDOWN = Request(Cmd.CMD_STOP), Request(Cmd.CMD_SHUTDOWN)
BLOBS = tuple(Request(Cmd.CMD_SET_STATEBLOB, 2, kind, f"state {kind}".encode()) for kind in Blob)
EVERYTHING = [Request(command) for command in wire.SERVED if command is not Cmd.CMD_SET_DATAFD]


def desk(arriving: Arriving = Arriving.RESTORE, *, fresh: bool = True) -> Desk:
    return Desk(arriving, fresh=fresh, bounds=(LEAST, MOST))


def running(shared: Desk) -> Session:
    """A QEMU whose VM was powered on."""
    session = Session(shared)
    assert isinstance(session.control(POWER_ON), Reset)
    assert session.powered(True) == bytes(4)
    return session


def rc(effect: object) -> int:
    """The TPM's response code in an answer to a command."""
    assert isinstance(effect, Answer)
    return tpm.response_code(effect.data)


# -- a VM's life -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arriving", Arriving)
def test_each_power_on_and_each_reset_is_a_real_reset_of_the_tpm(arriving: Arriving) -> None:
    session = running(desk(arriving))
    for _ in range(3):
        assert session.control(STOP) == OK
        assert session.control(POWER_ON) == Reset(MOST)
        session.powered(True)


@pytest.mark.parametrize("arriving", Arriving)
def test_nothing_but_init_and_questions_reaches_the_tpm_of_a_vm_without_power(arriving: Arriving) -> None:
    for request in EVERYTHING:
        effect = Session(desk(arriving)).control(request)
        assert isinstance(effect, Reset if request.command is Cmd.CMD_INIT else Answer)


def test_a_command_before_init_is_answered_without_the_tpm_as_qemus_probe_needs_it() -> None:
    session = Session(desk())
    assert session.execute(tpm.read_clock()) == Answer(bytes.fromhex("80010000000a00000101"))
    session = running(desk())
    session.control(STOP)
    assert rc(session.execute(COMMAND)) == tpm.RC.TPM_RC_FAILURE


def test_a_running_vms_commands_reach_the_tpm_with_their_locality() -> None:
    session = running(desk())
    assert session.execute(COMMAND) == Execute(COMMAND, 0)
    assert session.control(Request(Cmd.CMD_SET_LOCALITY, 3)) == OK
    assert session.execute(COMMAND) == Execute(COMMAND, 3)
    assert session.control(Request(Cmd.CMD_SET_LOCALITY, 5)) == Answer(wire.result(wire.TPM_BAD_PARAMETER))
    assert session.execute(COMMAND) == Execute(COMMAND, 3)


def test_a_command_whose_size_field_lies_never_reaches_the_tpm() -> None:
    assert rc(running(desk()).execute(COMMAND + b"x")) == tpm.RC.TPM_RC_COMMAND_SIZE


@pytest.mark.parametrize(("wanted", "got"), [(0, MOST), (3968, 3968), (1, LEAST), (1 << 20, MOST)])
def test_the_buffer_size_is_bounded_and_counts_from_the_next_init_on(wanted: int, got: int) -> None:
    session = Session(desk())
    answer = session.control(Request(Cmd.CMD_SET_BUFFERSIZE, wanted))
    assert answer == Answer(wire.buffersize(got, LEAST, MOST))
    assert session.control(POWER_ON) == Reset(got)


def test_the_buffer_size_of_a_running_tpm_is_told_and_not_changed() -> None:
    session = running(desk())
    assert session.control(Request(Cmd.CMD_SET_BUFFERSIZE, 0)) == Answer(wire.buffersize(MOST, LEAST, MOST))
    assert session.control(Request(Cmd.CMD_SET_BUFFERSIZE, 3968)) == REFUSED


def test_a_tpm_that_does_not_power_on_leaves_the_vm_without_one_and_the_next_one_may_try() -> None:
    shared = desk()
    session = Session(shared)
    session.control(POWER_ON)
    assert session.powered(False) == REFUSED.data
    assert rc(session.execute(COMMAND)) == tpm.RC.TPM_RC_FAILURE
    assert isinstance(Session(shared).control(POWER_ON), Reset)
    assert shared.fresh


# -- one user at a time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arriving", Arriving)
def test_a_second_vm_has_no_power_while_the_first_has_the_tpm(arriving: Arriving) -> None:
    shared = desk(arriving)
    first, second = running(shared), Session(shared)
    assert second.control(POWER_ON) == REFUSED
    assert rc(second.execute(COMMAND)) == tpm.RC.TPM_RC_FAILURE
    assert first.execute(COMMAND) == Execute(COMMAND, 0)


@pytest.mark.parametrize("shut_down", [True, False])
def test_the_tpm_is_free_and_untouched_when_its_vm_has_left(shut_down: bool) -> None:
    shared = desk()
    first = running(shared)
    if shut_down:
        assert first.control(SHUTDOWN) == OK
    else:
        first.leave()
    assert isinstance(Session(shared).control(POWER_ON), Reset)


def test_a_late_shutdown_of_a_vm_that_left_does_not_take_the_tpm_from_the_next_one() -> None:
    shared = desk()
    first = running(shared)
    first.leave()
    second = running(shared)
    assert first.control(SHUTDOWN) == OK
    assert second.execute(COMMAND) == Execute(COMMAND, 0)
    assert Session(shared).control(POWER_ON) == REFUSED


# -- arriving VMs: restore ---------------------------------------------------------------------------------------------


def test_a_saved_vms_state_is_loaded_into_a_fresh_tpm_with_flags_and_bytes_as_they_are() -> None:
    session = Session(desk())
    session.control(Request(Cmd.CMD_SET_BUFFERSIZE, 3968))
    session.control(STOP)
    assert [session.control(blob) for blob in BLOBS] == [OK] * 3
    assert session.control(ARRIVE) == Load(BLOBS, 3968)
    session.powered(True)
    assert session.execute(COMMAND) == Execute(COMMAND, 0)


def test_state_is_never_loaded_into_a_tpm_that_is_not_fresh() -> None:
    used = desk()
    running(used).leave()
    for shared in (desk(fresh=False), used):
        session = Session(shared)
        assert [session.control(blob) for blob in BLOBS] == [REFUSED] * 3
        assert session.control(ARRIVE) == REFUSED
        assert rc(session.execute(COMMAND)) == tpm.RC.TPM_RC_FAILURE


def test_state_is_loaded_once() -> None:
    shared = desk()
    first, second = Session(shared), Session(shared)
    for session in (first, second):
        for blob in BLOBS:
            session.control(blob)
    assert isinstance(first.control(ARRIVE), Load)
    first.powered(True)
    first.leave()
    assert second.control(ARRIVE) == REFUSED


def test_an_arriving_vm_that_brings_no_state_is_refused_where_its_state_is_wanted() -> None:
    session = Session(desk())
    session.control(BLOBS[1])
    assert session.control(ARRIVE) == REFUSED
    assert Session(desk()).control(ARRIVE) == REFUSED


def test_state_that_was_set_is_dropped_by_stop_and_no_state_of_a_vm_that_is_powered_on() -> None:
    session = Session(desk())
    session.control(BLOBS[0])
    assert session.control(POWER_ON) == REFUSED
    session.control(STOP)
    assert session.control(POWER_ON) == Reset(MOST)


def test_a_running_tpms_state_is_not_replaced() -> None:
    assert running(desk()).control(BLOBS[0]) == REFUSED


def test_a_vm_can_be_saved_with_its_tpm_only_while_it_has_it() -> None:
    shared = desk()
    request = Request(Cmd.CMD_GET_STATEBLOB, 1, Blob.VOLATILE)
    assert running(shared).control(request) == Forward(request)
    assert Session(shared).control(request) == REFUSED


# -- arriving VMs: keep ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("blobs", [BLOBS, BLOBS[:1], ()])
def test_an_arriving_vm_finds_this_hosts_tpm_as_it_is(blobs: tuple[Request, ...], fresh: bool) -> None:
    session = Session(desk(Arriving.KEEP, fresh=fresh))
    assert {session.control(each) for each in (STOP, *blobs, ARRIVE)} == {OK}
    assert session.execute(COMMAND) == Execute(COMMAND, 0)


def test_a_vm_that_arrived_resets_the_tpm_when_it_is_reset_itself() -> None:
    session = Session(desk(Arriving.KEEP))
    session.control(ARRIVE)
    session.control(STOP)
    assert session.control(POWER_ON) == Reset(MOST)


def test_an_arriving_vm_waits_for_the_tpm_until_the_one_that_has_it_leaves() -> None:
    shared = desk(Arriving.KEEP)
    receiver, arrived = running(shared), Session(shared)
    assert arrived.control(ARRIVE) == OK
    assert rc(arrived.execute(COMMAND)) == tpm.RC.TPM_RC_RETRY
    assert receiver.execute(COMMAND) == Execute(COMMAND, 0)
    receiver.leave()
    assert arrived.execute(COMMAND) == Execute(COMMAND, 0)


def test_a_tpms_state_never_leaves_a_host_that_keeps_it() -> None:
    session = running(desk(Arriving.KEEP))
    answers = [session.control(Request(Cmd.CMD_GET_STATEBLOB, 1, kind)) for kind in Blob]
    assert answers == [Answer(wire.blob(KEPT)), Answer(wire.blob(b"")), Answer(wire.blob(b""))]


def test_what_leaves_a_host_that_keeps_its_tpm_is_swallowed_by_the_next_and_no_state_to_restore() -> None:
    note = Request(Cmd.CMD_SET_STATEBLOB, 0, Blob.PERMANENT, KEPT)
    assert Session(desk(Arriving.KEEP)).control(note) == OK
    session = Session(desk(Arriving.RESTORE))
    assert session.control(note) == REFUSED
    assert session.control(ARRIVE) == REFUSED


@pytest.mark.parametrize(("arriving", "request_"), list(product(Arriving, EVERYTHING)))
def test_every_served_command_has_an_answer_in_every_state(arriving: Arriving, request_: Request) -> None:
    shared = desk(arriving)
    for session in (Session(shared), running(shared), Session(shared)):
        assert isinstance(session.control(request_), Answer | Reset | Load | Forward)
