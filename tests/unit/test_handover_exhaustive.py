"""protocol.handover: every interleaving of the shipped tables, walked to the end (MIGRATION.md, section 8; R12).

The network is the set of all messages ever sent: each may be delivered at any time, any number of times, or never. Each
side carries out a step as persist, then send, and may crash at any point: what is not persisted is gone, what is not
sent is never sent. Two attempts (the second when the first is over and the vTPM is at the source), to one or to two
destinations; either operator may give up at any time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from manager_vm.protocol.handover import (
    DESTINATION,
    SOURCE,
    DestinationState,
    Event,
    Persist,
    SourceState,
    State,
    Step,
    Table,
    is_over,
    step,
)
from manager_vm.wire.migration import Kind
from tests.exhaustive import changed, leading_to, walk

MOVES = (0, 1)
TO_SOURCE = {Kind.PREPARED, Kind.COMMITTED, Kind.RELEASED}
_S, _D = SourceState, DestinationState
RUNNABLE = {_S.OFFERED, _S.ABORTED, _S.RESTORED, _S.DECLARED, _D.ACTIVE, _D.COMMITTED}  # on that side of the move


@dataclass(frozen=True, slots=True)
class Side:
    """One side of one move: its durable state, and what it is about to do (lost by a crash)."""

    state: State | None = None
    todo: tuple[Step | Kind, ...] = ()


@dataclass(frozen=True, slots=True)
class World:
    """Everything. ``source``, ``destination``: by move. ``sent``: (kind, move)."""

    source: tuple[Side, ...] = (Side(), Side())
    destination: tuple[Side, ...] = (Side(), Side())
    sent: frozenset[tuple[Kind, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Model:
    """The tables, and the rules around them that mutants break."""

    source: Table = field(default_factory=lambda: SOURCE)
    destination: Table = field(default_factory=lambda: DESTINATION)
    one_destination: bool = False
    bound: bool = True  # a message counts for its own move only
    send_first: frozenset[State] = frozenset()  # these new states are persisted after they were told
    dead: bool = False  # admins may declare the destination dead

    def step(self, at_source: bool, state: State | None, event: Event) -> Step | None:
        return step(self.source if at_source else self.destination, state, event)


def successors(model: Model, world: World) -> Iterator[World]:
    for move in MOVES:
        yield from begin(world, move)
        for at_source in (True, False):
            side = side_of(world, at_source, move)
            if side.todo:
                yield carry_out(world, at_source, move)
                yield put(world, at_source, move, Side(side.state))  # a crash
            else:
                for event in events(model, world, at_source, move):
                    if (found := model.step(at_source, side.state, event)) is not None:
                        yield put(world, at_source, move, Side(side.state, plan(model, found)))


def begin(world: World, move: int) -> Iterator[World]:
    """The source offers: one attempt at a time, while the vTPM is there."""
    free = all(side.state is None or (is_over(side.state) and side.state in RUNNABLE) for side in world.source)
    if world.source[move].state is None and free and (move == 0 or world.source[0].state is not None):
        yield put(world, True, move, Side(_S.OFFERED))


def events(model: Model, world: World, at_source: bool, move: int) -> Iterator[Event]:
    for kind, about in world.sent:
        if (kind in TO_SOURCE) is at_source and (about == move or not model.bound):
            yield Event[kind.name]
    if at_source:
        yield from (Event.GIVE_UP, Event.RESEND)
        if model.dead:
            yield Event.DECLARE_DEAD
        return
    other = world.destination[1 - move].state
    here = model.one_destination and other is not None and other is not _D.RELEASED
    if world.source[move].state is not None and not here:  # its generation is not above what is here already
        yield Event.LOADED
    yield from (Event.GIVE_UP, Event.RESEND, Event.ANCHORED)


def plan(model: Model, found: Step) -> tuple[Step | Kind, ...]:
    persist: tuple[Step | Kind, ...] = () if found.persist is Persist.NOT else (found,)
    send: tuple[Step | Kind, ...] = () if found.send is None else (found.send,)
    return send + persist if found.state in model.send_first else persist + send


def carry_out(world: World, at_source: bool, move: int) -> World:
    side = side_of(world, at_source, move)
    first, rest = side.todo[0], side.todo[1:]
    if isinstance(first, Step):
        return put(world, at_source, move, Side(first.state, rest))
    world = put(world, at_source, move, Side(side.state, rest))
    return replace(world, sent=world.sent | {(first, move)})


def side_of(world: World, at_source: bool, move: int) -> Side:
    return (world.source if at_source else world.destination)[move]


def put(world: World, at_source: bool, move: int, side: Side) -> World:
    sides = list(world.source if at_source else world.destination)
    sides[move] = side
    return replace(world, source=tuple(sides)) if at_source else replace(world, destination=tuple(sides))


def runnable(world: World) -> int:
    """How many copies run or may be started."""
    gone = any(side.state is not None and side.state not in RUNNABLE for side in world.source)
    return (not gone) + sum(side.state is not None and side.state in RUNNABLE for side in world.destination)


def kept(world: World) -> bool:
    """Whether the state of the vTPM is anywhere."""
    here = all(side.state is not _S.DONE for side in world.source)
    return here or any(side.state in (_D.PREPARED, _D.ACTIVE, _D.COMMITTED) for side in world.destination)


def finished(world: World) -> bool:
    sides = (*world.source, *world.destination)
    return all(side.state is None or is_over(side.state) for side in sides) and not any(side.todo for side in sides)


def graph_of(model: Model) -> dict[World, list[World]]:
    return walk(World(), lambda world: successors(model, world))


def faults(model: Model) -> set[str]:
    """What is wrong in some reachable world."""
    graph = graph_of(model)
    found = {"two copies" for world in graph if runnable(world) > 1}
    found |= {"no copy is left" for world in graph if not kept(world)}
    good = {world for world in graph if finished(world) and runnable(world) == 1}
    if len(leading_to(good, graph)) < len(graph):
        found.add("stuck")
    found |= {"no receipt" for world in good for move in MOVES if not receipted(world, move)}
    return found


def receipted(world: World, move: int) -> bool:
    """Whether who ended with something was told by the other side."""
    source, destination = world.source[move].state, world.destination[move].state
    told = {kind for kind, about in world.sent if about == move}
    needs = {_S.DONE: Kind.COMMITTED, _S.RESTORED: Kind.RELEASED, _D.COMMITTED: Kind.COMMIT}
    return all(needs[state] in told for state in (source, destination) if state in needs)


@pytest.mark.parametrize("one_destination", [False, True])
def test_there_are_never_two_runnable_copies_and_never_none_for_ever(one_destination: bool) -> None:
    model = Model(one_destination=one_destination)
    assert len(graph_of(model)) > 1000
    assert faults(model) == set()


def test_only_an_admin_who_declares_a_living_destination_dead_makes_two() -> None:
    assert "two copies" in faults(Model(dead=True))  # and they stay two: nothing heals it


@pytest.mark.parametrize(
    ("mutant", "fault"),
    [
        (Model(send_first=frozenset({_S.TOMBSTONE})), "two copies"),
        (Model(send_first=frozenset({_D.RELEASED})), "two copies"),
        (Model(bound=False), "two copies"),
        (Model(source=changed(SOURCE, TOMBSTONE__GIVE_UP=Step(_S.RESTORED, Persist.COMMIT))), "two copies"),
        (
            Model(source=changed(SOURCE, TOMBSTONE__GIVE_UP=Step(_S.ABORTED, Persist.COMMIT, send=Kind.ABORTED))),
            "two copies",
        ),
        (Model(source=changed(SOURCE, OFFERED__PREPARED=Step(_S.DONE, Persist.COMMIT, send=Kind.COMMIT))), "no copy"),
        (Model(source=changed(SOURCE, TOMBSTONE__PREPARED=Step(_S.DONE, Persist.COMMIT))), "stuck"),
        (Model(source=changed(SOURCE, TOMBSTONE__RESEND=None, TOMBSTONE__PREPARED=None)), "stuck"),
        (Model(destination=changed(DESTINATION, PREPARED__RESEND=Step(_D.ACTIVE, Persist.FILE))), "two copies"),
        (Model(destination=changed(DESTINATION, RELEASED__COMMIT=None)), "stuck"),
        (Model(destination=changed(DESTINATION, RELEASED__COMMIT=Step(_D.ACTIVE, Persist.FILE))), "two copies"),
        (Model(destination=changed(DESTINATION, COMMITTED__COMMIT=None)), "stuck"),
        (Model(destination=changed(DESTINATION, NOTHING__LOADED=Step(_D.ACTIVE, Persist.COMMIT))), "two copies"),
    ],
)
def test_each_broken_rule_is_found(mutant: Model, fault: str) -> None:
    assert any(each.startswith(fault) for each in faults(mutant))
