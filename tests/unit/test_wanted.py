"""server.wanted: what a command for a vTPM that does not run sets off."""

from __future__ import annotations

import logging
import threading

import pytest

from manager_vm.errors import StateError
from manager_vm.server.wanted import Wanted


def test_each_vtpm_is_dealt_with_once_at_a_time_and_none_waits_for_another() -> None:
    wanted, begun, go = Wanted(), threading.Semaphore(0), threading.Event()
    seen: list[str] = []

    def handle(name: str) -> None:
        seen.append(name)
        begun.release()
        assert go.wait(10)

    wanted.serve(lambda name: name != "parked", handle)
    for name in ("slow", "slow", "parked", "other"):
        wanted.ask(name)
    assert begun.acquire(timeout=10) and begun.acquire(timeout=10)
    assert sorted(seen) == ["other", "slow"]
    go.set()
    wanted.close()
    assert sorted(seen) == ["other", "slow"]
    wanted.ask("late")
    assert "late" not in seen


def test_nothing_is_done_before_anybody_serves() -> None:
    Wanted().ask("a")


def test_what_fails_again_and_again_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    wanted, done = Wanted(), threading.Semaphore(0)

    def handle(name: str) -> None:
        done.release()
        raise StateError("the other side does not answer")

    wanted.serve(lambda name: True, handle)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            wanted.ask("a")
            assert done.acquire(timeout=10)
            while "a" in wanted._threads:
                pass
    assert [record.getMessage() for record in caplog.records] == ["vTPM a: the other side does not answer"]
