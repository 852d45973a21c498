"""What a guest must not be able to do to its own vTPM, and what stays its right."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from manager_vm.wire import tpm
from manager_vm.wire.channel import Command, Error, Response
from manager_vm.wire.tpm import RC
from tests.integration import raw
from tests.integration.harness import Guest, Manager
from tests.integration.raw import Session

COUNTER = 0x1500009
EK_CERTIFICATES = ("0x1c00002", "0x1c0000a", "0x1c00016", "0x1c00100")  # and the chain
BAD_AUTH = "0x9a2"  # TPM_RC_BAD_AUTH, session 1


def ek_public(guest: Guest) -> bytes:
    guest.run("tpm2_createek", "-G", "ecc", "-c", "ek.ctx", "-u", "ek.pub")
    return (guest.files / "ek.pub").read_bytes()


@pytest.mark.parametrize(
    "argv",
    [("tpm2_changeeps",), ("tpm2_changepps",)]
    + [("tpm2_nvundefine", "-C", "p", index) for index in EK_CERTIFICATES]
    + [("tpm2_hierarchycontrol", "-C", "p", "ehEnable", "clear"), ("tpm2_changeauth", "-c", "p", "mine")],
    ids=" ".join,
)
def test_the_platform_hierarchy_is_closed_to_the_guest(trusted: Guest, argv: tuple[str, ...]) -> None:
    assert BAD_AUTH in trusted.fails(*argv)
    assert trusted.run("tpm2_nvread", "0x1c00002")


def test_an_ek_certificate_cannot_be_undefined_or_written_by_the_owner(trusted: Guest) -> None:
    before = trusted.run("tpm2_nvread", "0x1c00002")
    trusted.fails("tpm2_nvundefine", "-C", "o", "0x1c00002")
    trusted.fails("tpm2_nvwrite", "-C", "o", "0x1c00002", "-i", "/etc/hostname")
    assert trusted.run("tpm2_nvread", "0x1c00002") == before


def test_clear_by_the_owner_works_and_keeps_ek_and_certificates(manager: Manager) -> None:
    manager.add("a")
    guest = manager.guest("a")
    public = ek_public(guest)
    certificates = [guest.run("tpm2_nvread", index) for index in EK_CERTIFICATES]
    guest.define("0x1500001")
    guest.run("tpm2_changeauth", "-c", "o", "secret")
    guest.run("tpm2_clear", "-c", "l")
    assert ek_public(guest) == public
    assert [guest.run("tpm2_nvread", index) for index in EK_CERTIFICATES] == certificates
    assert "0x1500001" not in guest.run("tpm2_nvreadpublic").decode()
    guest.define("0x1500001")  # the owner's authorization is empty again


def test_the_platform_stays_closed_after_a_reset_and_after_a_restart(manager: Manager) -> None:
    manager.add("a")
    guest = manager.guest("a")
    manager.ctl("boot", "a", "2")
    assert BAD_AUTH in guest.fails("tpm2_changeeps")
    manager.ctl("stop", "a")
    manager.ctl("start", "a")
    assert BAD_AUTH in guest.fails("tpm2_changeeps")
    manager.stop()
    manager.start()
    assert BAD_AUTH in guest.fails("tpm2_changeeps")


@pytest.mark.parametrize("locality", [1, 2, 3, 4, 32, 255])
def test_a_locality_above_zero_is_refused_and_consumes_its_seq(session: Session, locality: int) -> None:
    seq = session.hello().next_seq
    answer = session.command(seq, tpm.get_random(8), locality)
    assert isinstance(answer, Response) and raw.rc(answer.response) == RC.TPM_RC_LOCALITY
    answer = session.command(seq + 1, tpm.get_random(8))
    assert isinstance(answer, Response) and raw.rc(answer.response) == 0


def test_a_command_sent_again_is_answered_again_but_executed_once(session: Session) -> None:
    seq = session.hello().next_seq
    before = count(session, seq)
    first = session.command(seq + 1, raw.nv_increment(COUNTER))
    assert [session.command(seq + 1, raw.nv_increment(COUNTER)) for _ in range(5)] == [first] * 5
    assert count(session, seq + 2) == before + 1


def test_a_command_sent_again_after_a_reconnect_of_its_session_is_executed_once(
    session: Session, counting: Manager
) -> None:
    seq = session.hello().next_seq
    before = count(session, seq)
    first = session.command(seq + 1, raw.nv_increment(COUNTER))
    session.close()
    with Session(counting.channel("a"), session.id) as again:
        welcome = again.hello()
        assert (welcome.resumed, welcome.next_seq) == (True, seq + 2)
        assert again.command(seq + 1, raw.nv_increment(COUNTER)) == first
        assert count(again, seq + 2) == before + 1


def test_a_command_sent_again_after_a_restart_of_the_manager_is_executed_once(
    session: Session, counting: Manager
) -> None:
    seq = session.hello().next_seq
    before = count(session, seq)
    first = session.command(seq + 1, raw.nv_increment(COUNTER))
    session.close()
    counting.stop()
    counting.start()
    with Session(counting.channel("a"), session.id) as again:
        assert again.hello().resumed
        assert again.command(seq + 1, raw.nv_increment(COUNTER)) == first
        assert count(again, seq + 2) == before + 1


def test_the_same_seq_with_other_bytes_ends_the_session(session: Session) -> None:
    seq = session.hello().next_seq
    before = count(session, seq)
    assert isinstance(session.command(seq, raw.nv_increment(COUNTER)), Error)
    assert count(session, session.hello().next_seq) == before


def test_a_command_whose_outcome_is_not_known_is_never_executed_again(session: Session, counting: Manager) -> None:
    seq = session.hello().next_seq
    before = count(session, seq)
    pid = counting.swtpm_pid("a")
    os.kill(pid, signal.SIGSTOP)
    session.send(Command(seq + 1, 0, raw.nv_increment(COUNTER)))
    assert session.silent(0.3)
    os.kill(pid, signal.SIGKILL)
    answer = session.receive()
    assert isinstance(answer, Response) and raw.rc(answer.response) == RC.TPM_RC_FAILURE
    counting.ctl("boot", "a", "2")
    assert isinstance(session.command(seq + 1, raw.nv_increment(COUNTER)), Error)  # a boot begins with HELLO
    welcome = session.hello()
    assert not welcome.resumed
    assert count(session, welcome.next_seq) == before


def count(session: Session, seq: int) -> int:
    """The counter's value."""
    answer = session.command(seq, tpm.nv_read(COUNTER, 0, 8))
    assert isinstance(answer, Response) and raw.rc(answer.response) == 0, answer
    return int.from_bytes(tpm.parameters(answer.response[tpm.HEADER_SIZE :])[2:10], "big")


@pytest.fixture
def trusted(manager: Manager) -> Guest:
    """A guest on its vTPM."""
    manager.add("a")
    return manager.guest("a")


@pytest.fixture
def counting(manager: Manager) -> Manager:
    """vTPM "a" has an NV counter that was incremented once."""
    manager.add("a")
    guest = manager.guest("a")
    guest.define(hex(COUNTER), 8, "nt=counter|ownerread|ownerwrite|authread|authwrite|no_da")
    guest.run("tpm2_nvincrement", hex(COUNTER), "-C", "o")
    return manager


@pytest.fixture
def session(counting: Manager) -> Iterator[Session]:
    """A front end by hand on that vTPM, HELLO not said yet."""
    with Session(counting.channel("a")) as session:
        yield session
