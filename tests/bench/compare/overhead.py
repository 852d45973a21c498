"""What the tunnel's encryption costs: each cipher against none in the same round, and whether that is little enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from manager_vm.protocol.tunnel import Suite
from tests.bench.compare import result
from tests.bench.compare.result import SUITES, Figures, Outcome

AIM = 10.0  # per cent, at most


class Verdict(StrEnum):
    """About the aim."""

    MET = "met"
    MISSED = "missed"
    NOISY = "not decided: the noise between rounds is larger than that"
    BOTH = "not decided: rounds lie on both sides of it"
    ONE = "not decided: one round says nothing about the noise"


@dataclass(frozen=True, slots=True)
class Overhead:
    """Of one suite against none, per cent, round by round."""

    suite: str
    total: tuple[float, ...]
    downtime: tuple[float, ...]


def overheads(outcomes: Sequence[Outcome]) -> list[Overhead]:
    """Of the suites that were measured in a round in which "none" was."""
    rounds: dict[int, dict[str, Figures]] = {}
    for each in outcomes:
        if each.job.part == SUITES and each.figures:
            rounds.setdefault(each.job.round, {})[each.job.suite] = each.figures
    found = []
    for suite in (str(Suite.AES), str(Suite.CHACHA)):
        pairs = [(of[suite], of[str(Suite.NONE)]) for of in rounds.values() if suite in of and str(Suite.NONE) in of]
        if pairs:
            total = tuple((mine.total / base.total - 1) * 100 for mine, base in pairs)
            downtime = tuple((mine.downtime / base.downtime - 1) * 100 for mine, base in pairs)
            found.append(Overhead(suite, total, downtime))
    return found


def judge(values: Sequence[float]) -> Verdict:
    """What is written is judged: tenths of a per cent. The aim is met if no round misses it, and missed if all do."""
    rounded = [round(value, 1) for value in values]
    low, high = min(rounded), max(rounded)
    if len(rounded) < 2:
        return Verdict.ONE
    if low > AIM:
        return Verdict.MISSED
    if high <= AIM:
        return Verdict.MET
    return Verdict.NOISY if high - low > AIM else Verdict.BOTH


def spread(values: Sequence[float]) -> str:
    """The median and the range of percentages."""
    return f"{result.middle_of(values):+.1f} % (rounds: {min(values):+.1f} to {max(values):+.1f} %)"


def told(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """A sentence for each cipher."""
    for each in overheads(outcomes):
        parts = [
            f"{name} {spread(values)}, aim of {AIM:g} % {judge(values)}"
            for name, values in (("total", each.total), ("downtime", each.downtime))
        ]
        yield f"Encryption of the tunnel, {each.suite} against none (precopy): {'; '.join(parts)}."
