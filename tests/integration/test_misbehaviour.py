"""One guest or one swtpm that does not play along holds up nobody else, and no operator."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from manager_vm.errors import ProtocolError, UnreachableError
from manager_vm.wire import channel, framing, tpm
from manager_vm.wire.channel import Command, Ping, Response
from tests.integration import raw
from tests.integration.bystanders import Bystanders
from tests.integration.conftest import Make
from tests.integration.harness import Manager, Refused, until
from tests.integration.raw import Scribbler, Session

_PING = framing.encode(channel.to_frame(Ping(1)))


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def flood(session: Session) -> None:
    """Questions without end, no answer read, until the manager has had enough."""
    deadline = time.monotonic() + 20
    try:
        while time.monotonic() < deadline:
            session.send_bytes(_PING)
    except UnreachableError:
        return
    pytest.fail("the manager went on answering")


def test_a_guest_that_asks_and_never_reads_is_dropped_and_holds_up_nobody(manager: Manager) -> None:
    manager.add("a", "b")
    with Bystanders(manager, ["b"]) as guests, Session(manager.channel("a")) as session:
        session.hello()
        flood(session)
        guests.progress()
        with at_most(3):
            manager.ctl("detach", "a")
        manager.ctl("attach", "a")
    assert "channel left or stopped reading" in manager.log()
    assert manager.guest("a").run("tpm2_getrandom", "8")


def test_a_guest_that_reads_a_few_bytes_at_a_time_is_dropped_and_holds_up_nobody(manager: Manager) -> None:
    manager.add("a", "b")
    with Bystanders(manager, ["b"]), Session(manager.channel("a")) as session:
        session.hello()
        session.write_what_fits([Ping(1)] * 3000)
        reader = threading.Thread(target=read_slowly, args=(session,))
        reader.start()
        time.sleep(0.5)
        with at_most(4):
            manager.ctl("detach", "a")
        reader.join()
    began = time.monotonic()
    manager.stop()
    assert time.monotonic() - began < 10


def read_slowly(session: Session) -> None:
    """24 bytes every 0.4 s, and one more question each time."""
    deadline = time.monotonic() + 5
    with suppress(UnreachableError, ProtocolError):
        while time.monotonic() < deadline:
            session.take(24)
            session.write_what_fits([Ping(1)])
            time.sleep(0.4)


def test_a_channel_with_garbled_indices_is_detached_at_once(manager: Manager) -> None:
    manager.add("a")
    scribbler = Scribbler(manager.channel("a"))
    scribbler.word(16, 77)
    until(scribbler.open, what="the ring is open")
    scribbler.word(48, 0x7FFFFFFF)
    assert scribbler.closed_by_peer()
    with at_most(3):
        manager.ctl("detach", "a")
    scribbler.close()


def test_garbage_all_over_the_shared_memory_harms_nobody(manager: Manager) -> None:
    manager.add("a", "b")
    with Bystanders(manager, ["b"]):
        for _ in range(50):
            scribbler = Scribbler(manager.channel("a"))
            scribbler.memory[:] = os.urandom(len(scribbler.memory))
            scribbler.kick()
            scribbler.close()
    assert manager.guest("a").run("tpm2_getrandom", "8")


@pytest.fixture
def impatient(make: Make) -> Manager:
    """A manager with a deadline of 2 s per command, vTPMs "a" and "b"."""
    manager = make({"command_deadline": 2.0}).start()
    manager.add("a", "b")
    return manager


def test_a_hanging_swtpm_is_killed_at_the_deadline(impatient: Manager) -> None:
    pid = impatient.swtpm_pid("a")
    with Bystanders(impatient, ["b"]), Session(impatient.channel("a")) as session:
        seq = session.hello().next_seq
        os.kill(pid, signal.SIGSTOP)
        session.send(Command(seq, 0, tpm.get_random(8)))
        assert session.silent(1.0)
        answer = session.receive(3.0)
        assert isinstance(answer, Response) and raw.rc(answer.response) == 0x101
    until(lambda: "its swtpm process died" in impatient.show("a")["reason"], what="the death is recorded")
    assert not os.path.exists(f"/proc/{pid}")
    assert "a command took longer than 2 s; swtpm was killed" in impatient.log()
    impatient.ctl("boot", "a", "2")
    assert impatient.guest("a").run("tpm2_getrandom", "8")


def asks(pid: int) -> bool:
    """Whether a vtpmctl has its connection to the manager."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            if os.readlink(path).startswith("socket:"):
                return True
    return False


def test_while_a_swtpm_hangs_the_operator_is_answered_about_all_others(make: Make) -> None:
    manager = make({"command_deadline": 6.0}).start()
    manager.add("a", "b", "c")
    pid = manager.swtpm_pid("a")
    with Bystanders(manager, ["b"]), Session(manager.channel("a")) as session:
        seq = session.hello().next_seq
        os.kill(pid, signal.SIGSTOP)
        session.send(Command(seq, 0, tpm.get_random(8)))
        assert session.silent(0.3)
        detaching = manager.vtpmctl_later("detach", "a")
        until(lambda: asks(detaching.pid), what="the operator asks")
        time.sleep(0.3)
        with at_most(3):
            assert manager.show("a")["state"] == "running"
            assert len(manager.ctl("list")) == 3
            manager.ctl("detach", "c")
            manager.ctl("attach", "c")
            with pytest.raises(Refused, match="is being detached") as refused:
                manager.ctl("attach", "a")
        assert refused.value.code == 12
        assert detaching.wait(10) == 0
    until(lambda: manager.show("a")["state"] == "failed", what="the deadline has passed")
    assert manager.ctl("attach", "a", "--boot", "2")["state"] == "running"


def test_stopping_a_hanging_swtpm_ends_it_and_says_so(impatient: Manager) -> None:
    pid = impatient.swtpm_pid("a")
    os.kill(pid, signal.SIGSTOP)
    with Bystanders(impatient, ["b"]), pytest.raises(Refused, match="swtpm does not answer GET_STATEBLOB") as refused:
        impatient.ctl("stop", "a")
    assert refused.value.code == 14
    until(lambda: impatient.show("a")["state"] == "failed", what="the death is recorded")
    assert not os.path.exists(f"/proc/{pid}")
    assert "0x101" in impatient.guest("a").fails("tpm2_getrandom", "8")


def test_the_manager_ends_although_a_swtpm_hangs_and_leaves_no_process(impatient: Manager) -> None:
    os.kill(impatient.swtpm_pid("a"), signal.SIGSTOP)
    impatient.stop()
    assert impatient.swtpms() == []
    impatient.start()
    states = {row["name"]: row["state"] for row in impatient.ctl("list")}
    assert states == {"a": "failed", "b": "running"}
