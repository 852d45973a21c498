"""What is written about the comparison: a page with plots, tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from manager_vm.protocol.tunnel import Suite
from tests.bench import markup
from tests.bench.compare import drawing, findings, overhead, result, tables
from tests.bench.compare.overhead import Verdict, judge, spread
from tests.bench.compare.result import BANDWIDTH, DELAY, EVACUATE, GRID, METHODS, SUITES, Outcome

_PAGE = """<style>
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: .5rem 1.5rem; }
figure { margin: .4rem 0; } th { white-space: normal; vertical-align: bottom; } th, td { padding: .2rem .4rem; }
body { max-width: 68rem; } .note { display: block; min-width: 9rem; white-space: normal; text-align: left; }
@media print {
  :root { color-scheme: light; }
  body { max-width: none; margin: 0; padding: 0; font-size: 9pt; }
  h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; }
  .plots { grid-template-columns: 1fr 1fr; gap: .3rem; }
  .scroll { overflow: visible; } table { width: 100%; font-size: 8.5pt; }
  th, td { padding: .1rem .2rem; white-space: normal; min-width: 0 !important; }
  .note { min-width: 5rem; }
}
</style>"""
_CROSS_NOTE = (
    "evacuate against each way to move the whole manager, by the number of vTPMs. A crossing lies between two numbers"
    " that were measured, and is placed on a straight line between them."
)
_WHOLE_NOTE = "Downtime: see Method; all vTPMs wait so long."
_EACH_NOTE = "Downtime: see Method; the vTPMs of a whole manager all wait so long, those of evacuate each by itself."
_PLOTS = (
    ("total time", "seconds", 0),
    ("longest wait of one vTPM", "seconds", 1),
    ("waiting of all vTPMs together", "seconds", 2),
    ("bytes sent", "MB", 3),
)  # of ``findings.QUANTITIES``


def page(
    name: str,
    title: str,
    about: str,
    facts: dict[str, object],
    outcomes: Sequence[Outcome],
    conclusions: Sequence[str],
) -> str:
    """HTML; the plots are in it. ``name``: of the benchmark."""
    methods = {each.job.method for each in outcomes}
    parts = [_PAGE, markup.section("Conclusions", _conclusions(conclusions))]
    parts += [markup.section(f"{memory} MB", *_plots(outcomes, memory)) for memory in result.memories(outcomes)]
    if crossings := list(_crossings(outcomes)):
        parts += [markup.section("Where they cross over", markup.paragraph(_CROSS_NOTE), *crossings)]
    note = markup.paragraph(_EACH_NOTE if EVACUATE in methods else _WHOLE_NOTE)
    parts += [markup.section("All cells", note, tables.figures(outcomes, GRID))]
    parts += [markup.section("Secured against unsecured", *_suites(outcomes))]
    if any(each.job.part == BANDWIDTH for each in outcomes):
        parts += [markup.section("With a limited bandwidth", tables.figures(outcomes, BANDWIDTH))]
    if any(each.job.part == DELAY for each in outcomes):
        parts += [markup.section("With a delay", tables.figures(outcomes, DELAY))]
    parts += [
        markup.section("Phases", tables.phases(outcomes)),
        markup.section("Commands to the hardware TPMs", tables.commands(outcomes)),
        markup.section("Who trusts whom", markup.paragraph(tables.TRUST_NOTE), tables.trust(outcomes)),
        markup.section("Method", markup.prose(about)),
        markup.section(
            "The machine",
            tables.wrapped(markup.table(("", ""), [(key, str(value)) for key, value in facts.items()], 2)),
        ),
        f'<p>All figures: <a href="{name}.json">{name}.json</a></p>',
    ]
    return markup.document(title, parts)


def text(outcomes: Sequence[Outcome], conclusions: Sequence[str]) -> str:
    """For the terminal."""
    cells = [("part", *tables.HEAD), *((each.job.part, *tables.row(each)) for each in outcomes)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(tables.HEAD))]  # the note needs none
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in cells
    ]
    return "\n".join([*lines, "", *(f"- {line}" for line in conclusions)])


def _conclusions(lines: Iterable[str]) -> str:
    """What each is about stands out; parts of one stand below each other."""
    items = []
    for line in lines:
        about, _, said = line.partition(": ")
        parts = said.split("; ")
        items.append(f"<b>{escape(about)}:</b> {escape(said) if len(parts) == 1 else markup.bullets(parts)}")
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _crossings(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """A table for each size of the VM: quantities, and beside each who needs less of it."""
    for memory in result.memories(outcomes):
        rows = list(findings.compared(outcomes, memory))
        if rows:
            head = (f"{memory} MB", *(f"against {method}" for method, _ in rows[0][1]))
            cells = [(what, *(text for _, text in found)) for what, found in rows]
            yield tables.wrapped(markup.table(head, cells, words=len(head)))


def _plots(outcomes: Sequence[Outcome], memory: int) -> Iterator[str]:
    across = sorted({each.job.count for each in outcomes if each.job.part == GRID})
    found = {method: result.grid(outcomes, memory, method) for method in METHODS}
    if not any(found.values()):
        yield markup.paragraph("Nothing was measured; the table says why.")
        return
    drawn = []
    for what, unit, number in _PLOTS:
        of, scale = findings.QUANTITIES[number][1], 1e-6 if unit == "MB" else 1.0
        points = {
            method: {count: of(count, each) * scale for count, each in cells.items()} for method, cells in found.items()
        }
        drawn.append(drawing.lines(f"{memory} MB: {what}", unit, points, across))
    yield _side_by_side(drawn)
    missing = [
        f"{each.job.told()}: not measured: {each.reason}"
        for each in outcomes
        if each.figures is None and each.job.part == GRID and each.job.memory == memory
    ]
    if missing:
        yield markup.paragraph("No point stands for:") + markup.bullets(missing)


def _suites(outcomes: Sequence[Outcome]) -> Iterator[str]:
    chosen = [each for each in outcomes if each.job.part == SUITES]
    if not any(each.figures for each in chosen):
        reasons = sorted({each.reason for each in chosen}) or ["it was not asked for"]
        yield markup.paragraph(f"Not measured: {'; '.join(reasons)}.")
        return
    job = chosen[0].job
    yield markup.paragraph(f"{job.count} vTPMs, {job.memory} MB, {job.method}; each round has all three.")
    drawn = []
    for what in ("total", "downtime"):
        samples: dict[str, list[float]] = {
            str(suite): [getattr(each.figures, what) for each in chosen if each.figures and each.job.suite == suite]
            for suite in Suite
        }
        rows = {name: values for name, values in samples.items() if values}
        drawn.append(drawing.dots(f"Tunnel's cipher: {what}", "seconds", rows))
    yield _side_by_side(drawn)
    cells = [
        (each.suite, what, spread(values), _verdict(judge(values)))
        for each in overhead.overheads(outcomes)
        for what, values in (("total", each.total), ("downtime", each.downtime))
    ]
    yield markup.table(("against none", "of", "overhead", f"aim of {overhead.AIM:g} %"), cells, words=4)
    yield tables.figures(outcomes, SUITES)


def _verdict(found: Verdict) -> str:
    """Coloured if it is one."""
    return markup.verdict(found is Verdict.MET) if found in (Verdict.MET, Verdict.MISSED) else str(found)


def _side_by_side(plots: Iterable[str]) -> str:
    """Where there is room."""
    return f'<div class="plots">{"".join(plots)}</div>'
