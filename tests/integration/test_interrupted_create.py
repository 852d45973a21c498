"""SIGKILL of the manager at any moment of ``create`` leaves the vTPM whole or not at all, and nothing half-made."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import pytest

from manager_vm.store.manifest import Step
from tests.integration import crashing
from tests.integration.conftest import Make
from tests.integration.harness import Manager, until

_LONGEST = 0.2  # seconds; creating a vTPM takes about half of it
_FIRST_START = 30.0  # seconds


def leftovers(manager: Manager) -> set[str]:
    """Files and run directories of the state directory, but for those that are always there."""
    always = {"lock", "keyslot", "manifest", "audit.log"}
    top = {path.name for path in manager.state.iterdir() if path.is_file()} - always
    return top | {path.name for part in ("blobs", "runs") for path in (manager.state / part).iterdir()}


def create_and_kill(manager: Manager, moment: Callable[[subprocess.Popen[bytes]], None]) -> None:
    """SIGKILL to the manager alone, at ``moment`` of a create; its swtpm has to end by itself."""
    process = manager.vtpmctl_later("create", "a")
    moment(process)
    manager.kill(swtpms=False)
    assert process.wait(10) in (0, 4)


def after_the_crash(manager: Manager) -> bool:
    """What must hold when the manager is back; whether the vTPM is there. It is removed again."""
    manager.start()
    listed = manager.ctl("list")
    if not listed:
        assert leftovers(manager) == set()
        assert manager.ctl("create", "a")["state"] == "off"
    (blob,) = leftovers(manager)
    assert blob.endswith(".blob")
    assert manager.ctl("attach", "a")["state"] == "running"
    assert manager.guest("a").run("tpm2_nvread", "0x1c00002")
    manager.ctl("detach", "a")
    manager.ctl("destroy", "a", "--yes")
    assert leftovers(manager) == set()
    return bool(listed)


def test_a_create_that_is_killed_at_any_time_leaves_all_or_nothing(manager: Manager) -> None:
    """Moments spread over the whole of a create; some find the vTPM made, some do not, or this proves little."""
    outcomes = set()
    began = time.monotonic()
    assert manager.vtpmctl_later("create", "a").wait(20) == 0  # as below: a process of its own
    longest = max(time.monotonic() - began, _LONGEST)
    manager.ctl("destroy", "a", "--yes")

    def kill_after(delay: float) -> None:
        create_and_kill(manager, lambda _: time.sleep(delay))
        outcomes.add(after_the_crash(manager))

    for step in range(10):
        kill_after(longest * (step + 1) / 8)
    for _ in range(5):  # the machine is slower, or faster, than it was at the first
        if len(outcomes) == 1:
            longest *= 2 if outcomes == {False} else 0.25
            kill_after(longest)
    assert outcomes == {True, False}


def test_a_create_that_is_killed_while_its_swtpm_works_leaves_nothing(manager: Manager) -> None:
    create_and_kill(manager, lambda _: until(manager.swtpms, what="a swtpm is there"))
    assert not after_the_crash(manager)


def test_a_create_that_is_killed_after_its_blob_was_written_leaves_all_or_nothing(manager: Manager) -> None:
    create_and_kill(manager, lambda _: until(lambda: list((manager.state / "blobs").iterdir()), what="a blob"))
    after_the_crash(manager)


@pytest.mark.parametrize("part", ["keyslot", "approvals/0.json", "manifest"])
def test_a_first_start_that_is_killed_is_repeated(make: Make, part: str) -> None:
    manager = make(fresh=True)
    manager.launch()
    until((manager.state / part).exists, _FIRST_START, f"{part} is written")
    manager.kill()
    manager.start()
    manager.add("a")
    assert manager.guest("a").run("tpm2_getrandom", "8")


@pytest.mark.parametrize("point", Step)
def test_a_first_start_that_is_killed_at_its_first_commit_is_repeated(make: Make, point: str) -> None:
    manager = make(fresh=True)
    armed, program = manager.directory / "armed", manager.program
    armed.touch()
    manager.program = crashing.program(manager.directory, point, armed)
    manager.launch()
    manager.killed()
    assert (manager.state / "manifest.pending").exists() is (point in {Step.WRITTEN, Step.ANCHORED})
    manager.program = program
    manager.start()
    manager.add("a")
    assert manager.guest("a").run("tpm2_getrandom", "8")


def test_two_creates_at_once_of_one_name_make_one_vtpm(manager: Manager) -> None:
    both = [manager.vtpmctl_later("create", "a") for _ in range(2)]
    assert sorted(process.wait(20) for process in both) == [0, 12]
    assert len(manager.ctl("list")) == len(leftovers(manager)) == 1


def test_many_creates_at_once_give_every_vtpm_its_own_uid(manager: Manager) -> None:
    processes = [manager.vtpmctl_later("create", f"v{number}") for number in range(6)]
    assert [process.wait(20) for process in processes] == [0] * 6
    assert len({manager.show(f"v{number}")["uid"] for number in range(6)}) == 6
