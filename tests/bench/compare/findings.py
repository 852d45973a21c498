"""What follows from the figures, in sentences. All numbers in them are measured, or lie between two that are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.bench.compare import overhead, result
from tests.bench.compare.result import BANDWIDTH, DELAY, EVACUATE, GRID, WHOLE, Figures, Outcome

Of = Callable[[int, Figures], float]

WAIT = "longest wait of one vTPM"

# what is compared: name, value, how it is written
QUANTITIES: tuple[tuple[str, Of, Callable[[float], str]], ...] = (
    ("total time", lambda count, each: each.total, lambda value: f"{value:.1f} s"),
    (WAIT, lambda count, each: each.longest, lambda value: f"{value:.2f} s"),
    ("waiting of all vTPMs together", lambda count, each: each.waited(count), lambda value: f"{value:.1f} s"),
    ("bytes sent", lambda count, each: float(each.sent), lambda value: f"{value / 1e6:.2f} MB"),
    ("processor time", lambda count, each: each.cpu, lambda value: f"{value:.1f} s"),
    ("longest wait, evacuate's lower bound", lambda count, each: each.surely, lambda value: f"{value:.2f} s"),
    ("commands to hardware TPMs", lambda count, each: float(each.commands), lambda value: f"{value:.0f}"),
)
_MAIN = ("total time", WAIT, "bytes sent")  # the page's table has all


@dataclass(frozen=True, slots=True)
class Crossing:
    """Two methods change places between ``low`` and ``high`` vTPMs, on a straight line at ``at``.

    ``before``: the first method is smaller at ``low``.
    """

    low: int
    high: int
    at: float
    before: bool


def crossings(one: Mapping[int, float], other: Mapping[int, float]) -> list[Crossing]:
    """All; none if neither is ever smaller where the other was before, as far as both were measured."""
    gaps = {count: one[count] - other[count] for count in sorted(one.keys() & other.keys())}
    found = []
    for low, high in pairwise(count for count, gap in gaps.items() if gap):
        left, right = gaps[low], gaps[high]
        if left * right < 0:
            equal = [count for count in gaps if low < count < high]
            at = equal[0] if equal else low + (high - low) * left / (left - right)
            found.append(Crossing(low, high, at, left < 0))
    return found


def conclusions(outcomes: Sequence[Outcome]) -> list[str]:
    """In the order of the page."""
    return [
        *(line for memory in result.memories(outcomes) for line in _grid(outcomes, memory)),
        *overhead.told(outcomes),
        *_networks(outcomes),
        *_keys(outcomes),
        *_missing(outcomes),
    ]


def compared(outcomes: Sequence[Outcome], memory: int) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(quantity, for each whole method: its name, who needs less of it)."""
    asked = {each.job.method for each in outcomes if each.job.part == GRID and each.job.memory == memory}
    single = result.grid(outcomes, memory, EVACUATE)
    for what, of, written in QUANTITIES:
        found = []
        for method in (method for method in WHOLE if method in asked and EVACUATE in asked):
            whole = result.grid(outcomes, memory, method)
            values = [{count: of(count, each) for count, each in cells.items()} for cells in (single, whole)]
            found.append((method, _compared(method, values[0], values[1], written)))
        if found:
            yield what, found


def _grid(outcomes: Sequence[Outcome], memory: int) -> Iterator[str]:
    if not any(each.job.method == EVACUATE for each in outcomes):
        yield from _whole(outcomes, memory)
    for what, found in compared(outcomes, memory):
        if what in _MAIN:
            yield (
                f"{memory} MB, {what}, {EVACUATE} against: "
                + "; ".join(f"{name}: {text}" for name, text in found)
                + "."
            )


def _whole(outcomes: Sequence[Outcome], memory: int) -> Iterator[str]:
    """What each method takes, at the smallest and the largest number of vTPMs that all who have figures share."""
    cells = {method: found for method in WHOLE if (found := result.grid(outcomes, memory, method))}
    shared = sorted(set.intersection(*(set(found) for found in cells.values()))) if cells else []
    for count in dict.fromkeys(shared[:1] + shared[-1:]):
        for what, of, written in QUANTITIES:
            if what in _MAIN:
                parts = (f"{method} {written(of(count, found[count]))}" for method, found in cells.items())
                yield f"{memory} MB, {result.vtpms(count)}, {what}: {'; '.join(parts)}."


def _compared(
    method: str, single: Mapping[int, float], whole: Mapping[int, float], written: Callable[[float], str]
) -> str:
    counts = sorted(single.keys() & whole.keys())
    if not counts:
        return "cannot be compared, no cell has both"
    last = counts[-1]
    figures = f"({written(single[last])} and {written(whole[last])} at {last})"
    found = crossings(single, whole)
    if len(found) > 1:
        return f"who needs less changes {len(found)} times {figures}"
    if found:
        each = found[0]
        first, then = (EVACUATE, method) if each.before else (method, EVACUATE)
        return (
            f"{first} needs less up to about {each.at:.0f} (between {each.low} and {each.high}), then {then} {figures}"
        )
    where = f"from {counts[0]} to {last}, no crossing" if len(counts) > 1 else "at the only number measured"
    gap = sum(single[count] - whole[count] for count in counts)  # all have one sign, or are zero
    less = f"{EVACUATE if gap < 0 else method} needs less" if gap else "no difference"
    return f"{less} {where} {figures}"


def _networks(outcomes: Sequence[Outcome]) -> Iterator[str]:
    lines: dict[tuple[str, int, int], list[str]] = {}
    for each in outcomes:
        job, limited = each.job, each.figures
        if job.part in (BANDWIDTH, DELAY) and limited is not None:
            free = result.grid(outcomes, job.memory, job.method).get(job.count)
            times = f", {limited.total / free.total:.1f} times that without" if free else ""
            said = f"{job.method} {limited.total:.1f} s{times}, longest wait {limited.longest:.2f} s"
            lines.setdefault((", ".join(job.network), job.count, job.memory), []).append(said)
    for (network, count, memory), parts in lines.items():
        yield f"{network}, {count} vTPMs in {memory} MB: {'; '.join(parts)}."


def _keys(outcomes: Sequence[Outcome]) -> Iterator[str]:
    measured = [each.figures for each in outcomes if each.figures]
    if measured:
        changed, looked_at = sum(each.changed for each in measured), sum(each.looked_at for each in measured)
        yield f"Keys of vTPMs that a move has replaced: {changed} of {looked_at} compared, in all runs together."


def _missing(outcomes: Sequence[Outcome]) -> Iterator[str]:
    left_out = sum(each.left_out for each in outcomes)
    failed = sum(each.figures is None and not each.left_out for each in outcomes)
    if left_out or failed:
        yield (
            f"Not all was measured: of {len(outcomes)} runs {failed} failed or did not fit, {left_out} were left out, "
            "and nothing is said about these."
        )
