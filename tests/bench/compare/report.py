"""What is written about the comparison: a page with plots, tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from manager_vm.protocol.tunnel import Suite
from tests.bench import markup
from tests.bench.compare import drawing, findings, result
from tests.bench.compare.findings import spread
from tests.bench.compare.result import BANDWIDTH, EVACUATE, GRID, METHODS, SUITES, Outcome

_PAGE = """<style>
figure { margin: .8rem 0; }
@media print {
  :root { color-scheme: light; }
  body { max-width: none; margin: 0; font-size: 9pt; }
  h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; } figure svg { max-width: 12cm !important; }
  .scroll { overflow: visible; } th, td { padding: .1rem .25rem; white-space: normal; }
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
_PLOTS = (
    ("total time", "seconds", 0),
    ("longest wait of one vTPM", "seconds", 1),
    ("waiting of all vTPMs together", "seconds", 2),
    ("MB sent", "10^6 bytes", 3),
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
    title: str, about: str, facts: dict[str, object], outcomes: Sequence[Outcome], conclusions: Sequence[str]
) -> str:
    """HTML; the plots are in it."""
    note = "Downtime: see Method; the vTPMs of a whole manager all wait so long, those of evacuate each by itself."
    parts = [_PAGE, markup.section("Conclusions", markup.bullets(conclusions))]
    parts += [markup.section("Where they cross over", markup.paragraph(_CROSS_NOTE), _crossings(outcomes))]
    parts += [markup.section(f"{memory} MB", *_plots(outcomes, memory)) for memory in result.memories(outcomes)]
    parts += [markup.section("All cells", markup.paragraph(note), _table(outcomes, GRID))]
    parts += [markup.section("Secured against unsecured", *_suites(outcomes))]
    if any(each.job.part == BANDWIDTH for each in outcomes):
        parts += [markup.section("With a limited bandwidth", _table(outcomes, BANDWIDTH))]
    parts += [
        markup.section("Phases", _phases(outcomes)),
        markup.section("Commands to the hardware TPMs", _commands(outcomes)),
        markup.section(
            "Who trusts whom", markup.paragraph(_TRUST_NOTE), _wrapped(markup.table(_TRUST_HEAD, _TRUST, words=5))
        ),
        markup.section("Method", markup.prose(about)),
        markup.section("The machine", markup.table(("", ""), [(key, str(value)) for key, value in facts.items()], 2)),
        '<p>All figures: <a href="compare.json">compare.json</a></p>',
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


def _crossings(outcomes: Sequence[Outcome]) -> str:
    rows = [
        (f"{memory} MB", what, method, text)
        for memory in result.memories(outcomes)
        for what, found in findings.compared(outcomes, memory)
        for method, text in found
    ]
    return _wrapped(markup.table(("manager", "quantity", f"{EVACUATE} against", "who needs less"), rows, words=4))


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
    for what, unit, number in _PLOTS:
        of, scale = findings.QUANTITIES[number][1], 1e-6 if what == "MB sent" else 1.0
        points = {
            method: {count: of(count, each) * scale for count, each in cells.items()} for method, cells in found.items()
        }
        yield drawing.lines(f"{memory} MB: {what}", unit, points, across)
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
    for what in ("total", "downtime"):
        samples: dict[str, list[float]] = {
            str(suite): [getattr(each.figures, what) for each in chosen if each.figures and each.job.suite == suite]
            for suite in Suite
        }
        yield drawing.dots(f"Tunnel's cipher: {what}", "seconds", {name: s for name, s in samples.items() if s})
    rows = [(each.suite, spread(each.total), spread(each.downtime)) for each in findings.overheads(outcomes)]
    yield markup.table(("against none", "total", "downtime"), rows)
    yield _table(outcomes, SUITES)


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


def _wrapped(table: str) -> str:
    """With long words in its cells."""
    return table.replace("<td ", '<td style="white-space: normal; min-width: 9rem" ')
