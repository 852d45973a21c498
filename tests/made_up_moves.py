"""Outcomes of a comparison of moves that never took place, and pages made of them."""

from __future__ import annotations

from collections.abc import Sequence

from manager_vm.protocol.tunnel import Suite
from tests.bench.compare import findings, report, result
from tests.bench.compare.result import EVACUATE, GRID, METHODS, SUITES, Figures, Outcome

_WHOLE_TOTAL = {"stop": 80.0, "suspend": 14.0, "precopy": 20.0}
_SLOWER = {str(Suite.NONE): 1.0, str(Suite.AES): 1.05, str(Suite.CHACHA): 1.10}


def figures(method: str, count: int, scale: float = 1.0) -> Figures:
    """A whole manager takes always the same, a vTPM alone two seconds."""
    tpm = {"Quote": 2, "Create": 1}
    if method == EVACUATE:
        pauses = tuple(0.5 + number / 100 for number in range(count))
        return Figures(
            2.0 * count * scale,
            0.5,
            0,
            40_000 * count,
            3.0 * count,
            pauses,
            tpm,
            tpm,
            0,
            6,
            least=tuple(each / 2 for each in pauses),
        )
    total = _WHOLE_TOTAL[method] * scale
    return Figures(total, total / 4, 150_000_000, 9_000, 20.0, (), tpm, tpm, 0, 6, {"agree": 0.0, "finish": total / 2})


def outcomes(counts: Sequence[int] = (1, 10, 50), methods: Sequence[str] = METHODS) -> list[Outcome]:
    """A whole run in which one cell did not fit, and some were left out."""
    jobs = result.plan(counts, [512, 1024], methods, 3, [12_500_000])
    found = []
    for job in jobs:
        scale = _SLOWER[job.suite] if job.part == SUITES else 3.0 if job.limit else 1.0
        if job.part == GRID and job.cell == (512, 50):
            found.append(Outcome(job, reason="31 of 50 <vTPMs> could be made"))
        elif job.part == GRID and job.cell == (1024, 50) and job.method == "stop":
            found.append(Outcome(job, reason="left out: the budget", left_out=True))
        else:
            found.append(Outcome(job, figures(job.method, job.count, scale)))
    return found


def page(found: Sequence[Outcome], about: str = "# Method\n\nwords", name: str = "compare") -> str:
    """What is written about them."""
    return report.page(name, "A & B", about, {"cpu": "x < y"}, found, findings.conclusions(found))
