"""protocol.relocation: every interleaving of the shipped tables, walked to the end (RELOCATION.md, section 1).

A manager at platform A, and attempts to move it, all to one receiver or to two by turns. A commit writes the pending
file, then the anchor; a receiver writes its place, then keeps and says its word; everything may crash between. The host
has a copy of each manifest that was ever written, pending or not, and of each memory that has left; it may start each
of them anywhere, as often as it likes. One VM at a time uses a hardware TPM. Words once certified may be heard at any
time, again, or never; an ADOPT may come when its source waits no more. Copies of the memory of a manager that serves
are the host's power and not in the model.

Never two managers that serve; never one that serves without what was committed before; and from every world a way to
one that serves, which needs none of the host's copies but the one state disk and the one memory that are there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

import pytest

from manager_vm.protocol import relocation
from manager_vm.protocol.relocation import Effect, Event, Leaving, Receiving, Start, Step, Word

_L, _R = Leaving, Receiving


class Place(Enum):
    """What stands in the place, in the destination's TPM."""

    EMPTY = auto()
    CLAIMED = auto()
    RELEASED = auto()


def first_write(place: Place, wanted: Place) -> tuple[Place, bool]:
    """What the TPM does with the first write of a place (PolicyNvWritten): what stands there then, and if it is ours.

    A claim brings a digest of its own, so two claims are not one another's.
    """
    return (wanted, True) if place is Place.EMPTY else (place, place is wanted is Place.RELEASED)


@dataclass(frozen=True, slots=True)
class Disk:
    """A manifest. ``attempt``: the last that was agreed on; the secret of its place is there while ``state`` is set.

    ``away``: its owner is the destination of that attempt. ``work``: how many ordinary commits are in it.
    """

    attempt: int = 0
    state: Leaving | None = None
    work: int = 0
    away: bool = False


@dataclass(frozen=True, slots=True)
class Process:
    """A manager that runs. ``next``: in the pending file, not anchored yet. ``asking``: for the attempt it wants.

    ``told``: the receiver has answered. ``woken``: in memory, at a destination: it serves nothing before its claim.
    """

    disk: Disk
    next: Disk | None = None
    asking: int = 0
    told: bool = False
    woken: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """A destination. ``secret``: of the attempt that opens the place, ``stands``: what is there, ``manifest``: claimed.

    ``receiver``: the attempt that it is prepared for. ``process``: the manager that has come.
    """

    secret: int = 0
    stands: Place = Place.EMPTY
    manifest: Disk | None = None
    receiver: int = 0
    process: Process | None = None


@dataclass(frozen=True, slots=True)
class World:
    """``anchor``: in the TPM of A, and on the disk there; ``removed``: not in the TPM any more.

    ``offers``: attempts whose ADOPT is on its way. ``memories``: what the host has kept. ``work``: what is committed.
    """

    anchor: Disk = Disk()
    removed: bool = False
    home: Process | None = Process(Disk())
    sites: tuple[Site, ...] = (Site(), Site())
    attempts: int = 0
    offers: frozenset[int] = frozenset()
    memories: frozenset[Process] = frozenset()
    words: frozenset[tuple[Word, int, Disk | None]] = frozenset()
    work: int = 0


@dataclass(frozen=True, slots=True)
class Model:
    """The tables, and the rules around them that mutants break."""

    source: Mapping[tuple[Leaving | None, Event], Step] = field(default_factory=lambda: relocation.SOURCE)
    receiver: Mapping[tuple[Receiving | None, Event], Step] = field(default_factory=lambda: relocation.RECEIVER)
    start: Callable[..., Start] = relocation.start
    commits: Callable[[Leaving | None], bool] = relocation.commits
    first_write: Callable[[Place, Place], tuple[Place, bool]] = first_write
    attempts: int = 2
    destinations: int = 1
    work: int = 1  # ordinary commits in all: one is enough to tell an older manager from a newer one
    claim_uncertified: bool = False  # a receiver claims for a pending file, too
    certify_pending: bool = False  # COMMIT names the pending file
    wake_agreed: bool = False  # memory claims that has only agreed
    wake_early: bool = False  # memory claims that has left and not anchored that
    forget: bool = False  # the receiver has no word when it is asked again
    same_secret: bool = False
    bound: bool = True  # a word counts for its own move only
    look: bool = True  # who is taken back, or certifies, looks first whether the anchor is its own
    midway: bool = False  # the host copies a memory between that look and the anchor's write

    def secret(self, attempt: int) -> int:
        return min(attempt, 1) if self.same_secret else attempt

    def to(self, attempt: int) -> int:
        """Where this attempt leads."""
        return attempt % self.destinations


