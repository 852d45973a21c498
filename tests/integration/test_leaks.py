"""What comes and goes leaves no descriptor, no thread and no memory behind."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from manager_vm.ctl.client import Client
from manager_vm.wire import tpm
from tests.integration import raw
from tests.integration.harness import Manager
from tests.integration.hostile import send_garbage

_WARM = 60  # rounds before the first look: allocators and caches have their size by then
_GROWTH_KIB = 1536  # of VmRSS: at most 0.77 KiB a round in the full test, an endpoint's memory alone has 128
_FIELDS = ("VmRSS", "Threads")


def footprint(manager: Manager) -> tuple[int, int, int]:
    """(open descriptors, threads, resident KiB) of the manager, once the first two have settled."""
    before = _look(manager)
    while True:
        time.sleep(0.2)
        now = _look(manager)
        if now[:2] == before[:2]:
            return now
        before = now


def _look(manager: Manager) -> tuple[int, int, int]:
    proc = Path(f"/proc/{manager.pid}")
    lines = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    return len(os.listdir(proc / "fd")), int(lines["Threads"]), int(lines["VmRSS"].split()[0])


def assert_no_growth(manager: Manager, before: tuple[int, int, int]) -> None:
    """Descriptors and threads end where they were; memory may grow by the stated bound."""
    now = footprint(manager)
    assert now[:2] == before[:2]
    assert now[2] - before[2] <= _GROWTH_KIB


def attach_and_detach(manager: Manager, rounds: int) -> None:
    """attach, a guest's command on every eighth round, detach."""
    with Client.connect(manager.directory / "host.sock") as host:
        for number in range(rounds):
            host.call("attach", name="a")
            if number % 8 == 0:
                link = manager.link("a")
                assert raw.rc(link.execute(tpm.get_random(8))) == 0
                link.close()
            host.call("detach", name="a")


def verbs(manager: Manager, rounds: int, *names: str) -> None:
    """These verbs about vTPM "a", in turn."""
    with manager.admin() as admin:
        for verb in names * rounds:
            admin.call(verb, name="a")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rounds", [200, pytest.param(2_000, marks=pytest.mark.full)])
def test_attach_and_detach_leave_nothing_behind(manager: Manager, rounds: int) -> None:
    manager.ctl("create", "a")
    attach_and_detach(manager, _WARM)
    before = footprint(manager)
    attach_and_detach(manager, rounds)
    assert_no_growth(manager, before)
    assert [path.name for path in (manager.directory / "channels").iterdir()] == []


def test_stop_and_start_leave_nothing_behind(manager: Manager) -> None:
    manager.add("a")
    verbs(manager, 10, "stop", "start")
    before = footprint(manager)
    verbs(manager, 50, "stop", "start")
    assert_no_growth(manager, before)
    assert len(list((manager.state / "runs").iterdir())) == len(list((manager.state / "blobs").iterdir())) == 1


def test_create_and_destroy_leave_nothing_behind(manager: Manager) -> None:
    verbs(manager, 5, "create", "destroy")
    before = footprint(manager)
    verbs(manager, 25, "create", "destroy")
    assert_no_growth(manager, before)
    assert list((manager.state / "runs").iterdir()) == list((manager.state / "blobs").iterdir()) == []


def test_front_ends_that_break_the_rules_leave_nothing_behind(manager: Manager) -> None:
    manager.add("a")
    send_garbage(manager.channel("a"), 1_000, random.Random(2))
    before = footprint(manager)
    send_garbage(manager.channel("a"), 3_000, random.Random(3))
    assert_no_growth(manager, before)
