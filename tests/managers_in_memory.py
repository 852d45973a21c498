"""Managers between which a vTPM follows its VM, without processes: what ships decides (``Ledger``, ``Giver``,
``Following``, ``Moving``), over a manifest in memory and a vTPM whose state is a number.

State k is that of the k-th park: the blob "sk"; a run that begins with it is "rk", a park of that run is state k + 1.
A manager is a value (``Manager``), so whoever walks all that can happen does each step of each manager once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from manager_vm import crypto
from manager_vm.protocol.handover import DestinationState
from manager_vm.protocol.lifecycle import Event, State, after
from manager_vm.server import moving, standing
from manager_vm.server.following import Following
from manager_vm.server.ledger import Ledger
from manager_vm.server.moving import Moving
from manager_vm.server.pull_out import Giver
from manager_vm.server.taking import Shown
from manager_vm.store import moves
from manager_vm.store.records import Contents, Move, VtpmKeys, VtpmRecord
from manager_vm.trust.signing import SigningKey
from manager_vm.trust.standing import give as standing_order
from manager_vm.vtpm import changes
from manager_vm.vtpm.transit import _RETURNS, Also
from manager_vm.wire import migration
from manager_vm.wire import ticket as tickets
from manager_vm.wire.admin import Request
from manager_vm.wire.migration import Handover, Kind, Pull
from manager_vm.wire.ticket import Ticket
from tests.unit.statements import AUTHORITY

VTPM, VM = "22222222-2222-4333-8444-555555555555", "11111111-2222-4333-8444-555555555555"
NAME, SOURCE = "v", "a"
_KEYS = VtpmKeys(crypto.Key(bytes(32)), crypto.Key(bytes(32)))
_MOVE_KEYS = (SigningKey.create(), SigningKey.create())  # of all sources, of all destinations
Word = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class Manager:
    """What is on its disk, and which processes it has. ``key``: all of it that can make a difference."""

    contents: Contents
    files: tuple[tuple[str, bytes], ...] = ()  # COMMITs that no anchored commit contains yet
    processes: frozenset[str] = frozenset()  # runs

    @property
    def record(self) -> VtpmRecord | None:
        return self.contents.vtpms.get(VTPM)

    @property
    def key(self) -> object:
        record = self.record
        at = None if record is None else (record.state, record.before, record.run, record.blob, record.ticket)
        told = tuple((move.id, move.state, _kind(move.sent)) for move in self._moves)
        known = tuple(self.contents.generations.items()), tuple(self.contents.standing.items())
        return at, told, known, tuple(name for name, _ in self.files), self.processes

    @property
    def _moves(self) -> list[Move]:
        return list(self.contents.moves.values())

    @property
    def runnable(self) -> bool:
        """Whether it may run the vTPM, now or when it is started anew."""
        record = self.record
        if record is None:
            return False
        return record.state in (State.RUNNING, State.PARKED, State.OFF, State.FAILED) or bool(self.files)


def fresh(platforms: tuple[str, ...], *, has: bool = False) -> Manager:
    """One with a standing order, and with the vTPM that runs if it ``has`` it."""
    order = standing_order(VM, platforms, 1, AUTHORITY)
    contents = Contents(1, b"ca", b"key", authority=AUTHORITY.public.der, standing={VM: order})
    if not has:
        return Manager(contents)
    record = VtpmRecord(VTPM, NAME, State.RUNNING, 5000, "s0", bytes(32), {}, {}, run="r0", boot=1, vm=VM)
    return Manager(contents.with_vtpm(record, _KEYS), processes=frozenset({"r0"}))


def park_of(number: int) -> str:
    return bytes((number,) * 16).hex()


def ticket_of(number: int) -> bytes:
    return tickets.pack(Ticket(VTPM, NAME, 1, park_of(number), VM, SOURCE, "there:1"))


class Crash(Exception):
    """The manager is killed before its commit."""


class PulledError(Exception):
    """A ticket is to be shown to the other manager."""


class _Memory:
    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.crashes = False

    def commit(self, change: Also) -> Contents:
        if self.crashes:
            raise Crash
        self.contents = change(self.contents)
        return self.contents


class _Following(Following):
    def _pull(self, ticket: Ticket, data: bytes, shown: Shown) -> None:
        raise PulledError


class Living:
    """A manager that does something; ``words``: what it says, ``began``: states with which a run has begun."""

    def __init__(self, name: str, manager: Manager, directory: Path) -> None:
        self.memory = _Memory(manager.contents)
        self.processes = set(manager.processes)
        self.words: dict[Word, Handover] = {}
        self.began: set[int] = set()
        self._directory = directory
        for file, data in manager.files:
            (directory / file).write_bytes(data)
        platform = SimpleNamespace(name=name)
        local = cast(Any, SimpleNamespace(manifest=self.memory, platform=platform))
        registry, transit = cast(Any, _Registry(self)), cast(Any, _Transit(self))
        self.ledger = Ledger(cast(Any, self.memory), transit, directory, lambda name: None)
        proofs = cast(Any, SimpleNamespace(kept=lambda agreed: nullcontext()))
        self.giver = Giver(local, registry, transit, self.ledger, proofs)
        self.moving = _moving(self, registry)
        self.following = _Following(local, registry, self.moving)

    @property
    def record(self) -> VtpmRecord:
        return self.memory.contents.vtpms[VTPM]

    def commit(self, record: VtpmRecord) -> None:
        self.memory.commit(lambda contents: changes.put(contents, record, _KEYS))

    def say(self, word: Handover | None) -> None:
        if word is not None:
            self.words[word.kind, word.move.hex()] = word

    def end(self) -> Manager:
        """What is left; the next one finds nothing in the directory."""
        files = []
        for path in sorted(self._directory.iterdir()):
            files.append((path.name, path.read_bytes()))
            path.unlink()
        return Manager(self.memory.contents, tuple(files), frozenset(self.processes))

    # -- what happens to it ---------------------------------------------------------------------------------

    def ticket(self, park: int) -> None:
        """Its VM leaves."""
        if self.record.blob == f"s{park - 1}":
            self.giver.ticket(NAME, VM, "there:1")

    def ask(self) -> None:
        """A command of the VM."""
        if self.following.concerns(NAME):
            self.following.wanted(NAME)

    def boot(self) -> None:
        """The VM's host reports a reset."""
        record = self.record
        after(NAME, record.state, Event.POWER_ON)
        if record.state is not State.RUNNING:
            self.run(replace(record, run=record.run or f"r{record.blob[1:]}"), anew=not record.run)

    def run(self, record: VtpmRecord, *, anew: bool) -> None:
        if anew:
            self.began.add(int(record.run[1:]))
        self.processes.add(record.run)
        self.commit(replace(record, state=State.RUNNING, ticket="", resume=False))

    def kill(self) -> None:
        """SIGKILL, and a start."""
        self.memory.crashes = False
        self.processes.clear()
        self.memory.contents = changes.fail_running(self.memory.contents)
        self.ledger.recover()

    def stop(self) -> None:
        """SIGTERM, and a start: what runs is parked and goes on."""
        self.moving.close()
        running = self.memory.contents.vtpms.get(VTPM)
        self.processes &= {running.run} if running is not None and running.state is State.RUNNING else set()
        self.ledger.recover()

    def remind(self) -> None:
        """Time goes by: what the thread does that asks again."""
        for move in self.ledger.lapsed():
            self.say(self.ledger.give_up(move.id, "policy", "its VM went on at the source"))
        for move in self.ledger.open():
            if not moving._waits_for_guest(move):
                self.say(self.ledger.again(move.id))

    def abort(self) -> None:
        """An operator gives up what has not come to its point of no return."""
        for move in self.ledger.open():
            self.say(self.ledger.give_up(move.id, "", "an operator has given it up"))

    def revoke(self) -> None:
        """The standing order's next one names nobody."""
        order = standing_order(VM, (), 2, AUTHORITY)
        self.memory.commit(lambda contents: standing.add(contents, order))

    def hear(self, word: Handover) -> None:
        self.say(self.ledger.hear(word))

    def hear_and_crash(self, word: Handover) -> None:
        """It is killed before its next commit: of COMMIT the file is there already, and it has served."""
        self.memory.crashes = True
        with suppress(Crash):
            self.ledger.hear(word)
        self.kill()

    def hear_and_crash_without_file(self, word: Handover) -> None:
        """The same, and whoever has the disk takes the file away before the next start."""
        self.memory.crashes = True
        with suppress(Crash):
            self.ledger.hear(word)
        for path in self._directory.iterdir():
            path.unlink()
        self.kill()

    def redeem(self, park: int) -> None:
        """The VM has come with a ticket; PulledError if it is to be shown to its manager."""
        verbs = self.following.host_link(lambda request: None)
        verbs(Request(1, "redeem", {"ticket": ticket_of(park), "vm": VM}))

    def void(self) -> None:
        """Its QEMU has ended without a command."""
        self.following.host_link(lambda request: None)(Request(1, "ticket_void", {"name": NAME}))

    def give(self, park: int, to: str, move: str) -> None:
        """Somebody shows a ticket, both are attested: the state is sent."""
        ticket = tickets.parse(ticket_of(park))
        self.giver._parked(ticket)
        order = standing.demand_allowed(self.memory.contents, VM, SOURCE, to)
        ak = SimpleNamespace(name=to.encode())
        peer = SimpleNamespace(platform=SimpleNamespace(name=to, ak=ak))
        side = cast(Any, SimpleNamespace(peer=peer, key=_MOVE_KEYS[0]))
        agreed = SimpleNamespace(
            offer=SimpleNamespace(move=bytes.fromhex(move), order=order),
            accept=SimpleNamespace(move_key=_MOVE_KEYS[1].public.uncompressed),
            session=SimpleNamespace(transcript=crypto.digest(move.encode())),
        )
        self.giver._offered(ticket, side, cast(Any, agreed), Pull(ticket_of(park), to, "there:2"))

    def load(self, park: int, move: str) -> None:
        """The state has come: PREPARED, which is not said."""
        entry = Move(
            id=move,
            out=False,
            state=str(DestinationState.PREPARED),
            vtpm=VTPM,
            name=NAME,
            group="default",
            generation=2,
            peer=SOURCE,
            address="there:1",
            transcript=crypto.digest(move.encode()),
            peer_key=_MOVE_KEYS[0].public.uncompressed,
            peer_ak=SOURCE.encode(),
            order=bytes(32),
            started="",
            digest=_digest(f"s{park}"),
            pulled=park_of(park),
        )
        self.ledger.prepare(entry, _MOVE_KEYS[1], cast(Any, _Arrival(self, park)), cast(Any, None))