Successor = tuple[str, bool, World]  # what happens; whether the host's copies are not needed for it; the world then


def successors(model: Model, world: World) -> Iterator[Successor]:
    yield from home_steps(model, world)
    for number, site in enumerate(world.sites[: model.destinations]):
        steps = receiver_steps if site.process is None else arrival_steps
        yield from steps(model, world, number, site)


def put(world: World, number: int, site: Site) -> World:
    sites = list(world.sites)
    sites[number] = site
    return replace(world, sites=tuple(sites))


# -- the source -------------------------------------------------------------------------------------------------------


def home_steps(model: Model, world: World) -> Iterator[Successor]:
    if world.home is not None:
        yield from source_steps(model, world, world.home)
        return
    if not world.removed:
        yield "A starts from its disk", True, replace(world, home=Process(world.anchor))
    for memory in world.memories:
        yield "a copy of a memory wakes up at A", False, replace(world, home=memory)


def source_steps(model: Model, world: World, process: Process) -> Iterator[Successor]:
    disk, state = process.disk, process.disk.state
    yield "A ends", True, replace(world, home=None)  # it crashes, or an operator ends it
    if process.asking:
        yield "A waits no more", True, replace(world, home=replace(process, asking=0, told=False))
    elif (state, Event.AGREE) in model.source and process.next is None and world.attempts < model.attempts:
        attempt = world.attempts + 1
        asking = replace(process, asking=attempt)
        yield "A sends ADOPT", True, replace(world, home=asking, attempts=attempt, offers=world.offers | {attempt})
    if process.next is not None:
        yield "A anchors it", True, anchored(model, world, process, process.next)
    else:
        for name, new in changes(model, world, process):
            yield f"A writes a pending file: {name}", True, pending(model, world, process, new)
    if (word := commit_word(model, world, process)) is not None:
        yield "A certifies COMMIT", True, replace(world, words=world.words | {word})
    step = model.source.get((state, Event.CLAIMED))
    if step is not None and step.effect is Effect.GIVE_UP_TPM and heard(model, world, Word.CLAIMED, disk.attempt):
        yield "A hears CLAIMED, gives its TPM up", True, replace(world, home=None, removed=True)


def changes(model: Model, world: World, process: Process) -> Iterator[tuple[str, Disk]]:
    """What a process could commit now."""
    disk = process.disk
    now = {
        Event.AGREE: process.told,
        Event.FREEZE: not process.asking,
        Event.GIVE_UP: not process.asking,
        Event.RELEASED: heard(model, world, Word.RELEASED, disk.attempt) and is_anchored(model, world, disk),
    }
    for event, possible in now.items():
        step = model.source.get((disk.state, event))
        if step is not None and possible:
            assert not isinstance(step.state, Receiving)
            attempt = process.asking if event is Event.AGREE else disk.attempt
            yield event.name, Disk(attempt, step.state, disk.work, away=step.state is _L.LEFT)
    if model.commits(disk.state) and disk.work < model.work and not process.asking:
        yield "work", replace(disk, work=disk.work + 1)


def pending(model: Model, world: World, process: Process, new: Disk) -> World:
    writing = replace(process, next=new)
    kept = {writing} if model.midway and process.disk.state is _L.LEFT else set()
    if model.wake_early and new.state is _L.LEFT:
        kept.add(Process(new))
    return replace(world, home=writing, memories=world.memories | kept)


def anchored(model: Model, world: World, process: Process, new: Disk) -> World:
    if world.removed:
        return replace(world, home=None)
    freeze = model.source.get((process.disk.state, Event.FREEZE))
    removed = new.state is _L.LEFT and freeze is not None and freeze.effect is Effect.GIVE_UP_TPM
    kept = {Process(new)} if new.state is _L.LEFT or (model.wake_agreed and new.state is _L.AGREED) else set()
    work = max(world.work, new.work)
    memories = world.memories | kept
    return replace(world, anchor=new, removed=removed, home=Process(new), memories=memories, work=work)


