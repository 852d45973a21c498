"""What is written about VMs that move with and without us: JSON, a page, a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from tests.bench import markup
from tests.bench.follow.measure import FOLLOWS, HOST, Move
from tests.bench.stats import quantile

_FIGURES = {"downtime": "QEMU's downtime", "stood": "stop to go", "longest": "longest wait", "total": "total"}
_HEAD = ("ms", FOLLOWS, "min-max", HOST, "min-max", "difference", "ratio", "rounds p10-p90")
AIM = 1.5


def data(facts: dict[str, object], moves: Sequence[Move]) -> dict[str, object]:
    """For the JSON file."""
    return {"machine": facts, "unit": "ms", "moves": [asdict(each) for each in moves], "ratio": ratio(moves, "stood")}


def page(title: str, about: str, facts: dict[str, object], moves: Sequence[Move]) -> str:
    """HTML."""
    return markup.document(
        title,
        [
            markup.paragraph(_verdict(moves)),
            markup.table(_HEAD, _rows(moves), 1),
            markup.section("Where our part goes", markup.table(("", "median, ms", "min-max"), _parts(moves), 1)),
            markup.section("About", markup.prose(about)),
            markup.section("Machine", markup.table(("", ""), [(key, str(value)) for key, value in facts.items()], 2)),
        ],
    )


def text(moves: Sequence[Move]) -> str:
    """For the terminal."""
    lines = []
    for cells in ([_HEAD, *_rows(moves)], [("of ours, ms", "median", "min-max"), *_parts(moves)]):
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        lines += ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells] + [""]
    return "\n".join([*lines, _verdict(moves)])


def ratio(moves: Sequence[Move], figure: str) -> tuple[float, float, float]:
    """Median, p10 and p90 of the rounds' ratios of a figure, ours to theirs."""
    found = sorted(x / y for x, y in zip(_of(moves, FOLLOWS, figure), _of(moves, HOST, figure), strict=True))
    middle, low, high = (quantile(found, q) for q in (0.5, 0.1, 0.9))
    return middle, low, high


def _of(moves: Sequence[Move], way: str, figure: str) -> list[float]:
    return [getattr(each, figure) for each in moves if each.way == way]


def _rows(moves: Sequence[Move]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for figure, name in _FIGURES.items():
        ours, theirs = sorted(_of(moves, FOLLOWS, figure)), sorted(_of(moves, HOST, figure))
        middle, low, high = ratio(moves, figure)
        difference = quantile(ours, 0.5) - quantile(theirs, 0.5)
        cells = [cell for each in (ours, theirs) for cell in (f"{quantile(each, 0.5):.0f}", _range(each))]
        rows.append((name, *cells, f"{difference:+.0f}", f"{middle:.2f}", f"{low:.2f}-{high:.2f}"))
    return rows


def _parts(moves: Sequence[Move]) -> list[Sequence[str]]:
    names = dict.fromkeys(name for each in moves for name in each.parts)
    rows: list[Sequence[str]] = []
    for name in names:
        found = sorted(each.parts[name] for each in moves if name in each.parts)
        rows.append((name, f"{quantile(found, 0.5):.0f}", _range(found)))
    return rows


def _range(found: Sequence[float]) -> str:
    return f"{found[0]:.0f}-{found[-1]:.0f}"


def _verdict(moves: Sequence[Move]) -> str:
    said = []
    for figure in ("downtime", "stood"):
        middle, _, _ = ratio(moves, figure)
        said.append(f"{_FIGURES[figure]} {middle:.2f} times ({'met' if middle <= AIM else 'MISSED'})")
    return f"aim: a downtime within {AIM} times that of a host's swtpm: {', '.join(said)}"
