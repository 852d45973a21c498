"""Tables of the page about moves: all figures, phases, commands, who trusts whom."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tests.bench import markup
from tests.bench.compare.result import EVACUATE, GRID, METHODS, SUITES, Outcome

HEAD = (
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
_TRUST_HEAD = ("method", "what is attested", "what the network sees", "what is trusted beyond that", "needs")
_ATTESTED = "both managers before; memory that arrives was not measured there: it is the one that the source attested"
_IN_CLEAR = "both hosts with the whole memory, and so with the keys of all vTPMs at once"
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
        _ATTESTED,
        "ciphertext of memory and disk; the memory file is encrypted too",
        _IN_CLEAR,
        "an empty, enrolled receiver; processors that fit",
    ),
    (
        "precopy",
        _ATTESTED,
        "ciphertext of memory and disk, in the tunnel",
        f"{_IN_CLEAR}; and a link that lasts for the whole of the memory",
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
TRUST_NOTE = (
    "From the protocols (RELOCATION.md, MIGRATION.md), not measured. In all methods an order of the authority names"
    " source and destination and is used up, both hardware TPMs quote, and the destination's TPM decides who is first."
)


def figures(outcomes: Sequence[Outcome], part: str) -> str:
    chosen = [each for each in outcomes if each.job.part == part]
    order = {method: number for number, method in enumerate(METHODS)}
    chosen.sort(
        key=lambda each: (each.job.memory, each.job.count, each.job.limit, each.job.rtt, order[each.job.method])
    )
    rows = [row(each) for each in chosen]
    return markup.table(HEAD, [(*cells, f'<span class="note">{escape(note)}</span>') for *cells, note in rows], _WORDS)


def row(outcome: Outcome) -> tuple[str, ...]:
    job, each = outcome.job, outcome.figures
    head = str(job.memory), str(job.count), job.method
    notes = [job.suite] if job.part == SUITES else job.network
    if each is None:
        return (*head, *[_NONE] * (len(HEAD) - _WORDS - 1), "; ".join([*notes, f"not measured: {outcome.reason}"]))
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


def trust(outcomes: Sequence[Outcome]) -> str:
    """Of the methods that were asked for."""
    methods = {each.job.method for each in outcomes}
    return wrapped(markup.table(_TRUST_HEAD, [each for each in _TRUST if each[0] in methods], words=5))


def phases(outcomes: Sequence[Outcome]) -> str:
    """When each began."""
    rows = [
        (each.job.part, each.job.told(), ", ".join(f"{name} {at:.1f}" for name, at in each.figures.phases.items()))
        for each in outcomes
        if each.figures and each.figures.phases
    ]
    return wrapped(markup.table(("part", "run", "phase and the second at which it began"), rows, words=3))


def commands(outcomes: Sequence[Outcome]) -> str:
    rows = [
        (each.job.told(), where, ", ".join(f"{name} {times}" for name, times in counts.items()) or "none")
        for each in outcomes
        if each.figures and each.job.part == GRID
        for where, counts in (("source", each.figures.source_tpm), ("destination", each.figures.target_tpm))
    ]
    return wrapped(markup.table(("run", "at", "commands"), rows, words=3))


def wrapped(table: str) -> str:
    """With long words in its cells."""
    return table.replace("<td ", '<td style="white-space: normal; min-width: 9rem" ')
