"""Park and resume: what an orderly stop keeps, what an unclean death keeps, and that no two resumes are alike."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable

import pytest

from guest_frontend.link import Link
from manager_vm.wire import tpm
from manager_vm.wire.channel import Command
from manager_vm.wire.tpm import RC
from tests.integration import raw
from tests.integration.conftest import Make
from tests.integration.harness import Guest, Manager, until
from tests.integration.raw import Session

ZERO = "00" * 32
KEY, INDEX = "0x81000001", "0x1500001"


def stop_and_start(manager: Manager) -> None:
    manager.ctl("stop", "a")
    assert manager.show("a")["state"] == "parked"
    assert manager.show("a")["pid"] is None
    manager.ctl("start", "a")


def restart_the_manager(manager: Manager) -> None:
    manager.stop()
    assert manager.swtpms() == []
    manager.start()


def stop_and_restart_the_manager_and_start(manager: Manager) -> None:
    manager.ctl("stop", "a")
    restart_the_manager(manager)
    assert manager.show("a")["state"] == "parked"
    manager.ctl("start", "a")


INTERRUPTIONS = (stop_and_start, restart_the_manager, stop_and_restart_the_manager_and_start)


class Possessions:
    """What a guest had before: something of every kind that a TPM keeps."""

    def __init__(self, guest: Guest, link: Link) -> None:
        self._guest, self._link = guest, link
        self.object = raw.handle_of(link.execute(raw.create_primary()))
        self.session = raw.handle_of(link.execute(raw.start_policy_session()))
        assert raw.rc(link.execute(raw.policy_command_code(self.session))) == 0
        assert raw.rc(link.execute(raw.pcr_extend(7))) == 0
        self.before = self.volatile()

    def volatile(self) -> list[bytes]:
        """Loaded object, loaded policy session with its digest, PCR 7 (as the raw link sees them)."""
        pcr = tpm.command(tpm.CC.TPM2_PCR_Read, bytes.fromhex("00000001000b03800000"))
        commands = (tpm.read_public(self.object), raw.policy_get_digest(self.session), pcr)
        return [self._link.execute(command) for command in commands]


@pytest.fixture
def owned(manager: Manager) -> Manager:
    """vTPM "a" has a persistent key and an NV index."""
    manager.add("a")
    guest = manager.guest("a")
    guest.run("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "p.ctx")
    guest.run("tpm2_evictcontrol", "-C", "o", "-c", "p.ctx", KEY)
    guest.define(INDEX)
    guest.write(INDEX, b"k" * 32)
    return manager


def permanent(guest: Guest) -> list[bytes]:
    """Persistent key, NV index, EK certificate."""
    return [guest.run("tpm2_readpublic", "-c", KEY), guest.read(INDEX), guest.run("tpm2_nvread", "0x1c00002")]


@pytest.mark.parametrize("interrupt", INTERRUPTIONS)
def test_an_orderly_stop_keeps_everything(owned: Manager, interrupt: Callable[[Manager], None]) -> None:
    before = permanent(owned.guest("a"))
    link = owned.link("a")
    try:
        had = Possessions(owned.guest("a"), link)
        assert [raw.rc(answer) for answer in had.before] == [0, 0, 0]
        for _ in range(2):
            interrupt(owned)
            assert had.volatile() == had.before
    finally:
        link.close()
    assert permanent(owned.guest("a")) == before


def test_saved_contexts_of_a_guest_stay_loadable(owned: Manager) -> None:
    guest = owned.guest("a")
    guest.run("tpm2_startauthsession", "--policy-session", "-S", "s.ctx")
    guest.run("tpm2_policycommandcode", "-S", "s.ctx", "TPM2_CC_Sign", "-L", "before.digest")
    restart_the_manager(owned)
    stop_and_start(owned)
    guest.run("tpm2_readpublic", "-c", "p.ctx")
    guest.run("tpm2_policypassword", "-S", "s.ctx", "-L", "after.digest")
    assert (guest.files / "before.digest").read_bytes() != (guest.files / "after.digest").read_bytes()
    guest.run("tpm2_flushcontext", "s.ctx")


def test_a_killed_manager_keeps_permanent_state_and_no_pcr_comes_back_before_the_reset(owned: Manager) -> None:
    guest = owned.guest("a")
    before = permanent(guest)
    assert guest.extend(7) != ZERO
    owned.kill()
    owned.start()
    assert owned.show("a")["state"] == "failed"
    assert "without parking" in owned.show("a")["reason"]
    assert "0x101" in guest.fails("tpm2_pcrextend", "7:sha256=" + "22" * 32)
    assert "0x101" in guest.fails("tpm2_pcrread", "sha256:7")
    owned.ctl("boot", "a", "2")
    assert guest.pcr(7) == ZERO
    assert permanent(guest) == before


def test_a_killed_manager_leaves_no_swtpm_behind(owned: Manager) -> None:
    assert len(owned.swtpms()) == 1
    owned.kill(swtpms=False)
    owned.start()
    assert owned.show("a")["state"] == "failed"


def test_a_manager_killed_with_a_command_under_way_leaves_no_swtpm_behind(owned: Manager) -> None:
    """The command is in swtpm's socket when the manager dies: swtpm 0.7.1 alone would spin for ever."""
    pid = owned.swtpm_pid("a")
    with Session(owned.channel("a")) as session:
        seq = session.hello().next_seq
        os.kill(pid, signal.SIGSTOP)
        session.send(Command(seq, 0, tpm.get_random(8)))
        assert session.silent(0.3)
        os.kill(owned.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    until(lambda: not owned.swtpms(), what="the swtpm has ended")
    owned.start()
    assert owned.show("a")["state"] == "failed"


def test_a_parked_vtpm_does_not_answer_and_its_guest_waits_without_harm(owned: Manager) -> None:
    link = owned.link("a")
    try:
        owned.ctl("stop", "a")
        (answer,) = link.submit(tpm.get_random(8)) or [b""]
        assert answer == b""
        owned.ctl("start", "a")
        while not answer:
            link.wait()
            answer = b"".join(link.step())
        assert raw.rc(answer) == RC.TPM_RC_SUCCESS
    finally:
        link.close()


def test_two_resumes_of_one_parked_state_give_different_random_numbers(make: Make) -> None:
    first, second = make().start(), make()
    first.add("a")
    first.guest("a").extend(7)
    first.ctl("detach", "a")
    first.stop()
    for part in ("state", "hwtpm", "../authority"):
        shutil.copytree(first.directory / part, second.directory / part)
    answers = []
    for manager in (first, second):
        manager.start()
        manager.ctl("attach", "a")
        link = manager.link("a")
        answers.append((manager.guest, link.execute(tpm.get_random(32)), link.execute(tpm.read_clock())[14:22]))
        link.close()
    assert first.guest("a").pcr(7) == second.guest("a").pcr(7) != ZERO
    assert answers[0][1] != answers[1][1]
