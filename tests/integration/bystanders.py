"""Guests that go about their business while something bad happens to another one."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType

from manager_vm.wire import tpm
from tests.integration.harness import Manager
from tests.integration.raw import rc

_PAUSE = 0.02  # seconds between commands of one guest


class Bystanders:
    """One thread and one front end per vTPM: GetRandom all the time. On leaving: everyone was answered, in time."""

    def __init__(self, manager: Manager, names: Sequence[str], within: float = 2.0) -> None:
        self._manager, self._within = manager, within
        self._stop = threading.Event()
        self.answered = dict.fromkeys(names, 0)
        self.slowest = 0.0
        self.wrong: list[str] = []
        self._threads = [threading.Thread(target=self._loop, args=(name,)) for name in names]

    def _loop(self, name: str) -> None:
        link = self._manager.link(name)
        try:
            while not self._stop.wait(_PAUSE):
                began = time.monotonic()
                code = rc(link.execute(tpm.get_random(8)))
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.answered[name] += 1
                if code:
                    self.wrong.append(f"{name}: {code:#x}")
        finally:
            link.close()

    def progress(self) -> None:
        """Everyone is answered at least twice more from now on."""
        goal = {name: count + 2 for name, count in self.answered.items()}
        deadline = time.monotonic() + 10 * self._within
        while any(self.answered[name] < count for name, count in goal.items()):
            assert time.monotonic() < deadline, f"somebody waits: {self.answered}"
            time.sleep(0.01)

    def __enter__(self) -> Bystanders:
        for thread in self._threads:
            thread.start()
        self.progress()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.progress()
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()
        if kind is None:
            assert self.wrong == []
            assert self.slowest < self._within
