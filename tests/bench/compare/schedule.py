"""All runs in their order, as long as there is time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from manager_vm.errors import VtpmManagerError
from tests.bench.compare.result import EVACUATE, Figures, Job, Outcome

_FIRST = {"stop": 90.0, EVACUATE: 30.0}  # seconds for a run of which nothing is known
_OTHER = 45.0
_SHORT = 300  # characters of a reason


class Schedule:
    """``run``: does one job. ``prepare``: seconds for what a cell still needs. ``budget``: seconds for all.

    ``clock``: seconds.
    """

    def __init__(
        self,
        run: Callable[[Job], Figures],
        prepare: Callable[[int, int], float],
        budget: float,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._prepare, self._budget, self._tell, self._clock = run, prepare, budget, tell, clock
        self._took: dict[tuple[str, int], tuple[int, float]] = {}  # method, limit -> of the newest: vTPMs, seconds

    def carry_out(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Each is done, or failed with a reason, or was left out: from the first on that does not fit in the budget."""
        found: list[Outcome] = []
        began, over = self._clock(), False
        for number, job in enumerate(jobs):
            past = self._clock() - began
            over = over or past + self._guess(job) > self._budget
            if over:
                reason = f"left out: the budget of {self._budget / 60:g} minutes would not do"
                found.append(Outcome(job, reason=reason, left_out=True))
                continue
            rest = min(self.estimate(jobs[number:]), self._budget - past)
            self._tell(f"{number + 1}/{len(jobs)}: {job.told()}; about {rest / 60:.0f} min left")
            found.append(self._one(job))
        return found

    def estimate(self, jobs: Iterable[Job]) -> float:
        """Seconds for all of these, about."""
        total, cells = 0.0, dict[int, int]()
        for job in jobs:
            waits = self._prepare(*job.cell) if job.count > cells.get(job.memory, 0) else 0.0
            before = self._prepare(job.memory, cells[job.memory]) if waits and job.memory in cells else 0.0
            total += self._bare(job) + max(waits - before, 0.0)
            cells[job.memory] = max(job.count, cells.get(job.memory, 0))
        return total

    def _one(self, job: Job) -> Outcome:
        waits, start = self._prepare(*job.cell), self._clock()
        try:
            figures = self._run(job)
        except (VtpmManagerError, OSError) as error:
            reason = " ".join(str(error).split())[:_SHORT] or type(error).__name__
            self._tell(f"  fails: {reason}")
            return Outcome(job, reason=reason)
        took = self._clock() - start
        self._took[job.method, job.limit] = job.count, max(took - waits, 1.0)
        self._tell(f"  total {figures.total:.1f} s, downtime {figures.downtime:.2f} s, {figures.sent / 1e6:.1f} MB")
        return Outcome(job, figures)

    def _guess(self, job: Job) -> float:
        return self._bare(job) + self._prepare(*job.cell)

    def _bare(self, job: Job) -> float:
        """Without what the cell needs first."""
        known = self._took.get((job.method, job.limit)) or self._took.get((job.method, 0))
        if known is None:
            return _FIRST.get(job.method, _OTHER) + (job.count if job.method == EVACUATE else 0)
        count, took = known
        return took * max(job.count / count, 1.0) if job.method == EVACUATE else took
