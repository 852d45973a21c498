"""The source's side of a move: offer, agree, quiesce, hand over (MIGRATION.md). One call is one attempt.

Post-condition: either the vTPM is here as before (MigrationError names the cause), or it was given up for the
destination (HandoverUnconfirmedError: not confirmed yet, told again until it is), or it is gone and erased.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from manager_vm.errors import (
    AbortedError,
    HandoverUnconfirmedError,
    MigrationError,
    RemoteProtocolError,
    StateError,
    VtpmManagerError,
)
from manager_vm.protocol import agreement, parts
from manager_vm.protocol.agreement import Agreed
from manager_vm.protocol.handover import SourceState
from manager_vm.server import ledger as ledgers
from manager_vm.server import move_rules, peer_link
from manager_vm.server.ledger import Ledger
from manager_vm.server.move_rules import Local, Side
from manager_vm.server.peer_link import PeerLink, Talk
from manager_vm.server.receipts import Proofs
from manager_vm.store.records import Move, VtpmRecord
from manager_vm.trust.order import Order
from manager_vm.vtpm.transit import Departure, Transit
from manager_vm.wire import features
from manager_vm.wire.migration import (
    ID_SIZE,
    Cause,
    Handover,
    Kind,
    Offer,
    Ready,
    Refuse,
)

log = logging.getLogger(__name__)

_ANSWER = 60.0  # seconds for ACCEPT: the destination's TPM quotes; READY
_PREPARED = 30.0
_COMMITTED = 20.0


@dataclass(slots=True)
class _Attempt:
    side: Side
    move: bytes
    gate: Callable[[], None]
    begun: bool = False  # the ledger has it
    talk: Talk | None = None  # once there are keys

    @property
    def id(self) -> str:
        """As the ledger names it."""
        return self.move.hex()


class Sender:
    """Thread-safe: one vTPM moves once at a time. ``listens``: the address of our own listener, or ""."""

    def __init__(self, local: Local, transit: Transit, ledger: Ledger, proofs: Proofs, listens: str) -> None:
        self._local = local
        self._transit = transit
        self._ledger = ledger
        self._proofs = proofs
        self._listens = listens
        self._links: set[PeerLink] = set()
        self._stopping = False
        self._lock = threading.Lock()

    def interrupt(self) -> None:
        """The manager stops: no move begins any more, and none waits for the other side."""
        with self._lock:
            self._stopping = True
            links = list(self._links)
        for link in links:
            link.cut()

    def migrate(
        self,
        record: VtpmRecord,
        ordered: bytes,
        address: str,
        *,
        dry_run: bool,
        gate: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Move a vTPM by this order to the manager at ``address``. ``dry_run``: up to READY, and no further.

        ``gate`` is called when all is ready for quiescing: it waits, or raises and so ends the move.
        """
        order = move_rules.verify_order(self._local.manifest.contents, ordered)
        move_rules.demand_is_of(order, record, self._local.platform.name)
        attempt = _Attempt(Side(self._local, order.destination), os.urandom(ID_SIZE), gate)
        with self._connected(address) as link:
            try:
                return self._attempt(attempt, link, record, order, ordered, address, dry_run=dry_run)
            except VtpmManagerError as error:
                raise self._ended(attempt, link, error) from error
            finally:  # of a defect: nothing is left that no start but the next would end
                if attempt.begun:
                    self._ledger.give_up(attempt.id, Cause.FAULT.word, "a defect of the manager; see its log")

    @contextmanager
    def _connected(self, address: str) -> Iterator[PeerLink]:
        with PeerLink.connect(address) as link:
            with self._lock:
                if self._stopping:
                    raise StateError("the manager is stopping: no move begins any more")
                self._links.add(link)
            try:
                yield link
            finally:
                with self._lock:
                    self._links.discard(link)

    def _attempt(
        self,
        attempt: _Attempt,
        link: PeerLink,
        record: VtpmRecord,
        order: Order,
        ordered: bytes,
        address: str,
        *,
        dry_run: bool,
    ) -> dict[str, Any]:
        agreed = link.converse(agreement.offer(attempt.side, self._offer(attempt, link, record, ordered)), _ANSWER)
        ours, theirs = features.parse(agreed.offer.features), features.parse(agreed.accept.features)
        move_rules.demand_fits(ours, theirs)
        talk = attempt.talk = Talk(link, agreed.session)
        talk.expect(Ready, _ANSWER)
        if dry_run:
            talk.say(Refuse(attempt.move, Cause.POLICY, "it was a trial"))
            return {"vtpm": record.name, "to": order.destination, "dry_run": True}
        with self._proofs.kept(agreed):
            self._ledger.offer(_move(attempt, agreed, record, order, address), attempt.side.key)
            attempt.begun = True
            attempt.gate()
            with self._transit.leaving(record.uuid) as departure:
                self._hand_over(attempt, talk, departure)
            return self._confirmed(attempt, talk)

    def _offer(self, attempt: _Attempt, link: PeerLink, record: VtpmRecord, ordered: bytes) -> Offer:
        listens = peer_link.visible(self._listens, link.local_host) if self._listens else ""
        return attempt.side.offering(attempt.move, ordered, listens=listens, name=record.name)

    def _hand_over(self, attempt: _Attempt, talk: Talk, departure: Departure) -> None:
        with self._ledger.departing(attempt.id, departure):
            for part in parts.split(departure.data):
                talk.say(part)
            departure.keep()  # while the other side loads and stores it
            prepared = talk.expect(Handover, _PREPARED)
            commit = self._ledger.hear(prepared) if prepared.kind is Kind.PREPARED else None
        if commit is None:
            raise RemoteProtocolError("the other side's PREPARED is not about this move")
        talk.say(commit)

    def _confirmed(self, attempt: _Attempt, talk: Talk) -> dict[str, Any]:
        self._ledger.hear(talk.expect(Handover, _COMMITTED))
        move = self._ledger.get(attempt.id)
        if move.state != SourceState.DONE:
            raise ledgers.failed(move)
        return {"move": move.id, "vtpm": move.name, "to": move.peer, "generation": move.generation, "state": move.state}

    def _ended(self, attempt: _Attempt, link: PeerLink, error: VtpmManagerError) -> VtpmManagerError:
        """What the caller is told; the other side too."""
        cause = peer_link.cause_of(error)
        if attempt.begun:
            told = self._ledger.give_up(attempt.id, cause.word, str(error))
            move = self._ledger.get(attempt.id)
            if move.state == SourceState.TOMBSTONE:
                return HandoverUnconfirmedError(
                    f"vTPM {move.name!r} was given up for platform {move.peer}, which has not confirmed it ({error}); "
                    "it is asked again until it does: see 'migrations'",
                    cause.word,
                )
            if told is not None:
                _tell(link, told)
        (attempt.talk or link).refuse(attempt.move, error)
        if attempt.begun and not isinstance(error, StateError):
            return AbortedError(str(error), cause.word)
        return error if isinstance(error, MigrationError | StateError) else MigrationError(str(error), cause.word)


def _tell(link: PeerLink, word: Handover) -> None:
    try:
        link.send(word)
    except MigrationError:
        log.info("the other side was not told that the move is over; it will ask")


def _move(attempt: _Attempt, agreed: Agreed, record: VtpmRecord, order: Order, address: str) -> Move:
    found = attempt.side.peer
    assert found is not None  # the conversation ends only after its evidence was verified
    return Move(
        id=attempt.id,
        out=True,
        state=str(SourceState.OFFERED),
        vtpm=record.uuid,
        name=record.name,
        group=record.group,
        generation=record.generation + 1,
        peer=found.platform.name,
        address=address,
        transcript=agreed.session.transcript,
        peer_key=agreed.accept.move_key,
        peer_ak=found.platform.ak.name,
        order=order.digest,
        started=ledgers.now(),
    )