def commit_word(model: Model, world: World, process: Process) -> tuple[Word, int, Disk | None] | None:
    """COMMIT of what stands in the anchor."""
    disk, new = process.disk, process.next
    if model.certify_pending and new is not None and new.state is _L.LEFT:
        return Word.COMMIT, new.attempt, new
    step = model.source.get((disk.state, Event.CERTIFY))
    certifies = step is not None and step.effect is Effect.CERTIFY and not world.removed
    return (Word.COMMIT, disk.attempt, world.anchor) if certifies and is_anchored(model, world, disk) else None


def is_anchored(model: Model, world: World, disk: Disk) -> bool:
    return not model.look or (world.anchor == disk and not world.removed)


def heard(model: Model, world: World, word: Word, attempt: int) -> bool:
    return any(said is word and (of == attempt or not model.bound) for said, of, _ in world.words)


# -- a destination without a manager, and its receiver ----------------------------------------------------------------


def receiver_steps(model: Model, world: World, number: int, site: Site) -> Iterator[Successor]:
    yield from adoptions(model, world, number, site)
    if site.receiver and site.secret == model.secret(site.receiver):
        yield from claims(model, world, number, site)
    yield from releases(model, world, number, site)
    if world.home is not None and world.home.disk.state is _L.LEFT and world.home.next is None:
        moved = come(model, replace(world, home=None), number, site, replace(world.home, woken=True))
        yield "the memory moves to B", True, moved
    for memory in world.memories:
        woken = replace(memory, next=None, woken=True)
        yield "a copy of a memory wakes up at B", False, come(model, world, number, site, woken)
    disk = site.manifest
    if site.stands is not Place.CLAIMED or disk is None:
        return
    here = disk.away and model.to(disk.attempt) == number
    if model.start(here=here, state=disk.state) in (Start.ARRIVED, Start.SERVES):
        own = disk == world.anchor or (disk.away and disk.state is None)  # it comes from A, or went on here
        yield "B starts from a disk", own, come(model, world, number, site, Process(disk))


def come(model: Model, world: World, number: int, site: Site, process: Process) -> World:
    """The receiver ends before, and its conversations with it."""
    offers = frozenset(attempt for attempt in world.offers if model.to(attempt) != number)
    return put(replace(world, offers=offers), number, replace(site, process=process))


def adoptions(model: Model, world: World, number: int, site: Site) -> Iterator[Successor]:
    step = model.receiver.get((_R.PREPARED if site.receiver else None, Event.ADOPT))
    for attempt in world.offers:
        waits = world.home is not None and world.home.asking == attempt
        if step is None or model.to(attempt) != number:
            continue
        made = replace(site, secret=model.secret(attempt), stands=Place.EMPTY, manifest=None)
        if step.effect is Effect.CLAIM:
            made = replace(made, stands=Place.CLAIMED, manifest=world.anchor)
        yield "R makes a place, and crashes", True, put(replace(world, offers=frozenset()), number, made)
        home = replace(world.home, told=True) if waits and world.home is not None else world.home
        after = replace(world, offers=world.offers - {attempt}, home=home)
        yield "R makes a place", True, put(after, number, replace(made, receiver=attempt))


def claims(model: Model, world: World, number: int, site: Site) -> Iterator[Successor]:
    step = model.receiver.get((_R.PREPARED, Event.COMMIT))
    wanted = {(of, disk) for word, of, disk in world.words if word is Word.COMMIT}
    file = world.home.next if world.home is not None else None
    if model.claim_uncertified and file is not None and file.state is _L.LEFT:
        wanted.add((file.attempt, file))
    for attempt, disk in wanted:
        if step is None or step.effect is not Effect.CLAIM or (attempt != site.receiver and model.bound):
            continue
        stands, ours = model.first_write(site.stands, Place.CLAIMED)
        if ours or (stands is Place.CLAIMED and site.manifest == disk):
            claimed = put(world, number, replace(site, stands=stands, manifest=disk))
            yield "R claims, and crashes", True, claimed
            yield "R claims", True, replace(claimed, words=world.words | {(Word.CLAIMED, site.receiver, None)})


def releases(model: Model, world: World, number: int, site: Site) -> Iterator[Successor]:
    step = model.receiver.get((_R.PREPARED, Event.RELEASE))
    if not site.receiver or step is None:
        return
    word = frozenset() if model.forget else frozenset({(Word.RELEASED, site.receiver, None)})
    said = replace(world, words=world.words | word)
    if step.effect is not Effect.RELEASE:
        yield "R says RELEASED", True, put(said, number, replace(site, receiver=0))
        return
    stands, ours = model.first_write(site.stands, Place.RELEASED)
    if ours and site.secret == model.secret(site.receiver):
        written = replace(site, stands=stands, manifest=None)
        yield "R releases, and crashes", True, put(world, number, written)
        yield "R releases", True, put(said, number, replace(written, receiver=0))


