"""protocol.relocation: every interleaving of the shipped tables, walked to the end (RELOCATION.md, section 1).

A manager at platform A, a receiver at B. The host may run any copy of a disk that ever was, also of a pending file, and
any copy of a frozen memory, at either platform, as often as it likes; everything may crash between any two steps; words
that were certified once may be heard at any time, again, or never. Two attempts to move. A hardware TPM has one user at
a time. Copies of the memory of a manager that serves are the host's power and not in the model.

A version names one manifest; anchors name the one that counts. Never two managers that serve, never none for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from manager_vm.protocol import relocation
from manager_vm.protocol.relocation import Effect, Event, Leaving, Place, Receiving, Start, Step, Word

ATTEMPTS = 2
WASTED = 5  # a commit is cut off as long as there are no more versions than that
REMOVED = -1
_L, _R = Leaving, Receiving


@dataclass(frozen=True, slots=True)
class Disk:
    """A manifest on a disk. ``attempt``: of the place that it knows, 0 if it knows none."""

    version: int
    state: Leaving | None = None
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Running:
    """A process that has opened ``disk``. ``next``: what it is about to anchor (pending is written already)."""

    disk: Disk
    next: Disk | None = None


@dataclass(frozen=True, slots=True)
class World:
    """``place``: (attempt whose secret opens it, what stands there, the version). ``here``: processes over TPM A,
    ``there``: of the manager over TPM B. ``pending_release``: the receiver has written, and not kept the word yet.
    """

    anchor: int = 1
    versions: int = 1
    copies: frozenset[Disk] = frozenset({Disk(1)})
    memories: frozenset[Disk] = frozenset()
    here: frozenset[Running] = frozenset({Running(Disk(1))})
    there: frozenset[int] = frozenset()
    receiver: int = 0  # attempt that it keeps a place for
    adopted: int = 0  # the place that the source was told of, and has not noted
    place: tuple[int, Place, int] = (0, Place.EMPTY, 0)
    attempts: int = 0
    words: frozenset[tuple[Word, int, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Model:
    """The tables, and the rules around them that mutants break."""

    source: Mapping[tuple[Leaving | None, Event], Step] = field(default_factory=lambda: relocation.SOURCE)
    receiver: Mapping[tuple[Receiving | None, Event], Step] = field(default_factory=lambda: relocation.RECEIVER)
    start: Callable[..., Start] = relocation.start
    first_write: Callable[[Place, Place], tuple[Place, bool]] = relocation.first_write
    claim_uncertified: bool = False
    certify_pending: bool = False
    claim_anywhere: bool = False  # memory claims in any state
    release_by_word: bool = False  # nothing is written
    forget_word: bool = False
    same_secret: bool = False
    any_move: bool = False  # words of another move count
    check_anchor: bool = True  # a frozen copy that is taken back looks at it


def serving(model: Model, world: World) -> int:
    here = sum(_serves(model, each.disk, here=True) for each in world.here)
    return here + len(world.there)


def _serves(model: Model, disk: Disk, *, here: bool) -> bool:
    owner_here = (disk.state is not _L.LEFT) == here
    return model.start(here=owner_here, state=disk.state) in (Start.SERVES, Start.ARRIVED)


def successors(model: Model, world: World) -> Iterator[tuple[bool, World]]:
    """(whether an honest host and network do this, what the world is then)."""
    for each in source_steps(model, world):
        yield True, each
    for each in receiver_steps(model, world):
        yield True, each
    for each in destination_steps(model, world):
        yield True, each
    for each in host_steps(model, world):
        yield True, each
    yield from crashes(world)


# -- the source -------------------------------------------------------------------------------------------------------


def source_steps(model: Model, world: World) -> Iterator[World]:
    for process in world.here:
        rest = world.here - {process}
        if process.next is not None:
            yield anchored(world, rest, process.next)
            continue
        disk = process.disk
        for event, new in changes(model, world, disk):
            step = model.source.get((disk.state, event))
            if step is not None and step.state is new.state:
                yield begun(world, rest, process, new)
        yield from words_of(model, world, process, rest)


def changes(model: Model, world: World, disk: Disk) -> Iterator[tuple[Event, Disk]]:
    """What a process could commit now: the event and the manifest."""
    version = world.versions + 1
    heard = {word for word, attempt, _ in world.words if model.any_move or attempt == disk.attempt}
    if disk.state is not _L.LEFT and world.adopted:
        yield Event.AGREE, Disk(version, _L.AGREED, world.adopted)
    if disk.state is _L.AGREED:
        yield Event.FREEZE, Disk(version, _L.LEFT, disk.attempt)
    yield Event.GIVE_UP, Disk(version)
    if Word.RELEASED in heard and (world.anchor == disk.version or not model.check_anchor):
        yield Event.RELEASED, Disk(version)


def begun(world: World, rest: frozenset[Running], process: Running, new: Disk) -> World:
    """The pending file is there, and the host can copy it."""
    here = rest | {Running(process.disk, new)}
    return replace(world, here=here, copies=world.copies | {new}, versions=new.version)


def anchored(world: World, rest: frozenset[Running], new: Disk) -> World:
    """The anchor is written; one that does not hold the authorization any more ends."""
    if world.anchor == REMOVED:
        return replace(world, here=rest)
    adopted = 0 if new.attempt == world.adopted else world.adopted
    return replace(world, here=rest | {Running(new)}, anchor=new.version, adopted=adopted)


def words_of(model: Model, world: World, process: Running, rest: frozenset[Running]) -> Iterator[World]:
    """What is certified or heard without a commit."""
    disk = process.disk
    step = model.source.get((disk.state, Event.CERTIFY)) or model.source.get((disk.state, Event.FREEZE))
    certifies = disk.state is _L.LEFT and step is not None and world.anchor == disk.version
    if certifies or (model.certify_pending and process.disk.state is _L.AGREED):
        version = disk.version if certifies else world.versions + 1
        pending = world.copies if certifies else world.copies | {Disk(version, _L.LEFT, disk.attempt)}
        word = (Word.COMMIT, disk.attempt, version)
        yield replace(world, words=world.words | {word}, copies=pending, versions=max(world.versions, version))
    heard = {word for word, attempt, _ in world.words if model.any_move or attempt == disk.attempt}
    step = model.source.get((disk.state, Event.CLAIMED))
    gives_up = step is not None and step.effect is Effect.GIVE_UP_TPM and Word.CLAIMED in heard
    early = model.source.get((disk.state, Event.FREEZE))
    if gives_up or (disk.state is _L.AGREED and early is not None and early.effect is Effect.GIVE_UP_TPM):
        yield replace(world, here=rest, anchor=REMOVED)
    if disk.state is _L.LEFT:
        yield replace(world, memories=world.memories | {disk})


# -- the receiver -----------------------------------------------------------------------------------------------------


def receiver_steps(model: Model, world: World) -> Iterator[World]:
    state = _R.PREPARED if world.receiver else None
    asks = any(model.source.get((each.disk.state, Event.AGREE)) and each.next is None for each in world.here)
    if asks and not world.adopted and world.attempts < ATTEMPTS and not world.there:
        step = model.receiver.get((state, Event.ADOPT))
        if step is not None and step.effect is Effect.MAKE_PLACE:
            yield adopt(model, world)
    attempt, stands, version = world.place
    if not world.receiver:
        return
    commit = model.receiver.get((state, Event.COMMIT))
    words = set(world.words)
    if model.claim_uncertified:
        words |= {(Word.COMMIT, disk.attempt, disk.version) for disk in world.copies if disk.state is _L.LEFT}
    for word, of, certified in words:
        if word is Word.COMMIT and (of == world.receiver or model.any_move) and commit is not None:
            new, ours = model.first_write(stands, Place.CLAIMED)
            if ours:
                claimed = replace(world, place=(attempt, new, certified))
                yield replace(claimed, words=claimed.words | {(Word.CLAIMED, world.receiver, 0)})
    release = model.receiver.get((state, Event.RELEASE))
    if release is None or release.effect is not Effect.RELEASE:
        return
    if model.release_by_word:
        yield released(model, world)
        return
    new, ours = model.first_write(stands, Place.RELEASED)
    if ours:
        yield replace(world, place=(attempt, new, version))
        yield released(model, replace(world, place=(attempt, new, version)))


def adopt(model: Model, world: World) -> World:
    attempt = world.attempts + 1
    secret = 1 if model.same_secret else attempt
    return replace(world, attempts=attempt, receiver=attempt, adopted=attempt, place=(secret, Place.EMPTY, 0))


def released(model: Model, world: World) -> World:
    """The word is kept with the receiver's own commit."""
    word = frozenset() if model.forget_word else frozenset({(Word.RELEASED, world.receiver, 0)})
    return replace(world, receiver=0, words=world.words | word)


