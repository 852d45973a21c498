"""What is to be run, in which order, and what came of it. Nothing here measures anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from manager_vm.protocol.tunnel import Suite

VERSION = 1
EVACUATE = "evacuate"
WHOLE = ("stop", "suspend", "precopy")
METHODS = (*WHOLE, EVACUATE)
GRID, SUITES, BANDWIDTH, DELAY = "grid", "suites", "bandwidth", "delay"  # parts of the experiment
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """One run. ``memory``: MiB of the manager's VM, ``limit``: bytes/s, 0: none. ``round``: of several.

    ``rtt``: round-trip time in ms that both networks have beside their own.
    """

    part: str
    count: int
    memory: int
    method: str
    suite: str = str(Suite.AES)
    limit: int = 0
    round: int = 0
    rtt: int = 0

    @property
    def cell(self) -> tuple[int, int]:
        """What has to be made ready for it: memory, number of vTPMs."""
        return self.memory, self.count

    def told(self) -> str:
        """For people."""
        parts = [vtpms(self.count), f"{self.memory} MB", self.method]
        if self.part == SUITES:
            parts += [self.suite, f"round {self.round + 1}"]
        return ", ".join([*parts, *self.network])

    @property
    def network(self) -> list[str]:
        """What is special about it, for people."""
        return [mbit(self.limit)] * bool(self.limit) + [f"{self.rtt} ms"] * bool(self.rtt)


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds and bytes. ``pauses``: of each vTPM, at most, where they move one by one; else all wait ``downtime``.
    ``least``: the same, at least.

    ``tunnel``: bytes between the hosts, ``network``: between the managers. ``cpu``: of all processes on both hosts.
    ``source_tpm``, ``target_tpm``: commands to the hardware TPMs. ``changed``: keys of vTPMs that are others now.
    """

    total: float
    downtime: float
    tunnel: int
    network: int
    cpu: float
    pauses: tuple[float, ...] = ()
    source_tpm: dict[str, int] = field(default_factory=dict)
    target_tpm: dict[str, int] = field(default_factory=dict)
    changed: int = 0
    looked_at: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    least: tuple[float, ...] = ()

    @property
    def sent(self) -> int:
        """All bytes."""
        return self.tunnel + self.network

    @property
    def longest(self) -> float:
        """What the unluckiest vTPM waits."""
        return max(self.pauses, default=self.downtime)

    @property
    def surely(self) -> float:
        """What the unluckiest vTPM waits at least."""
        return max(self.least, default=self.downtime)

    @property
    def commands(self) -> int:
        """To both hardware TPMs."""
        return sum(self.source_tpm.values()) + sum(self.target_tpm.values())

    @property
    def created(self) -> int:
        """Keys and sealed objects that the hardware TPMs made."""
        tpms = (self.source_tpm, self.target_tpm)
        return sum(each.get(name, 0) for each in tpms for name in ("Create", "CreateLoaded"))

    def waited(self, count: int) -> float:
        """What all vTPMs wait, added up."""
        return sum(self.pauses) if self.pauses else self.downtime * count


@dataclass(frozen=True, slots=True)
class Outcome:
    """``figures``, or the ``reason`` why there are none. ``left_out``: it was not tried."""

    job: Job
    figures: Figures | None = None
    reason: str = ""
    left_out: bool = False


def plan(
    counts: Sequence[int],
    memories: Sequence[int],
    methods: Sequence[str],
    repetitions: int,
    limits: Sequence[int],
    delays: Sequence[int] = (),
) -> list[Job]:
    """Small cells first, and in these the quick methods: what the budget leaves out is dear.

    The other parts take the second count, or the only one, and the first memory.
    """
    methods = [method for method in reversed(METHODS) if method in methods]
    jobs: list[Job] = []
    ordered = sorted(set(counts))
    middle = ordered[min(1, len(ordered) - 1)]
    for count in ordered:
        jobs += [Job(GRID, count, memory, method) for memory in memories for method in methods]
        if count != middle:
            continue
        for number in range(repetitions if "precopy" in methods else 0):
            suites = (Suite.NONE, Suite.AES, Suite.CHACHA)[:: -1 if number % 2 else 1]
            jobs += [Job(SUITES, count, memories[0], "precopy", str(suite), round=number) for suite in suites]
        jobs += [Job(BANDWIDTH, count, memories[0], method, limit=limit) for limit in limits for method in methods]
        jobs += [Job(DELAY, count, memories[0], method, rtt=rtt) for rtt in delays for method in methods]
    return jobs


def middle_of(values: Sequence[float]) -> float:
    """The median; 0 of none."""
    return median(values) if values else 0.0


def vtpms(count: int) -> str:
    """How many, for people."""
    return f"{count} vTPMs" if count != 1 else "1 vTPM"


def mbit(limit: int) -> str:
    """A bandwidth, for people."""
    return f"{limit * 8 / 1e6:g} Mbit/s"


def grid(outcomes: Sequence[Outcome], memory: int, method: str) -> dict[int, Figures]:
    """What was measured of a method in the grid: number of vTPMs -> figures."""
    return {
        each.job.count: each.figures
        for each in outcomes
        if each.figures and each.job.part == GRID and (each.job.memory, each.job.method) == (memory, method)
    }


def memories(outcomes: Sequence[Outcome]) -> list[int]:
    """Of the grid."""
    return sorted({each.job.memory for each in outcomes if each.job.part == GRID})


def read(kept: dict[str, Any]) -> list[Outcome]:
    """The outcomes in what ``data`` has made; KeyError or TypeError for what is something else."""
    if kept["version"] != VERSION:
        raise TypeError(f"version {kept['version']} is not read any more")
    return [_outcome(**each) for each in kept["outcomes"]]


def _outcome(job: dict[str, Any], figures: dict[str, Any] | None, **rest: Any) -> Outcome:
    if figures is not None:
        figures = {name: tuple(value) if isinstance(value, list) else value for name, value in figures.items()}
    return Outcome(Job(**job), Figures(**figures) if figures is not None else None, **rest)


def data(
    name: str, machine: dict[str, object], outcomes: Sequence[Outcome], conclusions: Sequence[str]
) -> dict[str, object]:
    """For the JSON file of this benchmark."""
    return {
        "benchmark": name,
        "version": VERSION,
        "machine": machine,
        "outcomes": [asdict(each) for each in outcomes],
        "conclusions": list(conclusions),
    }