# -- a destination to which a manager has come ------------------------------------------------------------------------


def arrival_steps(model: Model, world: World, number: int, site: Site) -> Iterator[Successor]:
    process = site.process
    assert process is not None
    disk, new = process.disk, process.next
    yield "B ends", True, put(world, number, replace(site, process=None))
    opens = site.secret == model.secret(disk.attempt)
    if new is None and disk.state is not None:
        arrived = Disk(disk.attempt, None, disk.work, away=True)
        yield "B writes a pending file", True, put(world, number, replace(site, process=replace(process, next=arrived)))
    elif new is None and model.commits(disk.state) and disk.work < model.work:
        work = replace(process, next=replace(disk, work=disk.work + 1))
        yield "B writes a pending file: work", True, put(world, number, replace(site, process=work))
    elif new is not None and opens:
        stands, ours = model.first_write(site.stands, Place.CLAIMED) if process.woken else (site.stands, True)
        if ours:
            after = replace(site, stands=stands, manifest=new, process=Process(new))
            name = "B claims" if process.woken else "B anchors it"
            yield name, True, put(replace(world, work=max(world.work, new.work)), number, after)
    if serves(model, process, number) and opens and site.stands is Place.CLAIMED:
        yield "B says CLAIMED", True, replace(world, words=world.words | {(Word.CLAIMED, disk.attempt, None)})


# -- the walk ---------------------------------------------------------------------------------------------------------


def serves(model: Model, process: Process, number: int | None) -> bool:
    """``number``: of the destination, None: at A."""
    disk = process.disk
    here = disk.away is (number is not None) and number in (None, model.to(disk.attempt))
    return not process.woken and model.start(here=here, state=disk.state) in (Start.SERVES, Start.ARRIVED)


@dataclass(frozen=True, slots=True)
class Found:
    """``fault``: "" if nothing is wrong; "two" or an "older" one serve, "none" ever will. ``trace``: how it came."""

    worlds: list[World] = field(repr=False)
    fault: str = ""
    trace: tuple[str, ...] = ()


def judged(model: Model, world: World) -> tuple[str, int]:
    """What is wrong here, and how many serve."""
    running: list[tuple[Process | None, int | None]] = [(world.home, None)]
    running += [(site.process, number) for number, site in enumerate(world.sites)]
    serving = [each for each, number in running if each is not None and serves(model, each, number)]
    if len(serving) > 1:
        return "two", len(serving)
    return "older" if any(each.disk.work < world.work for each in serving) else "", len(serving)


def walk(model: Model, most: int = 300_000) -> Found:
    """All worlds, breadth first, up to the first in which something is wrong."""
    worlds, ids, single = [World()], {World(): 0}, set()
    came, back = [("", 0)], list[list[int]]([[]])
    for here, world in enumerate(worlds):  # it grows meanwhile
        fault, count = judged(model, world)
        if fault:
            return Found(worlds, fault, trace(came, here))
        if count:
            single.add(here)
        for name, honest, new in successors(model, world):
            there = ids.setdefault(new, len(worlds))
            if there == len(worlds):
                assert there < most, "the model is larger than it should be"
                worlds.append(new)
                came.append((name, here))
                back.append([])
            if honest:
                back[there].append(here)
    alive = reached(back, single)
    lost = next((each for each in range(len(worlds)) if each not in alive), None)
    return Found(worlds) if lost is None else Found(worlds, "none", trace(came, lost))


def reached(back: list[list[int]], single: set[int]) -> set[int]:
    """From which worlds honest steps lead to one of ``single``."""
    alive, todo = set(single), deque(single)
    while todo:
        for before in back[todo.popleft()]:
            if before not in alive:
                alive.add(before)
                todo.append(before)
    return alive


def trace(came: list[tuple[str, int]], world: int) -> tuple[str, ...]:
    names: list[str] = []
    while world:
        name, world = came[world]
        names.append(name)
    return tuple(reversed(names))


@pytest.mark.parametrize(
    "model", [Model(work=2), Model(attempts=3), Model(destinations=2)], ids=["work", "attempts", "destinations"]
)
def test_there_are_never_two_managers_that_serve_and_never_none_for_ever(model: Model) -> None:
    found = walk(model)
    assert (found.fault, found.trace) == ("", ())
    assert len(found.worlds) > 4_000


