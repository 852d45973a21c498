"""How a vTPM comes over a conversation, whoever began it: keys, room, its state, PREPARED (MIGRATION.md, section 1)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from manager_vm import crypto
from manager_vm.errors import BusyError, ConfigError, MigrationError, StoreError, VtpmManagerError
from manager_vm.protocol import agreement
from manager_vm.protocol.agreement import Agreed
from manager_vm.protocol.handover import DestinationState
from manager_vm.protocol.parts import Assembly
from manager_vm.server import ledger as ledgers
from manager_vm.server.admission import Incoming, Room
from manager_vm.server.ledger import Ledger
from manager_vm.server.move_rules import Local
from manager_vm.server.peer_link import PeerLink, Talk
from manager_vm.server.receipts import Proofs
from manager_vm.store import final_state
from manager_vm.store.final_state import FinalState
from manager_vm.store.records import Move
from manager_vm.vchan import address
from manager_vm.vtpm import binding, changes
from manager_vm.vtpm.transit import Also, Arrival, Transit
from manager_vm.wire.migration import Cause, Handover, Offer, Ready, StatePart

_CONFIRM = 60.0
_STATE = 60.0


@dataclass(frozen=True, slots=True)
class Coming:
    """A conversation over which a vTPM may come: keys are agreed on, a process waits. ``room``: what it holds here."""

    talk: Talk
    side: Incoming
    agreed: Agreed
    arrival: Arrival
    room: ExitStack


@dataclass(frozen=True, slots=True)
class Shown:
    """A ticket that was shown: of ``park``, for a VM that waits at ``channel`` ("": its host has not said where)."""

    park: str
    channel: str


class Taking:
    """Thread-safe. ``room`` counts those that others begin; all of them take turns at the hardware TPM."""

    def __init__(self, local: Local, transit: Transit, ledger: Ledger, proofs: Proofs) -> None:
        self._local = local
        self._transit = transit
        self._ledger = ledger
        self._proofs = proofs
        self._turn = threading.Lock()
        self.room = Room()

    def incoming(self, held: ExitStack, room: Room | None = None) -> Incoming:
        """Our side of a conversation, counted in ``room`` for as long as ``held``."""
        return Incoming(self._local, room or self.room, self._turn, held)

    def agree(
        self,
        link: PeerLink,
        offer: Offer,
        held: ExitStack,
        known: Callable[[], None] = lambda: None,
        room: Room | None = None,
    ) -> Coming:
        """Answer an OFFER up to READY. ``known``: the order is good. What it takes here goes with ``held``."""
        ours = self.incoming(held, room)
        talk: Talk | None = None
        try:
            agreed = link.converse(agreement.noting(agreement.accept(ours, offer), known), _CONFIRM)
            talk = Talk(link, agreed.session)
            kept = held.enter_context(ExitStack())
            arrival = kept.enter_context(self._transit.arriving(ours.name))
            talk.say(Ready())
        except VtpmManagerError as error:
            (talk or link).refuse(offer.move, _told(error))
            raise
        return Coming(talk, ours, agreed, arrival, kept)

    def receive(self, coming: Coming, shown: Shown | None = None) -> tuple[Move, Handover]:
        """The state that comes now: durable, PREPARED, and nobody is told. ``shown``: the ticket that was."""
        talk = coming.talk
        try:
            with self._proofs.kept(coming.agreed), coming.room:
                assembly, data = Assembly(), None
                while data is None:
                    data = assembly.add(talk.expect(StatePart, _STATE))
                final = final_state.unpack(data)
                move = _move(coming.side, coming.agreed, final, crypto.digest(data))
                if shown is not None:
                    move = replace(move, pulled=shown.park)
                return move, self._ledger.prepare(move, coming.side.key, coming.arrival, final, _wired(final, shown))
        except VtpmManagerError as error:
            talk.refuse(coming.agreed.offer.move, _told(error))
            raise


def _move(side: Incoming, agreed: Agreed, final: FinalState, digest: bytes) -> Move:
    order, found = side.order, side.peer
    assert order is not None and found is not None  # the conversation has verified both
    if (final.uuid, final.group, final.name) != (order.vtpm, order.group, side.name) or order.vm not in ("", final.vm):
        raise MigrationError("the state that came is not that of the vTPM in the order", Cause.ORDER.word)
    return Move(
        id=agreed.offer.move.hex(),
        out=False,
        state=str(DestinationState.PREPARED),
        vtpm=final.uuid,
        name=final.name,
        group=final.group,
        generation=order.generation + 1,
        peer=found.platform.name,
        address=agreed.offer.listens,
        transcript=agreed.session.transcript,
        peer_key=agreed.offer.move_key,
        peer_ak=found.platform.ak.name,
        order=order.digest,
        started=ledgers.now(),
        digest=digest,
    )


def _wired(final: FinalState, shown: Shown | None) -> Also:
    """With the channel at which the VM waits, so that no commit of its own is needed for that.

    ConfigError if that is another vTPM's: what a ticket says of itself is its bearer's word, and this is what has come.
    """
    channel = shown.channel if shown is not None else ""
    if channel:
        binding.demand_own(final.name, address.parse(channel))
    return lambda contents: changes.wire(contents, final.uuid, channel, final.vm)


def _told(error: VtpmManagerError) -> VtpmManagerError:
    """Where there is no room it is nobody's fault."""
    if isinstance(error, BusyError | ConfigError):
        return MigrationError(str(error), Cause.POLICY.word)
    if isinstance(error, StoreError):
        return MigrationError("the destination's disk has no room, or cannot be written", Cause.FAULT.word)
    return error
