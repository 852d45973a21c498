"""A benchmark of moves from its options to its report: how much is moved, how, and how often."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from manager_vm.errors import ConfigError
from tests.bench import machine
from tests.bench.compare import findings, measure, result, standin
from tests.bench.compare.result import Job
from tests.bench.compare.schedule import Schedule
from tests.bench.compare.stock import Stock
from tests.bench.report import Report
from tests.system import vms

_MBIT = 125_000  # bytes/s


@dataclass(frozen=True, slots=True)
class Scale:
    """What is measured where no option says otherwise. ``memory``: MB, ``limits``: Mbit/s, ``budget``: minutes.

    ``delays``: round-trip times in ms.
    ``rounds``: of secured against unsecured.
    """

    counts: tuple[int, ...]
    memory: tuple[int, ...]
    methods: tuple[str, ...]
    rounds: int
    limits: tuple[int, ...]
    budget: float
    delays: tuple[int, ...] = ()


def add_arguments(parser: argparse.ArgumentParser, usual: Scale) -> None:
    """Options for ``jobs``, and the budget."""
    text = f"numbers of vTPMs (default: {_words(usual.counts)})"
    parser.add_argument("--counts", type=_positive, nargs="+", metavar="N", help=text)
    text = f"sizes of the manager's VM in MB (default: {_words(usual.memory)})"
    parser.add_argument("--memory", type=_positive, nargs="+", metavar="MB", help=text)
    text = f"how to move (default: {_words(usual.methods)})"
    parser.add_argument("--methods", nargs="+", choices=usual.methods, metavar="HOW", help=text)
    text = f"rounds of secured against unsecured, with precopy (default: {usual.rounds})"
    parser.add_argument("--repetitions", type=_number, metavar="N", help=text)
    text = f"bandwidths to be tried too, in Mbit/s (default: {_words(usual.limits) or 'none'})"
    parser.add_argument("--limits", type=_positive, nargs="*", metavar="MBIT", help=text)
    text = f"round-trip times to be tried too, in ms (default: {_words(usual.delays) or 'none'})"
    parser.add_argument("--delays", type=_positive, nargs="*", metavar="MS", help=text)
    parser.add_argument("--quick", action="store_true", help="1 vTPM, 512 MB, one round, no limit: to try it")
    text = f"begin no run beyond it (default: {usual.budget:g} minutes)"
    parser.add_argument("--budget", type=float, default=usual.budget, metavar="MIN", help=text)
    text = "measure nothing: conclusions and page of an earlier run's JSON"
    parser.add_argument("--again", type=Path, metavar="FILE.json", help=text)


def jobs(args: argparse.Namespace, usual: Scale) -> list[Job]:
    """What these options ask for."""
    if args.quick:
        usual = replace(usual, counts=(1,), memory=(512,), rounds=1, limits=(), delays=())
    limits = usual.limits if args.limits is None else args.limits
    return result.plan(
        args.counts or usual.counts,
        args.memory or usual.memory,
        args.methods or usual.methods,
        usual.rounds if args.repetitions is None else args.repetitions,
        [limit * _MBIT for limit in limits],
        usual.delays if args.delays is None else args.delays,
    )


def run(name: str, title: str, about: str, jobs: Sequence[Job], budget: float, tell: Callable[[str], None]) -> Report:
    """Carry them out. ``budget``: minutes. ConfigError without images."""
    from tests.bench.compare import report  # here: a hardware TPM's program has this package too, and needs no plots

    if not (vms.IMAGES / "manager" / "image.json").exists():
        raise ConfigError("there are no images; run ./build.sh image")
    facts = {**machine.facts(), "budget_minutes": budget, "runs": len(jobs)}
    with standin.counted(), vms.short_directory() as directory:
        facts["file_system"] = machine.file_system(directory)
        stock = Stock(directory)
        schedule = Schedule(lambda job: measure.run(job, stock), stock.wait, budget * 60, tell)
        tell(f"{len(jobs)} runs, about {schedule.estimate(jobs) / 60:.0f} min; none begins beyond {budget:g} min")
        outcomes = schedule.carry_out(jobs)
    facts["load_at_end"] = list(os.getloadavg())
    found = findings.conclusions(outcomes)
    page = report.page(name, title, about, facts, outcomes, found)
    return Report(result.data(name, facts, outcomes, found), page, report.text(outcomes, found))


def again(name: str, title: str, about: str, path: Path) -> Report:
    """The report of an earlier run. ConfigError for what is none."""
    from tests.bench.compare import report

    try:
        kept = json.loads(path.read_text())
        facts, outcomes = dict(kept["machine"]), result.read(kept)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no result of this benchmark: {error}") from None
    found = findings.conclusions(outcomes)
    page = report.page(name, title, about, facts, outcomes, found)
    return Report(result.data(name, facts, outcomes, found), page, report.text(outcomes, found))


def _words(values: Sequence[object]) -> str:
    return " ".join(map(str, values))


def _number(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: use a number from 0 on")


def _positive(text: str) -> int:
    if number := _number(text):
        return number
    raise argparse.ArgumentTypeError(f"{text!r}: use a number from 1 on")