def test_the_walk_meets_both_ways_to_move_and_the_way_back_in_each_attempt() -> None:
    worlds = walk(Model()).worlds
    met = {(world.removed, world.sites[0].stands, world.sites[0].manifest, world.anchor.attempt) for world in worlds}
    for attempt in (1, 2):
        assert (True, Place.CLAIMED, Disk(attempt, None, 1, away=True), attempt) in met
        assert (False, Place.CLAIMED, Disk(attempt, _L.LEFT, 0, away=True), attempt) in met
        assert (False, Place.RELEASED, None, attempt) in met


def without(table: Mapping[Any, Step], *rows: Any) -> dict[Any, Step]:
    return {row: step for row, step in table.items() if row not in rows}


def source(state: Leaving | None, event: Event, step: Step | None) -> Model:
    """The source's table with another row, or without it."""
    rows = without(relocation.SOURCE, (state, event))
    return Model(source=rows if step is None else {**rows, (state, event): step})


def receiver(state: Receiving | None, event: Event, step: Step) -> Model:
    return Model(receiver={**relocation.RECEIVER, (state, event): step})


def starts(here: bool, state: Leaving | None, found: Start) -> Model:
    rows = {**relocation.START, (here, state): found}
    return Model(start=lambda *, here, state: rows.get((here, state), Start.ELSEWHERE))


def released_last(place: Place, wanted: Place) -> tuple[Place, bool]:
    return (wanted, True) if wanted is Place.RELEASED else first_write(place, wanted)


def claimed_again(place: Place, wanted: Place) -> tuple[Place, bool]:
    return (wanted, True) if place is wanted is Place.CLAIMED else first_write(place, wanted)


MUTANTS: dict[str, tuple[str, Model]] = {
    "a receiver claims without COMMIT": ("two", Model(claim_uncertified=True)),
    "a receiver claims when it adopts": ("none", receiver(None, Event.ADOPT, Step(_R.PREPARED, Effect.CLAIM))),
    "COMMIT is certified of the pending file": ("two", Model(certify_pending=True)),
    "COMMIT is certified before the source has left": (
        "none",
        source(_L.AGREED, Event.CERTIFY, Step(_L.AGREED, Effect.CERTIFY)),
    ),
    "memory claims that has only agreed": ("two", Model(wake_agreed=True)),
    "memory claims that has left and not anchored that": ("two", Model(wake_early=True)),
    "a place is written like any index": ("two", Model(first_write=lambda place, wanted: (wanted, True))),
    "a second claim overrides the first": ("older", Model(first_write=claimed_again)),
    "RELEASED overrides CLAIMED": ("older", Model(first_write=released_last)),
    "RELEASED overrides nothing, not even itself": (
        "none",
        Model(first_write=lambda place, wanted: (wanted, True) if place is Place.EMPTY else (place, False)),
    ),
    "RELEASED is said and not written": ("two", receiver(_R.PREPARED, Event.RELEASE, Step(None))),
    "a receiver forgets that it has released": ("none", Model(forget=True)),
    "a receiver that keeps a place makes another": (
        "none",
        receiver(_R.PREPARED, Event.ADOPT, Step(_R.PREPARED, Effect.MAKE_PLACE)),
    ),
    "a manager that has left gives up, and serves": (
        "two",
        source(_L.LEFT, Event.GIVE_UP, Step(None, Effect.SERVE)),
    ),
    "a manager that has left commits": ("older", Model(commits=lambda state: True)),
    "RELEASED does not lead back": ("none", source(_L.LEFT, Event.RELEASED, None)),
    "a source gives its TPM up when it leaves": (
        "none",
        source(_L.AGREED, Event.FREEZE, Step(_L.LEFT, Effect.GIVE_UP_TPM)),
    ),
    "who is taken back does not look at the anchor": ("older", Model(look=False)),
    "the next place has the same secret": ("two", Model(same_secret=True)),
    "a word counts for every move": ("two", Model(bound=False)),
    "a manager that has left serves where it came from": ("two", starts(False, _L.LEFT, Start.SERVES)),
    "a manager that has left waits where it went": ("none", starts(True, _L.LEFT, Start.LEFT)),
    "a memory is copied while it is taken back": ("older", Model(midway=True)),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_each_broken_rule_is_found(name: str) -> None:
    fault, mutant = MUTANTS[name]
    found = walk(mutant)
    assert found.fault == fault, found.trace
