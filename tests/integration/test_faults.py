"""Faults at the worst moment: what is durable stays true, what is healthy stays healthy, the manager always ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from manager_vm.wire import tpm
from manager_vm.wire.channel import Command, Response
from tests.integration import raw
from tests.integration.conftest import Make
from tests.integration.harness import ROOT, Manager, Refused, environment, until
from tests.integration.raw import Session
from tests.integration.test_bad_input import fill

ZERO = "00" * 32


def state_file(manager: Manager) -> Path:
    """swtpm's state file of the only run there is."""
    (found,) = (manager.state / "runs").rglob("tpm2-00.permall")
    return found


def hang(manager: Manager, name: str, channel: str = "") -> Session:
    """A guest whose swtpm does not answer its command."""
    session = Session(channel or manager.channel(name))
    seq = session.hello().next_seq
    os.kill(manager.swtpm_pid(name), signal.SIGSTOP)
    session.send(Command(seq, 0, tpm.get_random(8)))
    time.sleep(0.2)
    return session


def test_a_power_on_that_cannot_be_committed_never_shows_zero_pcrs_to_the_boot_before(make: Make) -> None:
    manager = make({"own_host": False}).start()
    manager.ctl("create", "a")
    channel = f"unix:{manager.directory}/a.sock"
    manager.ctl("attach", "a", channel, "--boot", "1")
    with Session(channel) as session:
        seq = session.hello().next_seq
        assert raw.rc(session.command(seq, raw.pcr_extend(7)).response) == 0  # type: ignore[union-attr]
        until(lambda: not manager.show("a")["live"], what="the guest is silent")
        (manager.state / "manifest.pending").mkdir()
        with pytest.raises(Refused):
            manager.ctl("start", "a", "--power-on")
        (manager.state / "manifest.pending").rmdir()
        assert not manager.show("a")["boot_named"]
        until(lambda: manager.show("a")["state"] == "failed", what="the reset process counts as dead")
    manager.ctl("boot", "a", "2")
    assert manager.show("a")["state"] == "running"


def test_a_power_on_by_the_operator_is_never_taken_for_the_boot_that_the_host_reports_next(make: Make) -> None:
    manager = make({"own_host": False}).start()
    manager.ctl("create", "a")
    channel = f"unix:{manager.directory}/a.sock"
    manager.ctl("attach", "a", channel, "--boot", "1")
    with Session(channel) as session:
        session.hello()
        until(lambda: not manager.show("a")["live"], what="the guest is silent")
        operators = manager.ctl("start", "a", "--power-on")["boot"]
        learnt = session.hello().next_seq
        session.write_what_fits([Command(learnt, 0, raw.pcr_extend(16))] * 500)
        with pytest.raises(Refused):
            manager.ctl("boot", "a", "2")
        manager.ctl("boot", "a", str(operators + 1))
        time.sleep(0.3)
    with Session(channel) as session:
        answer = session.command(session.hello().next_seq, raw.pcr_read(16))
        assert isinstance(answer, Response) and answer.response[-32:] == bytes(32)


def test_a_late_report_of_an_older_boot_does_not_take_the_running_one_away(make: Make) -> None:
    manager = make({"own_host": False, "command_deadline": 20.0}).start()
    manager.ctl("create", "a")
    channel = f"unix:{manager.directory}/a.sock"
    manager.ctl("attach", "a", channel, "--boot", "1")
    with hang(manager, "a", channel):
        reports = [manager.vtpmctl_later("boot", "a", boot) for boot in ("3", "2", "3")]
        time.sleep(1.5)
        os.kill(manager.swtpm_pid("a"), signal.SIGCONT)
        codes = sorted(report.wait(20) for report in reports)
    assert codes in ([0, 0, 0], [0, 0, 13])  # whichever came first
    shown = manager.show("a")
    assert shown["boot"] == 3 and shown["boot_named"]


def test_a_quarantined_vtpm_stays_quarantined(make: Make) -> None:
    manager = make({"command_deadline": 2.0}).start()
    manager.add("a")
    os.kill(manager.swtpm_pid("a"), signal.SIGSTOP)
    os.truncate(state_file(manager), 100)
    with pytest.raises(Refused) as refused:
        manager.ctl("boot", "a", "2")
    assert refused.value.code == 6
    time.sleep(1.5)  # the watch looks twice a second
    assert manager.show("a")["state"] == "quarantined"
    manager.stop()
    manager.start()
    assert manager.show("a")["state"] == "quarantined"


