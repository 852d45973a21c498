"""What is written about hierarchies: JSON, a page, a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from tests.bench import markup
from tests.bench.hierarchy.measure import Row
from tests.bench.stats import quantile
from tests.unlinkability import Finding

_HEAD = (
    "hierarchy",
    "links two vTPMs of a host",
    "shows the host",
    "keys anew",
    "SKs taken",
    "hardware operations",
    "asked again",
    "ms per move",
    "10 to 90 %",
    "as claimed",
)


def data(facts: dict[str, object], rows: Sequence[Row], refused: int) -> dict[str, object]:
    """For the JSON file. ``refused``: response code of TPM2_Sign with the hardware EK."""
    return {"machine": facts, "hierarchies": [_row(row) for row in rows], "ek": {"refused_with": f"{refused:#x}"}}


def page(title: str, about: str, facts: dict[str, object], rows: Sequence[Row], refused: int) -> str:
    """HTML."""
    linking = [line for row in rows for line in _linking(row)]
    commands = [
        (
            row.kind.value,
            ", ".join(f"{name} {times / len(row.moves):g}" for name, times in sorted(row.commands.items())),
        )
        for row in rows
    ]
    return markup.document(
        title,
        [
            markup.table(_HEAD, [*_table(rows), _ek(refused)], words=3),
            markup.section("What links whom", markup.bullets(linking or ["nothing, in no hierarchy"])),
            markup.section(
                "Commands to the hardware TPMs per move",
                markup.table(("hierarchy", "commands"), [(kind, text or "none") for kind, text in commands], words=2),
            ),
            markup.section("About", markup.prose(about)),
            markup.section("Machine", markup.table(("", ""), [(key, str(value)) for key, value in facts.items()], 2)),
        ],
    )


def text(rows: Sequence[Row], refused: int) -> str:
    """For the terminal."""
    cells = [_HEAD, *_table(rows, plain=True), _ek(refused)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([*table, *(line for row in rows for line in _linking(row))])


def _row(row: Row) -> dict[str, object]:
    measured = row.measured
    return {
        "kind": row.kind.value,
        "measured": asdict(measured) if measured else None,
        "claimed": asdict(row.claimed),
        "milliseconds": row.milliseconds,
        "issuing_milliseconds": row.issuing,
        "commands": dict(row.commands),
        "moves": len(row.moves),
        "platform_shown": row.platform_shown,
        "links": [{"fields": each.fields, "vtpms": sorted(each.vtpms)} for each in row.links],
        "shared_by_all_but_not_on_the_page": row.unnamed,
    }


def _table(rows: Sequence[Row], *, plain: bool = False) -> list[tuple[str, ...]]:
    found = []
    for row in rows:
        move, times = row.measured, sorted(row.milliseconds)
        met = move == row.claimed
        numbers = (
            [str(each) for each in (move.keys, move.sks, move.hardware, move.contacts)] if move else ["varies"] * 4
        )
        spread = f"{quantile(times, 0.1):.1f} to {quantile(times, 0.9):.1f}"
        verdict = ("yes" if met else "no") if plain else markup.verdict(met)
        shown = "yes" if row.platform_shown else "no"
        found.append((row.kind.value, _who(row.links), shown, *numbers, f"{row.median():.1f}", spread, verdict))
    return found


def _ek(refused: int) -> tuple[str, ...]:
    return ("ek", f"refused: TPM2_Sign ends with {refused:#x}", *["-"] * (len(_HEAD) - 2))


def _who(links: Sequence[Finding]) -> str:
    if not links:
        return "nothing found"
    return f"{len({name for each in links for name in each.fields})} fields"


def _linking(row: Row) -> list[str]:
    lines = []
    for vtpms in sorted({each.vtpms for each in row.links}, key=sorted):
        names = sorted({name for each in row.links if each.vtpms == vtpms for name in each.fields})
        lines.append(f"{row.kind.value}: {', '.join(sorted(vtpms))} share {', '.join(names)}")
    return lines + [f"{row.kind.value}: all share {name}, which HIERARCHIES.md does not name" for name in row.unnamed]
