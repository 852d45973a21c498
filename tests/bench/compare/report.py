"""What is written about the comparison: a page with plots, tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from manager_vm.protocol.tunnel import Suite
from tests.bench import markup
from tests.bench.compare import drawing, findings, overhead, result
from tests.bench.compare.overhead import Verdict, judge, spread
from tests.bench.compare.result import BANDWIDTH, EVACUATE, GRID, METHODS, SUITES, Outcome

_PAGE = """<style>
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: .5rem 1.5rem; }
figure { margin: .4rem 0; } th { white-space: normal; vertical-align: bottom; } th, td { padding: .2rem .5rem; }
@media print {
  :root { color-scheme: light; }
  body { max-width: none; margin: 0; padding: 0; font-size: 9pt; }
  h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; }
  .plots { grid-template-columns: 1fr 1fr; gap: .3rem; }
  .scroll { overflow: visible; } table { width: 100%; font-size: 8.5pt; }
  th, td { padding: .1rem .2rem; white-space: normal; min-width: 0 !important; overflow-wrap: anywhere; }
}
</style>"""
_HEAD = (
    "MB",
    "vTPMs",
    "method",
    "total s",
    "downtime s",
    "longest s",
    "all together s",
    "MB sent",
    "CPU s",
    "TPM commands",
    "keys made",
    "vTPM keys new",
    "note",
)
_WORDS = 3
_NONE = "-"
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
_TRUST_HEAD = ("method", "what is attested", "what the network sees", "what is trusted beyond that", "needs")
_TRUST = (
    (
        "stop",
        "both managers before; the one that arrives by its own boot: its keys open only for an approved image",
        "ciphertext of the disk, in the tunnel",
        "the hosts: QEMU has the memory in clear. No memory moves, so nothing that was only in memory goes on",
        "an empty, enrolled receiver",
    ),
    (
        "suspend",
        "both managers before; memory that arrives was not measured there: it is the one that the source attested",
        "ciphertext of memory and disk; the memory file is encrypted too",
        "both hosts with the whole memory, and so with the keys of all vTPMs at once",
        "an empty, enrolled receiver; processors that fit",
    ),
    (
        "precopy",
        "as suspend",
        "ciphertext of memory and disk, in the tunnel",
        "as suspend; and a link that lasts for the whole of the memory",
        "an empty, enrolled receiver; processors that fit",
    ),
    (
        EVACUATE,
        "both managers, again for each vTPM; each move has its own order and a receipt signed by both sides",
        "ciphertext of one vTPM's state; the hosts see no more of it than the network",
        "the manager at the other host, another one than before, with what else it holds; its host as any host",
        "a manager that serves and has room; versions that are not older",
    ),
)
_TRUST_NOTE = (
    "From the protocols (RELOCATION.md, MIGRATION.md), not measured. In all methods an order of the authority names"
    " source and destination and is used up, both hardware TPMs quote, and the destination's TPM decides who is first."
)


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
    parts += [markup.section("All cells", note, _table(outcomes, GRID))]
    parts += [markup.section("Secured against unsecured", *_suites(outcomes))]
    if any(each.job.part == BANDWIDTH for each in outcomes):
        parts += [markup.section("With a limited bandwidth", _table(outcomes, BANDWIDTH))]
    trust = markup.table(_TRUST_HEAD, [row for row in _TRUST if row[0] in methods], words=5)
    parts += [
        markup.section("Phases", _phases(outcomes)),
        markup.section("Commands to the hardware TPMs", _commands(outcomes)),
        markup.section("Who trusts whom", markup.paragraph(_TRUST_NOTE), _wrapped(trust)),
        markup.section("Method", markup.prose(about)),
        markup.section(
            "The machine",
            _wrapped(markup.table(("", ""), [(key, str(value)) for key, value in facts.items()], 2)),
        ),
        f'<p>All figures: <a href="{name}.json">{name}.json</a></p>',
    ]
    return markup.document(title, parts)


def text(outcomes: Sequence[Outcome], conclusions: Sequence[str]) -> str:
    """For the terminal."""
    cells = [("part", *_HEAD), *((each.job.part, *_row(each)) for each in outcomes)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD))]  # the note needs none
    table = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in cells
    ]
    return "\n".join([*table, "", *(f"- {line}" for line in conclusions)])


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
            yield _wrapped(markup.table(head, cells, words=len(head)))


def _table(outcomes: Sequence[Outcome], part: str) -> str:
    chosen = [each for each in outcomes if each.job.part == part]
    order = {method: number for number, method in enumerate(METHODS)}
    chosen.sort(key=lambda each: (each.job.memory, each.job.count, each.job.limit, order[each.job.method]))
    return markup.table(_HEAD, [_row(each) for each in chosen], _WORDS)


def _row(outcome: Outcome) -> tuple[str, ...]:
    job, each = outcome.job, outcome.figures
    head = str(job.memory), str(job.count), job.method
    notes = [job.suite] if job.part == SUITES else [result.mbit(job.limit)] if job.limit else []
    if each is None:
        return (*head, *[_NONE] * (len(_HEAD) - _WORDS - 1), "; ".join([*notes, f"not measured: {outcome.reason}"]))
    if each.least:
        notes.append(f"longest: at least {each.surely:.2f} s")
    if job.method == EVACUATE and len(each.pauses) != job.count:
        notes.append(f"pauses of {len(each.pauses)} vTPMs were seen")
    return (
        *head,
        f"{each.total:.1f}",
        f"{each.downtime:.2f}",
        f"{each.longest:.2f}",
        f"{each.waited(job.count):.1f}",
        f"{each.sent / 1e6:.2f}",
        f"{each.cpu:.1f}",
        str(each.commands),
        str(each.created),
        f"{each.changed} of {each.looked_at}",
        "; ".join(notes),
    )


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
    yield _table(outcomes, SUITES)


def _verdict(found: Verdict) -> str:
    """Coloured if it is one."""
    return markup.verdict(found is Verdict.MET) if found in (Verdict.MET, Verdict.MISSED) else str(found)


def _phases(outcomes: Sequence[Outcome]) -> str:
    """When each began."""
    rows = [
        (each.job.part, each.job.told(), ", ".join(f"{name} {at:.1f}" for name, at in each.figures.phases.items()))
        for each in outcomes
        if each.figures and each.figures.phases
    ]
    return markup.table(("part", "run", "phase and the second at which it began"), rows, words=3)


def _commands(outcomes: Sequence[Outcome]) -> str:
    rows = [
        (each.job.told(), where, ", ".join(f"{name} {times}" for name, times in counts.items()) or "none")
        for each in outcomes
        if each.figures and each.job.part == GRID
        for where, counts in (("source", each.figures.source_tpm), ("destination", each.figures.target_tpm))
    ]
    return _wrapped(markup.table(("run", "at", "commands"), rows, words=3))


def _side_by_side(plots: Iterable[str]) -> str:
    """Where there is room."""
    return f'<div class="plots">{"".join(plots)}</div>'


def _wrapped(table: str) -> str:
    """With long words in its cells."""
    return table.replace("<td ", '<td style="white-space: normal; min-width: 9rem" ')
