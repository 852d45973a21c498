"""Moves between two platforms, in each hierarchy in turn; what they took, and what links whom."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from manager_vm.keys import hierarchy
from manager_vm.keys.ek_ca import EkCa
from manager_vm.keys.hierarchy import Kind, Move
from manager_vm.trust import vak
from manager_vm.trust.signing import SigningKey
from tests import unlinkability
from tests.bench.stats import quantile
from tests.platforms import COMMANDS, OutsideCa, Platform, Vtpm, above
from tests.unlinkability import Finding

KINDS = (Kind.SK, Kind.AK_VEK, Kind.AK_VAK, Kind.INDEPENDENT)


@dataclass(frozen=True, slots=True)
class Site:
    """Platforms "A" and "B"; vTPMs by name ("A/0" was made on A)."""

    authority: SigningKey
    outside: OutsideCa
    platforms: dict[str, Platform]
    vtpms: dict[str, Vtpm]


@dataclass(slots=True)
class Row:
    """One hierarchy. ``moves``: what each move took; ``commands``: to both hardware TPMs, all moves together."""

    kind: Kind
    moves: list[Move] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    issuing: list[float] = field(default_factory=list)
    commands: Counter[str] = field(default_factory=Counter)
    platform_shown: bool = False
    links: list[Finding] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)

    @property
    def measured(self) -> Move | None:
        """What each move took; None if they differ."""
        return self.moves[0] if len(set(self.moves)) == 1 else None

    @property
    def claimed(self) -> Move:
        """What the module says."""
        return hierarchy.of(self.kind).move

    def median(self) -> float:
        """Milliseconds of a move."""
        return quantile(sorted(self.milliseconds), 0.5)


@contextmanager
def site(directory: Path, vtpms: int, rounds: int) -> Iterator[Site]:
    """Everything that takes part, closed at the end."""
    authority = SigningKey.create()
    certificate, pool = above(authority), vtpms * (rounds + 2)
    with ExitStack() as stack:
        made = Site(authority, OutsideCa(), {}, {})
        for name in "AB":
            made.platforms[name] = Platform(directory, name, authority, certificate, pool)
            stack.callback(made.platforms[name].close)
        for name in (f"{platform}/{number}" for platform in "AB" for number in range(vtpms)):
            made.vtpms[name] = Vtpm(directory, name.replace("/", ""), EkCa.create())
            stack.callback(made.vtpms[name].close)
        yield made


def rows(site: Site, rounds: int) -> list[Row]:
    """All hierarchies, measured in turn."""
    found = [Row(kind) for kind in KINDS]
    for number in range(rounds):
        for platform in site.platforms.values():
            platform.forget()
        for row in found if number % 2 else found[::-1]:
            for name in (name for name in site.vtpms if name[0] == "A"):
                _move(site, row, name)
    for platform in site.platforms.values():
        platform.forget()
    for row in found:
        everything = {name: _shown(site, row.kind, name) for name in site.vtpms}
        row.links = unlinkability.links(everything)
        row.unnamed = sorted(unlinkability.constants(everything) - unlinkability.allowed())
    return found


def _move(site: Site, row: Row, name: str) -> None:
    vtpm, target, chosen = site.vtpms[name], site.platforms["B"], hierarchy.of(row.kind)
    start = time.perf_counter()
    old = _issue(site, row.kind, name)
    row.issuing.append((time.perf_counter() - start) * 1000)
    before, contacts, sks = vtpm.subject(), site.outside.contacts, target.assigned
    wires = [platform.wire for platform in site.platforms.values()]
    used, counted = sum(wire.operations() for wire in wires), [wire.count.copy() for wire in wires]
    start = time.perf_counter()
    new = chosen.renew(old, before, target)
    proven = vak.verify(vak.pack(new), site.authority.public, [site.outside.root])
    if proven.challenge is not None:
        assert site.outside.ask(vtpm, proven.challenge, proven.ak)
    row.milliseconds.append((time.perf_counter() - start) * 1000)
    after = vtpm.subject()
    keys = (after.ak.name != before.ak.name) + sum(
        after.ek_names[kind] != each for kind, each in before.ek_names.items()
    )
    hardware = sum(wire.operations() for wire in wires) - used
    row.moves.append(Move(keys, target.assigned - sks, hardware, site.outside.contacts - contacts))
    row.platform_shown = bool(proven.platform)
    for wire, old_count in zip(wires, counted, strict=True):
        for code, times in (wire.count - old_count).items():
            row.commands[COMMANDS.get(code, f"{code:#x}")] += times


def _issue(site: Site, kind: Kind, name: str) -> vak.Credential:
    response = site.outside.certify(site.vtpms[name]) if kind is Kind.INDEPENDENT else b""
    return hierarchy.of(kind).issue(site.vtpms[name].subject(), site.platforms[name[0]], response)


def _shown(site: Site, kind: Kind, name: str) -> list[bytes]:
    """All that third parties get to see of a vTPM."""
    subject = site.vtpms[name].subject()
    return [vak.pack(_issue(site, kind, name)), *subject.certificates.values(), subject.ca]
