"""All that one run found, and its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tests.bench import stats
from tests.bench.command.aims import Aim
from tests.bench.command.crowd import Crowd
from tests.bench.command.parts import Piece, Share
from tests.bench.command.paths import BARE, BARE_FREE, CRB, DEV, DEV_FREE, IVSHMEM, RELAY, VIRTIO
from tests.bench.stats import Comparison, Series

VERSION = 1
PAIRS = ((DEV, BARE), (DEV_FREE, BARE_FREE), (RELAY, BARE), (IVSHMEM, CRB), (VIRTIO, CRB))  # path, its base


@dataclass(frozen=True, slots=True)
class Result:
    """``sync``: us of the two fsyncs after an NV_Write."""

    machine: dict[str, object]
    series: tuple[Series, ...]
    shares: tuple[Share, ...]
    pieces: tuple[Piece, ...]
    sync: float
    aims: tuple[Aim, ...]
    crowds: tuple[Crowd, ...] = ()

    def measured(self, path: str) -> list[Series]:
        """All commands of one path."""
        return [each for each in self.series if each.path == path]

    def json(self) -> dict[str, object]:
        """Samples included, so that a later reader can ask other questions."""
        return {
            "benchmark": "command",
            "version": VERSION,
            "unit": "us",
            "machine": self.machine,
            "series": [{**asdict(each), "summary": asdict(each.summary())} for each in self.series],
            "comparisons": [asdict(each) for each in comparisons(self.series)],
            "shares": [asdict(each) for each in self.shares],
            "pieces": [asdict(each) for each in self.pieces],
            "sync": self.sync,
            "aims": [asdict(each) | {"met": each.met} for each in self.aims],
            "crowds": [_crowd(each) for each in self.crowds],
        }


def _crowd(crowd: Crowd) -> dict[str, object]:
    return {**asdict(crowd), "loads": [{**asdict(e), "jain": e.jain, "rate": e.rate} for e in crowd.loads]}


def comparisons(series: Sequence[Series]) -> list[Comparison]:
    """Each path with its base, where both were measured."""
    known = {(each.path, each.command): each for each in series}
    return [
        stats.compare(mine, known[base, mine.command])
        for path, base in PAIRS
        for mine in series
        if mine.path == path and (base, mine.command) in known
    ]
