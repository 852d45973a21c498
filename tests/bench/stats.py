"""Figures of a benchmark. Samples are microseconds; what is compared was measured in the same run, in turns.

Noise of the machine comes and goes in seconds, rounds take less: the difference and the ratio of two paths are taken
round by round, and their median over the rounds counts. What slows a whole round down slows both paths down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """Of ``count`` samples: the smallest, three quantiles."""

    count: int
    minimum: float
    p10: float
    median: float
    p90: float


@dataclass(frozen=True, slots=True)
class Series:
    """All samples of one command on one path, round by round."""

    path: str
    command: str
    rounds: tuple[tuple[float, ...], ...]

    def summary(self) -> Summary:
        """Of all rounds together."""
        return summarise(sample for each in self.rounds for sample in each)

    def medians(self) -> tuple[float, ...]:
        """One for each round."""
        return tuple(quantile(sorted(each), 0.5) for each in self.rounds)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One command on ``path`` against ``base``. ``low`` and ``high``: p10 and p90 of the rounds' ratios."""

    path: str
    base: str
    command: str
    difference: float
    ratio: float
    low: float
    high: float


class Samples:
    """Collects rounds; ``series`` gives what came together."""

    def __init__(self) -> None:
        self._rounds: dict[tuple[str, str], list[tuple[float, ...]]] = {}

    def add(self, path: str, measured: dict[str, list[float]]) -> None:
        """One round of one path: command -> samples."""
        for command, samples in measured.items():
            self._rounds.setdefault((path, command), []).append(tuple(samples))

    def series(self) -> tuple[Series, ...]:
        """In the order in which paths and commands were first measured."""
        return tuple(Series(path, command, tuple(rounds)) for (path, command), rounds in self._rounds.items())


def quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile (0 to 1) of sorted values, interpolated linearly; ValueError if there are none."""
    if not ordered:
        raise ValueError("no samples")
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summarise(samples: Iterable[float]) -> Summary:
    """ValueError if there are none."""
    ordered = sorted(samples)
    p10, median, p90 = (quantile(ordered, q) for q in (0.1, 0.5, 0.9))
    return Summary(len(ordered), ordered[0], p10, median, p90)


def compare(series: Series, base: Series) -> Comparison:
    """Round by round; both have the same number of rounds, of the same command."""
    pairs = list(zip(series.medians(), base.medians(), strict=True))
    ratios = sorted(mine / other for mine, other in pairs)
    difference = quantile(sorted(mine - other for mine, other in pairs), 0.5)
    low, middle, high = (quantile(ratios, q) for q in (0.1, 0.5, 0.9))
    return Comparison(series.path, base.path, series.command, difference, middle, low, high)


def find(series: Iterable[Series], path: str, command: str) -> Series:
    """KeyError if it was not measured."""
    for each in series:
        if (each.path, each.command) == (path, command):
            return each
    raise KeyError(f"{command} was not measured on {path}")
