"""A vTPM that follows its VM: all that can happen to three managers, by the rules that ship (MIGRATION.md, section 13).

The VM leaves its first host twice at most (``PARKS``); with its tickets, also late, again and void, two destinations
pull twice at most (``MOVES``). The network is the set of all words ever sent: each is delivered at any time, any number
of times, or never. Any manager is stopped and started at any time, or killed, also between COMMIT's file and its
commit, and whoever has its disk takes that file away before the next start. The standing order is revoked; an operator
aborts at the source.

Safety: never two managers that may run the vTPM, never two runs that begin with the same state. Liveness: wherever this
has come to, with all words lost that were under way: there are VMs that may have the vTPM, and any of these that asks,
and asks again, has it, or, behind a death, TPM_RC_FAILURE until its reset; the source's manager knows in the end.
A VM that was saved and is restored at its first host is, to the managers, one there that asks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from manager_vm.errors import VtpmManagerError
from manager_vm.protocol import handover, lifecycle
from manager_vm.protocol.handover import DestinationState, Persist, SourceState, Step
from manager_vm.protocol.lifecycle import State
from manager_vm.server import pull_out
from manager_vm.server.ledger import Ledger
from manager_vm.server.moving import Moving
from manager_vm.store.records import Move
from manager_vm.vtpm import changes
from manager_vm.wire.migration import Handover, Kind
from tests.exhaustive import changed, explore
from tests.managers_in_memory import Living, Manager, PulledError, Word, fresh, park_of

A, PLACES = "a", ("a", "b", "c")
TO_SOURCE = {Kind.PREPARED, Kind.COMMITTED, Kind.RELEASED}
PARKS, MOVES = 2, 2
ROUNDS = 4
_HAS = (State.RUNNING, State.FAILED)
_S, _D = SourceState, DestinationState


@dataclass(frozen=True, slots=True)
class Sent:
    """A state that is under way in its conversation: of which park, to whom, in which move."""

    park: int
    to: str
    move: str


@dataclass(frozen=True, slots=True)
class World:
    """Everything. ``nodes``: what each manager is, by number. ``began``: states with which runs have begun."""

    nodes: tuple[int, ...]
    words: frozenset[Word] = frozenset()
    states: frozenset[Sent] = frozenset()
    began: frozenset[int] = frozenset({0})
    twice: bool = False  # two runs have begun with one state


@dataclass(frozen=True, slots=True)
class Done:
    """What came of something that happened to one manager."""

    node: int
    words: frozenset[Word] = frozenset()
    began: frozenset[int] = frozenset()
    pulled: bool = False  # a ticket is to be shown
    refused: bool = False


@dataclass(slots=True)
class Model:
    """Managers, each known by a number; what happens to one is carried out once."""

    directory: Path
    parks: int = PARKS
    moves: int = MOVES
    deaths: bool = True
    managers: list[Manager] = field(default_factory=list)
    numbers: dict[object, int] = field(default_factory=dict)
    ended: list[frozenset[str]] = field(default_factory=list)  # moves that are over there
    said: dict[Word, Handover] = field(default_factory=dict)
    known: dict[tuple[int, str, tuple[object, ...]], Done] = field(default_factory=dict)

    def number(self, manager: Manager) -> int:
        if (key := manager.key) not in self.numbers:
            self.numbers[key] = len(self.managers)
            self.managers.append(manager)
            moves = manager.contents.moves.values()
            self.ended.append(frozenset(move.id for move in moves if move.ended))
        return self.numbers[key]

    def start(self) -> World:
        return World(tuple(self.number(fresh(PLACES, has=name == A)) for name in PLACES))

    def at(self, world: World, place: str) -> Manager:
        return self.managers[world.nodes[PLACES.index(place)]]

    def happens(self, node: int, place: str, what: str, *about: object) -> Done:
        key = (node, place, (what, *about))
        if key not in self.known:
            self.known[key] = self._carry_out(node, place, what, *about)
        return self.known[key]

    def _carry_out(self, node: int, place: str, what: str, *about: object) -> Done:
        living = Living(place, self.managers[node], self.directory)
        arguments = [self.said[word] for word in about] if what.startswith("hear") else about  # type: ignore[index]
        pulled = refused = False
        try:
            getattr(living, what)(*arguments)
        except PulledError:
            pulled = True
        except (VtpmManagerError, KeyError):  # there is no such vTPM
            refused = True
        for word, message in living.words.items():
            self.said.setdefault(word, message)
        new = self.number(living.end())
        return Done(new, frozenset(living.words), frozenset(living.began), pulled, refused)

    def after(self, world: World, place: str, what: str, *about: object) -> World:
        at = PLACES.index(place)
        done = self.happens(world.nodes[at], place, what, *about)
        if done.node == world.nodes[at] and done.words <= world.words and not done.began:
            return world
        nodes = (*world.nodes[:at], done.node, *world.nodes[at + 1 :])
        twice = world.twice or bool(world.began & done.began)
        words = world.words | done.words
        if words:
            words = self.pruned(nodes, words)
        return World(nodes, words, world.states, world.began | done.began, twice)

    def pruned(self, nodes: tuple[int, ...], words: frozenset[Word]) -> frozenset[Word]:
        """Without those about moves that are over at both ends: nothing comes of them."""
        source, *others = (self.ended[node] for node in nodes)
        over = source.intersection(frozenset().union(*others))
        return frozenset(word for word in words if word[1] not in over) if over else words

    # -- all that can happen --------------------------------------------------------------------------------

    def successors(self, world: World) -> Iterable[World]:
        return {each for each in self._successors(world) if each is not world}

    def _successors(self, world: World) -> Iterator[World]:
        for kind, move in world.words:
            place = A if kind in TO_SOURCE else receiver(move)
            yield self.after(world, place, "hear", (kind, move))
            if self.deaths and kind is Kind.COMMIT:
                yield self.after(world, place, "hear_and_crash", (kind, move))
                yield self.after(world, place, "hear_and_crash_without_file", (kind, move))
        for place in PLACES:
            plain = ("ask", "boot", "stop", "remind") + (("kill",) if self.deaths else ())
            more = ("abort", "revoke") if place == A else ("void",)
            for what in plain + more:
                yield self.after(world, place, what)
        for park in range(1, self.parks + 1):
            yield self.after(world, A, "ticket", park)
            if len(self.at(world, A).contents.moves) < self.moves:
                for place in PLACES[1:]:
                    yield from self.redeemed(world, place, park)
        for sent in world.states:
            yield self.after(replace(world, states=world.states - {sent}), sent.to, "load", sent.park, sent.move)

    def redeemed(self, world: World, place: str, park: int) -> Iterator[World]:
        """``place`` shows the ticket of this park, if there ever was one, and is sent the state, if it stands."""
        count = len(self.at(world, A).contents.moves)
        if park not in parks_made(self.at(world, A), world):
            return
        if not self.happens(world.nodes[PLACES.index(place)], place, "redeem", park).pulled:
            return
        move = bytes((count, PLACES.index(place), park, *bytes(13))).hex()
        if not self.happens(world.nodes[0], A, "give", park, place, move).refused:
            given = self.after(world, A, "give", park, place, move)
            yield replace(given, states=given.states | {Sent(park, place, move)})

    # -- what must hold -------------------------------------------------------------------------------------

    def flaws(self, world: World) -> Iterator[str]:
        if self.runnable(world) > 1:
            yield "two copies"
        if all(self.managers[node].record is None for node in world.nodes):
            yield "no copy"
        if world.twice:
            yield "rolled back"

    def runnable(self, world: World) -> int:
        return sum(self.managers[node].runnable for node in world.nodes)

    def settled(self, world: World) -> World:
        """Time goes by, and nothing is lost any more."""
        for _ in range(ROUNDS):
            for place in PLACES:
                world = self.delivered(world, place, "remind")
        return world

    def delivered(self, world: World, place: str, what: str, *about: object) -> World:
        """It happens, and what is said is heard, until nobody says anything."""
        done = self.happens(world.nodes[PLACES.index(place)], place, what, *about)
        world = self.after(world, place, what, *about)
        for kind, move in sorted(done.words):
            world = self.delivered(world, A if kind in TO_SOURCE else receiver(move), "hear", (kind, move))
        return world

    def asks(self, world: World, place: str) -> bool:
        """Whether a VM there that goes on asking has its vTPM in the end."""
        for _ in range(ROUNDS):
            if place != A and self.at(world, place).record is None:
                world = self.shown(world, place)
            world = self.settled(self.delivered(world, place, "ask"))
            record = self.at(world, place).record
            if record is not None and record.state in _HAS:
                told = all(move.ended for move in self.at(world, A).contents.moves.values())
                return told and self.runnable(world) == 1
        return False

    def shown(self, world: World, place: str) -> World:
        """The shim shows its newest ticket again."""
        park = max(parks_made(self.at(world, A), world))
        for given in list(self.redeemed(world, place, park))[:1]:
            (sent,) = given.states
            return self.after(replace(given, states=frozenset()), place, "load", sent.park, sent.move)
        return world

    def stuck(self, world: World) -> Iterator[str]:
        """Who may have the vTPM and does not get it. All words under way are lost."""
        world = self.settled(replace(world, words=frozenset(), states=frozenset()))
        record = self.at(world, A).record
        if record is None or record.state is State.GONE:
            out = self.at(world, A).contents.moves.values()
            may = [move.peer for move in out if move.state in (_S.TOMBSTONE, _S.DONE)]
        else:
            may = [A]
            if record.ticket and self.at(world, A).contents.standing == self.managers[0].contents.standing:
                may += PLACES[1:]
        yield from (f"stuck at {place}" for place in may if not self.asks(world, place))


def receiver(move: str) -> str:
    return PLACES[bytes.fromhex(move)[1]]


def parks_made(manager: Manager, world: World) -> list[int]:
    """Whose tickets may be anywhere."""
    record = manager.record
    newest = max(world.began) + (record is not None and record.ticket == park_of(max(world.began) + 1))
    return list(range(1, newest + 1))


def flaws(model: Model) -> Iterator[str]:
    """What is wrong somewhere."""
    seen: set[tuple[int, ...]] = set()
    for world in explore(model.start(), model.successors):
        yield from model.flaws(world)
        if world.nodes not in seen:
            seen.add(world.nodes)
            yield from model.stuck(world)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_there_is_one_vtpm_and_who_may_have_it_gets_it_whatever_happens(tmp_path: Path) -> None:
    model = Model(tmp_path)
    assert list(flaws(model)) == []
    assert len(model.known) > 10_000  # steps of managers
    states = {record.state for manager in model.managers if (record := manager.record) is not None}
    assert states == {*_HAS, State.PARKED, State.GONE, State.ARRIVING}


def test_where_nobody_is_killed_no_vm_ever_needs_a_reset(tmp_path: Path) -> None:
    model = Model(tmp_path, parks=1, deaths=False)
    assert list(flaws(model)) == []
    assert not [each for each in model.managers if each.record is not None and each.record.state is State.FAILED]


_Patch = pytest.MonkeyPatch


def rows(patch: _Patch, table: str, **mutated: Step | None) -> None:
    patch.setattr(handover, table, changed(getattr(handover, table), **mutated))


def given_unseen(patch: _Patch) -> None:
    """PREPARED leads to the tombstone also of a vTPM that has gone on since."""
    given = Ledger._given

    def unseen(self: Ledger, move: Move, message: Handover) -> Handover | None:
        with self._transit.leaving(move.vtpm) as departure:
            return given(self, replace(move, digest=departure.digest), message)

    patch.setattr(Ledger, "_given", unseen)


def served_again(patch: _Patch) -> None:
    """What waits behind a restart of the destination goes on from the state that came."""
    arrived = changes.arrived
    patch.setattr(changes, "arrived", lambda record, *, serves, waited: arrived(record, serves=serves, waited=True))


MUTANTS: dict[str, tuple[str, Callable[[_Patch], None]]] = {
    "a command makes it run at the destination": (
        "two copies",
        lambda patch: rows(patch, "DESTINATION", PREPARED__RESEND=Step(_D.ACTIVE, Persist.FILE)),
    ),
    "the source takes back what it has given up": (
        "two copies",
        lambda patch: rows(patch, "SOURCE", TOMBSTONE__RESEND=Step(_S.RESTORED, Persist.COMMIT)),
    ),
    "a boot takes back what was given up": (
        "two copies",
        lambda patch: patch.setitem(lifecycle.TRANSITIONS, (State.GONE, lifecycle.Event.POWER_ON), State.RUNNING),
    ),
    "PREPARED erases": (
        "stuck",
        lambda patch: rows(patch, "SOURCE", OFFERED__PREPARED=Step(_S.DONE, Persist.COMMIT, send=Kind.COMMIT)),
    ),
    "COMMIT is said once": (
        "stuck",
        lambda patch: rows(patch, "SOURCE", TOMBSTONE__RESEND=None, TOMBSTONE__PREPARED=None),
    ),
    "COMMITTED is said once": ("stuck", lambda patch: rows(patch, "DESTINATION", COMMITTED__COMMIT=None)),
    "RELEASED is said once": ("stuck", lambda patch: rows(patch, "DESTINATION", RELEASED__COMMIT=None)),
    "what has gone on is given": ("stuck", given_unseen),
    "the first who has shown a ticket keeps it": (
        "stuck",
        lambda patch: patch.setattr(pull_out, "moves", SimpleNamespace(open_one=lambda contents, vtpm: None)),
    ),
    "nobody tells a park from its offer": ("stuck", lambda patch: patch.setattr(Ledger, "_given", lambda *args: None)),
    "what may have been served goes back": (
        "rolled back",
        lambda patch: patch.setattr(Moving, "surely_unused", lambda self, move: True),
    ),
    "what may have been served is served again": ("rolled back", served_again),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_broken_rule_of_following_is_found(mutant: str, tmp_path: Path, monkeypatch: _Patch) -> None:
    fault, mutate = MUTANTS[mutant]
    mutate(monkeypatch)
    assert any(each.startswith(fault) for each in flaws(Model(tmp_path)))