# -- the destination --------------------------------------------------------------------------------------------------


def destination_steps(model: Model, world: World) -> Iterator[World]:
    attempt, stands, version = world.place
    for memory in world.memories if not model.claim_anywhere else world.memories | world.copies:
        if (1 if model.same_secret else memory.attempt) != attempt or not memory.attempt:
            continue  # it has not the secret of this place
        new, ours = model.first_write(stands, Place.CLAIMED)
        if ours:
            token = world.versions + 1
            at = replace(world, place=(attempt, new, token), versions=token, there=world.there | {token})
            yield replace(at, words=at.words | {(Word.CLAIMED, memory.attempt, 0)})
    for disk in world.copies:
        known = (1 if model.same_secret else disk.attempt) == attempt and disk.attempt > 0
        arrives = model.start(here=disk.state is _L.LEFT, state=disk.state) is Start.ARRIVED
        if known and arrives and stands is Place.CLAIMED and version == disk.version and not world.there:
            yield replace(world, there=world.there | {version})
    if stands is Place.CLAIMED and version > world.anchor and not world.there and version not in _versions(world):
        yield replace(world, there=frozenset({version}))  # its own newest disk


def _versions(world: World) -> set[int]:
    return {disk.version for disk in world.copies}


# -- hosts ------------------------------------------------------------------------------------------------------------