class _Arrival:
    def __init__(self, living: Living, park: int) -> None:
        self._living, self._park = living, park

    def prepare(self, final: object, generation: int, also: Also) -> None:
        record = VtpmRecord(VTPM, NAME, State.ARRIVING, 5000, f"s{self._park}", bytes(32), {}, {}, boot=1, vm=VM)
        new = replace(record, run=f"r{self._park}", generation=generation, before=str(State.RUNNING))
        self._living.memory.commit(lambda contents: also(changes.welcomed(contents, new, _KEYS)))
        self._living.processes.add(new.run)


class _Registry:
    """As ``vtpm.registry``, of one vTPM."""

    def __init__(self, living: Living) -> None:
        self._living = living

    def record(self, name: str) -> VtpmRecord:
        return self._living.record

    def get(self, name: str) -> SimpleNamespace:
        record = self._living.record
        run = record.run if record.run in self._living.processes else None
        return SimpleNamespace(run=run, state=record.state)

    def start(self, name: str, *, power_on: bool) -> None:
        record = self._living.record
        after(name, record.state, Event.RESUME)
        self._living.run(replace(record, run=f"r{record.blob[1:]}"), anew=True)

    def stop(self, name: str, *, ticket: str, still: Callable[[], None]) -> VtpmRecord:
        still()
        record = self._living.record
        after(name, record.state, Event.PARK)
        number = int(record.run[1:]) + 1
        self._living.processes.clear()
        self._living.commit(
            replace(record, state=State.PARKED, run="", blob=f"s{number}", ticket=park_of(number), resume=False)
        )
        return self._living.record


