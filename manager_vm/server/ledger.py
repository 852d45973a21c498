"""The moves of this manager: each step of a hand-over, made durable before it is told (MIGRATION.md, section 8).

The tables in ``protocol/handover`` decide; here each new state is carried out, with what it means for the vTPM.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from manager_vm.errors import EvidenceError, MigrationError, ProtocolError, StateError, TrustError
from manager_vm.protocol import handover
from manager_vm.protocol.handover import DestinationState, Event, Persist, SourceState, State, Step
from manager_vm.store import atomic, moves
from manager_vm.store.final_state import FinalState
from manager_vm.store.manifest import Manifest
from manager_vm.store.marks import Recovered, RevokedPlatform
from manager_vm.store.records import MAX_REASON, Contents, Move
from manager_vm.trust import voucher
from manager_vm.trust.signing import SigningKey
from manager_vm.vtpm.transit import Also, Arrival, Departure, Transit
from manager_vm.wire import migration
from manager_vm.wire.migration import Cause, Handover, Kind

log = logging.getLogger(__name__)

_S, _D = SourceState, DestinationState


class Ledger:
    """Thread-safe. ``directory``: for COMMITs whose anchored commit is due. ``detach``: take a vTPM off its channel."""

    def __init__(self, manifest: Manifest, transit: Transit, directory: Path, detach: Callable[[str], None]) -> None:
        self._manifest = manifest
        self._transit = transit
        self._directory = directory
        self._detach = detach
        self._departures: dict[str, Departure] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()  # of the locks
        atomic.make_directory(directory)

    # -- looking --------------------------------------------------------------------------------------------

    def get(self, move: str) -> Move:
        """A move by its id; StateError if there is none."""
        found = self._manifest.contents.moves.get(move)
        if found is None:
            raise StateError(f"there is no move {move[:64]!r}; 'migrations' shows those there are")
        return found

    def open(self) -> list[Move]:
        """Moves that need something of their peer."""
        return [move for move in self._manifest.contents.moves.values() if not move.ended]

    # -- the source -----------------------------------------------------------------------------------------

    def offer(self, move: Move, key: SigningKey) -> None:
        """A move begins: nothing is given up yet. StateError if the vTPM moves already."""

        def change(contents: Contents) -> Contents:
            if (other := moves.open_one(contents, move.vtpm)) is not None:
                raise StateError(f"vTPM {move.name!r} moves already (to {other.peer}); see 'migrations'")
            return moves.put(contents, move, key.der)

        self._manifest.commit(change)

    @contextmanager
    def departing(self, move: str, departure: Departure) -> Iterator[None]:
        """For this block PREPARED may lead to the tombstone."""
        self._departures[move] = departure
        try:
            yield
        finally:
            del self._departures[move]

    # -- the destination ------------------------------------------------------------------------------------

    def prepare(
        self, move: Move, key: SigningKey, arrival: Arrival, final: FinalState, also: Also = lambda contents: contents
    ) -> Handover:
        """The state is whole: durable, not runnable. PREPARED. ``also``: what is committed with it."""
        word = self._signed(move, Kind.PREPARED, key)
        told = replace(move, sent=migration.pack_handover(word))
        arrival.prepare(final, move.generation, lambda contents: also(moves.put(contents, told, key.der)))
        return word

    # -- the hand-over --------------------------------------------------------------------------------------

    def hear(self, message: Handover) -> Handover | None:
        """What the peer says; our answer, None where there is none. What does not fit the move is dropped."""
        move = self._manifest.contents.moves.get(message.move.hex())
        if move is None:
            log.warning("a %s about a move that is not known here was dropped", message.kind.name)
            return None
        try:
            self._verify(move, message)
        except EvidenceError as error:
            log.warning("move %s of vTPM %s: a message was dropped: %s", move.id[:8], move.name, error)
            return None
        with self._turn(move.id):
            if move.pulled and move.out and message.kind is Kind.PREPARED and self.get(move.id).state == _S.OFFERED:
                return self._given(move, message)
            return self._take(move.id, Event[message.kind.name], message)

    def _given(self, move: Move, message: Handover) -> Handover | None:
        """One that was pulled is asked for: it is given up if it is what was sent, else it has gone on here."""
        try:
            with self._transit.leaving(move.vtpm) as departure:
                if departure.digest == move.digest:
                    with self.departing(move.id, departure):
                        return self._take(move.id, Event.PREPARED, message)
        except StateError as error:
            log.warning("move %s of vTPM %s: %s", move.id[:8], move.name, error)
        return self._take(move.id, Event.GIVE_UP, None, Cause.POLICY.word, "its VM went on at the source")

    def lapsed(self) -> list[Move]:
        """Moves that were offered to whoever had a ticket, which is void since."""
        vtpms = self._manifest.contents.vtpms
        offered = [move for move in self.open() if move.out and move.pulled and move.state == _S.OFFERED]
        return [move for move in offered if move.vtpm not in vtpms or vtpms[move.vtpm].ticket != move.pulled]

    def give_up(self, move: str, cause: str, text: str) -> Handover | None:
        """End a move that has not come to its point of no return; what the peer is told, None if it has."""
        with self._turn(move):
            found = self._manifest.contents.moves.get(move)
            if found is None or handover.step(_table(found), self._state(found), Event.GIVE_UP) is None:
                return None
            return self._take(move, Event.GIVE_UP, None, cause, text)

    def declare_dead(self, move: str) -> None:
        """Take back a vTPM whose destination will never answer, on an admin's word; StateError where that cannot be."""
        with self._turn(move):
            found = self.get(move)
            if handover.step(_table(found), self._state(found), Event.DECLARE_DEAD) is None:
                raise StateError(
                    f"move {move[:8]} is {found.state}: only one that is {_S.TOMBSTONE} waits for its peer"
                )
            self._take(move, Event.DECLARE_DEAD, None, "peer-lost", f"platform {found.peer} was declared dead")

    def again(self, move: str) -> Handover | None:
        """What the peer of an open move is told again; an anchored commit that failed is made first."""
        with self._turn(move):
            commit = self._stored(self.get(move))
            return self._take(move, Event.RESEND if commit is None else Event.ANCHORED, commit)

    def recover(self) -> None:
        """At a start: what had not come to its point of no return is given up, what was taken over is kept."""
        for move in self.open():
            if move.out and not move.pulled:
                self.give_up(move.id, "fault", "the manager ended meanwhile")
            elif self._stored(move) is not None:
                self.again(move.id)
        for path in self._directory.iterdir():
            if path.stem not in self._manifest.contents.moves or self.get(path.stem).ended:
                path.unlink()

    # -- one step -------------------------------------------------------------------------------------------

    def _take(
        self, id_: str, event: Event, received: Handover | None, cause: str = "", text: str = ""
    ) -> Handover | None:
        move = self.get(id_)
        step = handover.step(_table(move), self._state(move), event)
        if step is None:
            return None
        if step.persist is Persist.NOT:
            return migration.parse_handover(move.sent)
        if received is not None:
            move = replace(move, received=migration.pack_handover(received))
        return self._carry_out(move, step, cause, text)

    def _carry_out(self, move: Move, step: Step, cause: str, text: str) -> Handover | None:
        if step.persist is Persist.FILE:
            atomic.write_file(self._directory / move.id, move.received)
            return self._take(move.id, Event.ANCHORED, self._stored(move))
        departure = self._departures.get(move.id)
        if step.state is _S.TOMBSTONE:
            if departure is None:
                return None  # nobody holds the vTPM still: the attempt is about to be given up
            move = replace(move, digest=departure.digest)
        word = None if step.send is None else self._signed(move, step.send)
        new = _after(move, step, word, cause, text)
        self._persist(new, step.state, departure)
        with suppress(OSError):  # removed at the next start otherwise
            (self._directory / move.id).unlink(missing_ok=True)
        log.info("move %s of vTPM %s: %s%s", move.id[:8], move.name, step.state, f" ({text})" if text else "")
        return word

    def _persist(self, move: Move, state: State, departure: Departure | None) -> None:
        def also(contents: Contents) -> Contents:
            return moves.put(contents, move)

        if state is _S.TOMBSTONE and departure is not None:
            departure.tombstone(also)
        elif state is _S.DONE:
            self._unwire(move)
            self._transit.erase(move.vtpm, also)
        elif state is _S.RESTORED:
            self._transit.take_back(move.vtpm, also)
        elif state is _S.DECLARED:
            mark = Recovered(move.peer_ak, bytes.fromhex(move.id), int(time.time()))
            self._transit.take_back(move.vtpm, _revoking(also, move), mark)
        elif state is _D.COMMITTED:
            self._transit.activate(move.vtpm, also)
        elif state is _D.RELEASED:
            self._unwire(move)
            self._transit.turn_away(move.vtpm, also)
        else:
            self._manifest.commit(also)

    def _unwire(self, move: Move) -> None:
        record = self._manifest.contents.vtpms.get(move.vtpm)
        if record is not None and record.channel:
            self._detach(record.name)

    # -- words ----------------------------------------------------------------------------------------------

    def _signed(self, move: Move, kind: Kind, key: SigningKey | None = None) -> Handover:
        own = key or SigningKey.from_der(self._manifest.contents.move_keys[move.id])
        return voucher.sign(_word(move, kind), own)

    def _verify(self, move: Move, message: Handover) -> None:
        departure = self._departures.get(move.id)
        expected = move if departure is None else replace(move, digest=departure.digest)
        if move.out and message.kind is Kind.PREPARED and expected.digest == voucher.NO_STATE:
            expected = replace(expected, digest=message.state)  # given up, and not known any more what was offered
        voucher.verify(message, _word(expected, message.kind), move.peer_key)

    def _state(self, move: Move) -> State:
        if move.out:
            return SourceState(move.state)
        if move.state == _D.PREPARED and self._stored(move) is not None:
            return _D.ACTIVE
        return DestinationState(move.state)

    def _stored(self, move: Move) -> Handover | None:
        """The COMMIT that is durable and not in an anchored commit yet."""
        data = atomic.read_file(self._directory / move.id, 512)
        if move.out or data is None:
            return None
        try:
            found = migration.parse_handover(data)
            voucher.verify(found, _word(move, Kind.COMMIT), move.peer_key)
        except (ProtocolError, TrustError) as error:
            log.error(
                "move %s of vTPM %s: what lies on the disk as its COMMIT is none: %s", move.id[:8], move.name, error
            )
            return None
        return found

    @contextmanager
    def _turn(self, move: str) -> Iterator[None]:
        with self._lock:
            lock = self._locks.setdefault(move, threading.Lock())
        with lock:
            yield


def now() -> str:
    """The time, for people."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _table(move: Move) -> handover.Table:
    return handover.SOURCE if move.out else handover.DESTINATION


def _word(move: Move, kind: Kind) -> Handover:
    vtpm = uuid.UUID(move.vtpm).bytes
    return Handover(kind, bytes.fromhex(move.id), move.transcript, move.digest, vtpm, move.generation)


def _after(move: Move, step: Step, word: Handover | None, cause: str, text: str) -> Move:
    sent = move.sent if word is None else migration.pack_handover(word)
    ended = now() if handover.is_over(step.state) else ""
    return replace(move, state=str(step.state), sent=sent, ended=ended, cause=cause, text=text[:MAX_REASON])


def _revoking(also: Also, move: Move) -> Also:
    def change(contents: Contents) -> Contents:
        contents = also(contents)
        dead = RevokedPlatform(b"", move.peer_ak)
        return replace(contents, revoked_platforms=(*contents.revoked_platforms, dead))

    return change


def failed(move: Move) -> MigrationError:
    """What ended it, as an error."""
    return MigrationError(f"the move of vTPM {move.name!r} ended as {move.state}: {move.text}", move.cause)
