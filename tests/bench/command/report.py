"""What a run found, for people: a table for the terminal, a page with plots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.bench import markup, plots
from tests.bench.command import aims, crowd, paths
from tests.bench.command.aims import Aim, Item
from tests.bench.command.paths import (
    BARE,
    BARE_FREE,
    BARE_KEY,
    CRB,
    DEV,
    DEV_FREE,
    DEV_PING,
    HOST_SPEED,
    IN_MANAGER,
    IVSHMEM,
    MANAGER_SPEED,
    RELAY,
    VIRTIO,
)
from tests.bench.command.result import Result, comparisons
from tests.bench.command.workload import COMMANDS
from tests.bench.plots import Bar, Range, number_text
from tests.bench.stats import Comparison, Series

_GROUPS = (
    ("(a) and (b): one processor", (BARE, DEV)),
    ("(a) and (b): not pinned", (BARE_FREE, DEV_FREE)),
    ("(c) and (d): /dev/tpm0 in a guest", (CRB, IVSHMEM, VIRTIO)),
    ("parts of (b)", (RELAY, BARE_KEY, DEV_PING, HOST_SPEED)),
    (
        "parts of (c)",
        (
            IN_MANAGER,
            MANAGER_SPEED,
            *(f(path) for path in (IVSHMEM, VIRTIO) for f in (paths.ping, paths.link, paths.again)),
        ),
    ),
)
_HEAD = ("command", "path", "min", "p10", "median", "p90", "samples", "difference", "ratio", "rounds p10-p90")
_CROWD_HEAD = (
    "guests",
    "",
    "median",
    "p95",
    "p99",
    "worst",
    "guests' p10",
    "p90",
    "per second",
    "Jain",
    "each",
    "ratio",
)
_MAIN = 3  # groups that have plots


def text(result: Result) -> str:
    """Tables and aims, in microseconds."""
    lines = []
    for heading, rows in _tables(result):
        lines += ["", f"{heading} (us)", *_columns([_HEAD, *rows])]
    for aim in result.aims:
        lines += ["", f"aim: {aim.text}: {_word(aim.met)}"]
        lines += [f"  {_word(item.met):<7} {item.comparison.command:<12} {_shown(item)}" for item in aim.items]
        if not aim.met:
            lines += [f"  why: {line}" for line in aim.why] + [f"  to close it: {line}" for line in aim.closing]
    if result.crowds:
        lines += [
            "",
            "many guests at one QEMU shim (us, commands a second)",
            *_columns([_CROWD_HEAD, *_crowd_rows(result)]),
        ]
    return "\n".join(lines[1:])


def page(result: Result, title: str, method: str) -> str:
    """One HTML file. ``method``: prose for ``markup.prose``."""
    tables = list(_tables(result))
    main = [part for heading, rows in tables[:_MAIN] if rows for part in _main_section(result, heading, rows)]
    rest = [markup.section(heading, markup.table(_HEAD, rows, 2)) for heading, rows in tables[_MAIN:] if rows]
    parts = [*_aim_sections(result.aims), *main, *_crowd_sections(result), *_way_sections(result), *rest]
    return markup.document(title, [*parts, markup.section("Method", markup.prose(method)), _machine_section(result)])


def _tables(result: Result) -> Iterator[tuple[str, list[Sequence[str]]]]:
    """(heading, rows) of each group that was measured."""
    compared = {(each.path, each.command): each for each in comparisons(result.series)}
    for heading, members in _GROUPS:
        found = sorted(
            (each for path in members for each in result.measured(path)),
            key=lambda each: (_order(each), members.index(each.path)),
        )
        if found:
            yield heading, [_row(each, compared.get((each.path, each.command))) for each in found]


def _order(series: Series) -> int:
    return COMMANDS.index(series.command) if series.command in COMMANDS else len(COMMANDS)


def _row(series: Series, comparison: Comparison | None) -> Sequence[str]:
    s = series.summary()
    figures = [number_text(value) for value in (s.minimum, s.p10, s.median, s.p90)]
    row = [series.command, paths.title(series.path), *figures, str(s.count)]
    if comparison is None:
        return [*row, "", "", ""]
    spread = f"{comparison.low:.2f}-{comparison.high:.2f}"
    return [*row, _signed(comparison.difference), f"{comparison.ratio:.2f}", spread]


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number_text(value)


def _word(met: bool) -> str:
    return "met" if met else "MISSED"


def _shown(item: Item) -> str:
    each = item.comparison
    against = f"{paths.title(each.path)} to {paths.title(each.base)}"
    return f"{against}: {_signed(each.difference)} us, ratio {each.ratio:.2f}"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Two columns of words, the others of figures."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if n < 2 else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _aim_sections(found: Sequence[Aim]) -> Iterator[str]:
    for aim in found:
        rows = [
            [
                markup.verdict(item.met),
                item.comparison.command,
                paths.title(item.comparison.path),
                _signed(item.comparison.difference),
                f"{item.comparison.ratio:.2f}",
            ]
            for item in aim.items
        ]
        parts = [markup.table(["", "command", "path", "difference, us", "ratio"], rows, 3)]
        if not aim.met:
            parts += ["<h3>Why it is missed</h3>", markup.bullets(aim.why)]
            parts += ["<h3>What would close it</h3>", markup.bullets(aim.closing)]
        yield markup.section(f"Aim: {aim.text}", *parts)


def _main_section(result: Result, heading: str, rows: list[Sequence[str]]) -> list[str]:
    members = dict(_GROUPS)[heading]
    drawn = []
    for command in COMMANDS:
        found = [each for path in members for each in result.measured(path) if each.command == command]
        ranges = [Range(paths.title(each.path), each.summary(), members.index(each.path)) for each in found]
        drawn.append(plots.ranges(command, ranges))
    note = markup.paragraph("Dot: median. Thick line: p10 to p90. Tick: minimum.")
    return [markup.section(heading, note, *drawn, markup.table(_HEAD, rows, 2))]


def _way_sections(result: Result) -> Iterator[str]:
    if result.measured(IN_MANAGER):
        drawn = [plots.stacked(command, list(_guest_bars(result, command))) for command in COMMANDS]
        note = "From medians of what was measured in turns in rounds of its own; (d) is not divided."
        yield markup.section("The way of (c) in parts", markup.paragraph(note), *drawn)
    bars = [
        Bar(paths.title(path), tuple((each.process, each.microseconds) for each in result.shares if each.path == path))
        for path in (BARE, RELAY, DEV)
    ]
    note = "Processor time and context switches of each process, from the kernel's own account."
    head = ("path", "process", "us per command", "switches per command")
    rows = [[paths.title(e.path), e.process, f"{e.microseconds:.1f}", f"{e.switches:.1f}"] for e in result.shares]
    drawn = [plots.stacked("GetRandom on one processor", bars), markup.table(head, rows, 2)]
    yield markup.section("Who uses the processor: (a), relay, (b)", markup.paragraph(note), *drawn)
    yield markup.section("Pieces of the way of (b)", *_pieces(result))


def _crowd_rows(result: Result) -> list[list[str]]:
    """Each load of many guests; the ratio is to bare swtpms under the same load."""
    bare = {each.guests: each for each in result.crowds if each.kind == crowd.SWTPM}
    rows = []
    for each in result.crowds:
        for load in each.loads:
            ratio = "" if each.kind == crowd.SWTPM else f"{load.median / bare[each.guests].load(load.name).median:.1f}"
            figures = [number_text(value) for value in (load.median, load.p95, load.p99, load.worst, *load.medians)]
            shares = [f"{load.rate:.0f}", f"{load.jain:.3f}", f"{min(load.served)}-{max(load.served)}"]
            rows.append([f"{each.guests}, {load.name}", each.kind, *figures, *shares, ratio])
    return rows


def _crowd_sections(result: Result) -> Iterator[str]:
    if not result.crowds:
        return
    note = (
        "Of the load with one greedy guest the latencies are those of the polite ones, and Jain's index, like the "
        "commands of each guest, is of all. Ratio: of the medians, to as many bare swtpms."
    )
    started = [
        [str(e.guests), e.kind, f"{e.boot:.2f}", f"{e.boots[0]:.3f}", f"{e.boots[1]:.3f}"] for e in result.crowds
    ]
    head = ("guests", "", "seconds until all TPMs were on", "one, median", "one, worst")
    table = markup.table(_CROWD_HEAD, _crowd_rows(result), 2)
    yield markup.section("Many guests at one QEMU shim", markup.paragraph(note), table, markup.table(head, started, 2))


def _guest_bars(result: Result, command: str) -> Iterator[Bar]:
    medians = {each.command: each.summary().median for each in result.measured(CRB)}
    yield Bar(paths.title(CRB), (("(d), whole", medians[command]),))
    for path in (IVSHMEM, VIRTIO):
        yield Bar(paths.title(path), tuple(aims.parts(result.series, path, command)))


def _pieces(result: Result) -> list[str]:
    rows = [[e.name, e.who, f"{e.each:.2f}", str(e.times), f"{e.each * e.times:.1f}"] for e in result.pieces]
    total = sum(each.each * each.times for each in result.pieces)
    note = (
        f"Each alone in a loop, where its code and data stay in the caches: {total:.1f} us in sum. On the way three "
        "processes take turns, and the same pieces take longer. Not in this list: calls and loops around the pieces. "
        f"The two fsyncs after an NV_Write, on an idle disk: {result.sync:.0f} us."
    )
    return [markup.paragraph(note), markup.table(("piece", "who", "us each", "times", "us"), rows, 2)]


def _machine_section(result: Result) -> str:
    rows = [[name.replace("_", " "), str(value)] for name, value in result.machine.items()]
    return markup.section("The machine", markup.table(("", ""), rows, 2))