@pytest.fixture
def eight_mib(make: Make) -> Manager:
    """A running manager whose state directory is a file system of 8 MiB, with vTPM "a" attached."""
    manager = make()
    manager.state.mkdir(mode=0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=711", "vtpm-test", str(manager.state)], check=True)
    manager.start()
    manager.add("a")
    return manager


@pytest.mark.parametrize("pages", range(5))
def test_a_disk_too_full_for_a_power_on_is_not_taken_for_damage(eight_mib: Manager, pages: int) -> None:
    os.kill(eight_mib.swtpm_pid("a"), signal.SIGKILL)
    until(lambda: eight_mib.show("a")["state"] == "failed", what="the death is recorded")
    filler = fill(eight_mib.state, pages * 4096)
    eight_mib.vtpmctl("boot", "a", "2")
    assert eight_mib.show("a")["state"] != "quarantined"
    filler.unlink()
    eight_mib.ctl("boot", "a", "3")
    assert eight_mib.guest("a").pcr(7) == ZERO


def test_a_swtpm_that_does_not_start_once_is_not_taken_for_damage(make: Make, tmp_path: Path) -> None:
    broken, wrapper = tmp_path / "broken", tmp_path / "swtpm"
    wrapper.write_text(f'#!/bin/sh\n[ -e {broken} ] && [ "$3" != --print-capabilities ] && exit 1\nexec swtpm "$@"\n')
    wrapper.chmod(0o755)
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(0o755)
    manager = make({"swtpm": str(wrapper)}).start()
    manager.add("a")
    os.kill(manager.swtpm_pid("a"), signal.SIGKILL)
    until(lambda: manager.show("a")["state"] == "failed", what="the death is recorded")
    broken.touch()
    with pytest.raises(Refused) as refused:
        manager.ctl("boot", "a", "2")
    assert refused.value.code == 14
    broken.unlink()
    manager.ctl("boot", "a", "3")
    assert manager.show("a")["state"] == "running"


def test_one_hanging_guest_at_the_managers_end_costs_a_busy_one_nothing(make: Make) -> None:
    manager = make({"command_deadline": 4.0}).start()
    manager.add("a", "b")
    codes: list[int] = []
    enough = threading.Event()

    def work() -> None:  # the command that the end met is answered by the next manager
        link = manager.link("b")
        while codes[-1:] in ([], [0]) and not enough.is_set():
            codes.append(raw.rc(link.execute(tpm.get_random(8))))
        link.close()

    with hang(manager, "a"):
        worker = threading.Thread(target=work)
        worker.start()
        time.sleep(0.5)
        manager.stop()
    before = len(codes)
    manager.start()
    until(lambda: len(codes) > before or not worker.is_alive(), what="the busy one's command is answered")
    enough.set()
    worker.join()
    assert set(codes) <= {0, 0x922} and codes.count(0) > 10
    assert [row["state"] for row in manager.ctl("list")] == ["failed", "running"]


@pytest.mark.parametrize("signals", [(signal.SIGCONT, signal.SIGTERM), (signal.SIGTERM, signal.SIGCONT)])
def test_a_manager_that_was_stopped_by_job_control_still_ends(manager: Manager, signals: tuple[int, ...]) -> None:
    manager.add("a")
    os.kill(manager.pid, signal.SIGSTOP)
    time.sleep(0.1)
    for each in signals:
        os.kill(manager.pid, each)
    until(lambda: not manager.running, what="the manager has ended")


def test_too_many_clients_at_once_are_over_when_they_have_left(make: Make) -> None:
    manager = make(prefix=("prlimit", "--nofile=70", "--")).start()
    manager.ctl("create", "a")
    clients = []
    for _ in range(90):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(0.5)
        try:
            client.connect(f"{manager.directory}/admin.sock")
        except OSError:
            client.close()
            break
        clients.append(client)
    time.sleep(0.5)
    for client in clients:
        client.close()
    assert [row["name"] for row in manager.ctl("list")] == ["a"]


def test_a_request_under_way_at_the_end_is_finished_before_everything_is_parked(make: Make) -> None:
    manager = make({"command_deadline": 4.0}).start()
    manager.add("a", "h")
    manager.ctl("stop", "a")
    with hang(manager, "h"):
        later = manager.vtpmctl_later("info", "h")  # waits for the command that hangs
        starting = manager.vtpmctl_later("start", "a")
        time.sleep(0.3)
        manager.stop()
    later.wait(10)
    starting.wait(10)
    manager.start()
    assert manager.show("a")["state"] in ("running", "parked")


def test_a_channel_is_not_made_where_something_else_stands(manager: Manager) -> None:
    manager.add("a")
    manager.ctl("create", "b")
    key = manager.state / "keyslot"
    before = key.read_bytes()
    with pytest.raises(Refused) as refused:
        manager.ctl("attach", "b", f"unix:{key}")
    assert refused.value.code == 8
    assert key.read_bytes() == before


def test_a_directory_that_another_user_made_is_refused_to_root(make: Make) -> None:
    manager = make(fresh=True)
    for directory in (manager.directory.parent, manager.directory):  # its authority is made beside it
        os.chown(directory, 65534, 65534)
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", *command(manager)]
    env = environment(manager.directory, PYTHONDONTWRITEBYTECODE="1")
    with subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None and child.stdout.readline() == b"READY\n"
        manager.ctl("--key", str(manager.authority / "operator.key"), "create", "a")
        child.send_signal(signal.SIGTERM)
    code, text = manager.refuse_to_start()
    assert code == 3 and "was made by a manager that was not root" in text


def command(manager: Manager) -> list[str]:
    """``dev`` on the manager's directory."""
    return [sys.executable, "-m", "manager_vm", "dev", str(manager.directory)]


def test_the_directory_that_dev_is_given_keeps_its_mode(make: Make) -> None:
    manager = make()
    manager.directory.chmod(0o1777)
    manager.start()
    assert manager.directory.stat().st_mode & 0o7777 == 0o1777
    assert manager.state.stat().st_mode & 0o7777 == 0o711