class _Transit:
    """As ``vtpm.transit``, of one vTPM."""

    def __init__(self, living: Living) -> None:
        self._living = living

    @contextmanager
    def leaving(self, uuid: str) -> Iterator[SimpleNamespace]:
        record = self._living.record
        after(NAME, record.state, Event.LEAVE)
        found = record.run or record.blob
        bury: Callable[[Also], None] = lambda also: self._bury(record, also)  # noqa: E731
        yield SimpleNamespace(data=found.encode(), digest=_digest(found), tombstone=bury)

    def _bury(self, record: VtpmRecord, also: Also) -> None:
        new = replace(record, state=State.GONE, run="", before=str(record.state), resume=False)
        self._living.memory.commit(lambda contents: also(changes.put(contents, new, _KEYS)))
        self._living.processes.clear()

    def erase(self, uuid: str, also: Also) -> None:
        generation = self._living.record.generation + 1
        self._remove(Event.ERASE, lambda contents: also(moves.remember(contents, VTPM, generation)))

    def turn_away(self, uuid: str, also: Also) -> None:
        self._remove(Event.TURNED_AWAY, also)

    def _remove(self, event: Event, also: Also) -> None:
        after(NAME, self._living.record.state, event)
        self._living.memory.commit(lambda contents: also(contents.without_vtpm(VTPM)))
        self._living.processes.clear()

    def take_back(self, uuid: str, also: Also, declared: object = None) -> None:
        record = self._living.record
        state = after(NAME, record.state, _RETURNS[State(record.before)]) or State.PARKED
        new = replace(record, state=state, before="")
        self._living.memory.commit(lambda contents: also(changes.put(contents, new)))

    def activate(self, uuid: str, also: Also) -> None:
        """What waited serves before the commit."""
        record = self._living.record
        waited = record.run in self._living.processes
        new = changes.arrived(record, serves=waited, waited=waited)
        if waited:
            self._living.began.add(int(record.run[1:]))
        self._living.memory.commit(lambda contents: also(changes.settled(contents, new)))
        if new.resume:
            _Registry(self._living).start(NAME, power_on=False)


def _moving(living: Living, registry: Any) -> Moving:
    """The shipped one, with the ledger of this manager and nobody who listens."""
    found = object.__new__(Moving)
    parts: dict[str, Any] = {
        "ledger": living.ledger,
        "_ledger": living.ledger,
        "giver": living.giver,
        "_registry": registry,
        "_tasks": ExitStack(),
        "_asker": SimpleNamespace(tell=lambda move, word: living.say(word)),
    }
    for name, value in parts.items():
        setattr(found, name, value)
    return found


def _digest(state: str) -> bytes:
    return crypto.digest(state.encode())


def _kind(packed: bytes) -> str:
    return migration.parse_handover(packed).kind.name if packed else ""