def host_steps(model: Model, world: World) -> Iterator[World]:
    """Start whatever there is at A: disks that are anchored, and memories that were frozen."""
    for disk in world.copies:
        if disk.version == world.anchor and not world.here:
            yield replace(world, here=frozenset({Running(disk)}))
    for memory in world.memories:
        if not world.here:
            yield replace(world, here=frozenset({Running(memory)}))


def crashes(world: World) -> Iterator[tuple[bool, World]]:
    for process in world.here:
        if process.next is not None and world.versions > WASTED:
            continue  # enough pending files
        yield True, replace(world, here=world.here - {process}, adopted=0)  # an operator may end it, too
    for token in world.there:
        yield False, replace(world, there=world.there - {token})
    if world.adopted:
        yield False, replace(world, adopted=0)  # the conversation breaks


# -- the walk ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    worlds: int
    two: World | None
    none: World | None


def walk(model: Model, most: int = 400_000) -> Found:
    """All worlds, breadth first; the first with two managers, and one from which no honest way leads to one."""
    first = World()
    back: dict[World, list[World]] = {first: []}
    todo, single = deque([first]), []
    while todo:
        world = todo.popleft()
        count = serving(model, world)
        if count > 1:
            return Found(len(back), world, None)
        if count == 1:
            single.append(world)
        for honest, new in successors(model, world):
            if new not in back:
                assert len(back) < most, "the model is larger than it should be"
                back[new] = []
                todo.append(new)
            if honest:
                back[new].append(world)
    alive, todo = set(single), deque(single)
    while todo:
        for before in back[todo.popleft()]:
            if before not in alive:
                alive.add(before)
                todo.append(before)
    return Found(len(back), None, next((world for world in back if world not in alive), None))


def test_there_is_never_more_than_one_manager_and_always_a_way_to_one() -> None:
    found = walk(Model())
    print(f"{found.worlds} worlds")
    assert (found.two, found.none) == (None, None)
    assert found.worlds > 1_000


def without(table: Mapping[Any, Step], *rows: Any) -> dict[Any, Step]:
    return {key: value for key, value in table.items() if key not in rows}


def changed(table: Mapping[Any, Step], row: Any, step: Step) -> dict[Any, Step]:
    return {**table, row: step}


def at_home(*, here: bool, state: Leaving | None) -> Start:
    """The owner is not looked at."""
    return Start.SERVES if state is not _L.LEFT or not here else Start.ARRIVED


MUTANTS: dict[str, tuple[Model, str]] = {
    "the receiver claims for a file that nobody has certified": (Model(claim_uncertified=True), "two"),
    "COMMIT is certified of the pending file": (Model(certify_pending=True), "two"),
    "memory claims whatever state it is in": (Model(claim_anywhere=True), "two"),
    "the place can be written twice": (Model(first_write=lambda stands, wanted: (wanted, True)), "two"),
    "RELEASED is said and not written": (Model(release_by_word=True), "two"),
    "the receiver forgets its word": (Model(forget_word=True), "none"),
    "each place has the same secret": (Model(same_secret=True), "two"),
    "a word counts for every move": (Model(any_move=True), "two"),
    "a start does not look at the owner": (Model(start=at_home), "two"),
    "one that has left may give up": (
        Model(source=changed(relocation.SOURCE, (_L.LEFT, Event.GIVE_UP), Step(None, Effect.SERVE))),
        "two",
    ),
    "the TPM is given up at the freeze": (
        Model(source=changed(relocation.SOURCE, (_L.AGREED, Event.FREEZE), Step(_L.LEFT, Effect.GIVE_UP_TPM))),
        "none",
    ),
    "another agreement may follow an agreement": (
        Model(source=changed(relocation.SOURCE, (_L.AGREED, Event.AGREE), Step(_L.AGREED))),
        "none",
    ),
    "RELEASED leads nowhere": (Model(source=without(relocation.SOURCE, (_L.LEFT, Event.RELEASED))), "none"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_found(name: str) -> None:
    model, what = MUTANTS[name]
    found = walk(model)
    assert (found.two if what == "two" else found.none) is not None, found.worlds
