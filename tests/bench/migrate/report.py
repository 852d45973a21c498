"""What is written about moves: JSON, a page, tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from tests.bench import markup
from tests.bench.migrate.bare import Moved
from tests.bench.migrate.measure import Evacuation, Row
from tests.bench.stats import quantile

_MOVES = (
    "road",
    "path",
    "downtime ms",
    "10 to 90 %",
    "x floor",
    "disk, TPM ms",
    "rest ms",
    "x floor",
    "total ms",
    "disk, TPM ms",
    "ours",
)
_MANY = ("path", "vTPMs", "at once", "total s", "ms each", "x floor", "hardware TPM busy: source, destination")


def data(facts: dict[str, object], rows: Sequence[Row], many: Sequence[Evacuation]) -> dict[str, object]:
    """For the JSON file; seconds."""
    return {"machine": facts, "moves": [asdict(row) for row in rows], "evacuations": [asdict(each) for each in many]}


def page(title: str, about: str, facts: dict[str, object], rows: Sequence[Row], many: Sequence[Evacuation]) -> str:
    """HTML."""
    return markup.document(
        title,
        [
            markup.table(_MOVES, _moves(rows), words=2),
            markup.section("Many vTPMs", markup.table(_MANY, _many(many), words=1)),
            markup.section("About", markup.prose(about)),
            markup.section("Machine", markup.table(("", ""), [(key, str(value)) for key, value in facts.items()], 2)),
        ],
    )


def text(rows: Sequence[Row], many: Sequence[Evacuation]) -> str:
    """For the terminal."""
    tables = [[_MOVES, *_moves(rows)], *([[_MANY, *_many(many)]] if many else [])]
    return "\n\n".join(_columns(table) for table in tables)


def _columns(cells: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _moves(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    floors = {row.road: row for row in rows if row.path == "floor"}
    return [_move(row, floors[row.road]) for row in rows]


def _move(row: Row, floor: Row) -> tuple[str, ...]:
    down, total = _median(row, lambda each: each.downtime), _median(row, lambda each: each.total)
    rest = _median(row, lambda each: each.downtime - each.apart)
    least = _median(floor, lambda each: each.downtime)
    ours = _median(row, lambda each: each.total - each.apart_total) - _median(floor, lambda each: each.total)
    apart = [f"{_median(row, of):.1f}" for of in (lambda each: each.apart, lambda each: each.apart_total)]
    numbers = [f"{down:.1f}", _spread(row), f"{down / least:.1f}", apart[0], f"{rest:.1f}", f"{rest / least:.1f}"]
    return (row.road, row.path, *numbers, f"{total:.1f}", apart[1], f"{max(ours, 0.0) / total * 100:.0f} %")


def _many(many: Sequence[Evacuation]) -> list[tuple[str, ...]]:
    floor = next((each.total for each in many if each.path == "floor"), 0.0)
    return [
        (
            each.path,
            str(each.count),
            str(each.parallel),
            f"{each.total:.1f}",
            f"{each.total * 1000 / each.count:.1f}",
            f"{each.total / floor:.1f}",
            ", ".join(f"{share * 100:.0f} %" for share in each.busy),
        )
        for each in many
    ]


def _median(row: Row, of: Callable[[Moved], float]) -> float:
    """Milliseconds."""
    return quantile(sorted(of(each) * 1000 for each in row.moved), 0.5)


def _spread(row: Row) -> str:
    ordered = sorted(each.downtime * 1000 for each in row.moved)
    return f"{quantile(ordered, 0.1):.1f} to {quantile(ordered, 0.9):.1f}"
