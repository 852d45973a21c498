"""What is written about moves: JSON, a page, a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench import markup
from tests.bench.migrate.measure import Row
from tests.bench.stats import quantile

_HEAD = ("rtt ms", "path", "downtime ms", "10 to 90 %", "times the floor", "total ms", "10 to 90 %")


def data(facts: dict[str, object], rows: Sequence[Row]) -> dict[str, object]:
    """For the JSON file."""
    moves = [
        {"path": row.path, "rtt_ms": row.rtt, "downtime_ms": row.downtimes, "total_ms": row.totals} for row in rows
    ]
    return {"machine": facts, "moves": moves}


def page(title: str, about: str, facts: dict[str, object], rows: Sequence[Row]) -> str:
    """HTML."""
    return markup.document(
        title,
        [
            markup.table(_HEAD, _table(rows), words=2),
            markup.section("About", markup.prose(about)),
            markup.section("Machine", markup.table(("", ""), [(key, str(value)) for key, value in facts.items()], 2)),
        ],
    )


def text(rows: Sequence[Row]) -> str:
    """For the terminal."""
    cells = [_HEAD, *_table(rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    floors = {row.rtt: quantile(sorted(row.downtimes), 0.5) for row in rows if row.path == "floor"}
    return [
        (
            f"{row.rtt:g}",
            row.path,
            f"{quantile(sorted(row.downtimes), 0.5):.1f}",
            _spread(row.downtimes),
            f"{quantile(sorted(row.downtimes), 0.5) / floors[row.rtt]:.1f}",
            f"{quantile(sorted(row.totals), 0.5):.1f}",
            _spread(row.totals),
        )
        for row in rows
    ]


def _spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return f"{quantile(ordered, 0.1):.1f} to {quantile(ordered, 0.9):.1f}"
