"""The source's side of a vTPM that follows its VM: the ticket, who has it, who will (MIGRATION.md, section 13)."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from manager_vm.errors import BusyError, MigrationError, StateError, VtpmManagerError
from manager_vm.protocol import agreement, parts
from manager_vm.protocol.agreement import Agreed
from manager_vm.protocol.handover import SourceState
from manager_vm.protocol.lifecycle import State
from manager_vm.server import ledger as ledgers
from manager_vm.server import move_rules, peer_link, standing
from manager_vm.server.ledger import Ledger
from manager_vm.server.move_rules import Local, Side
from manager_vm.server.parking import Parkings
from manager_vm.server.peer_link import PeerLink, Talk
from manager_vm.server.receipts import Proofs
from manager_vm.store import moves
from manager_vm.store.records import Move, VtpmRecord
from manager_vm.vtpm import binding, snapshots
from manager_vm.vtpm.registry import Registry
from manager_vm.vtpm.transit import Transit
from manager_vm.wire import features
from manager_vm.wire import ticket as tickets
from manager_vm.wire.migration import ID_SIZE, Ahead, Cause, Pull, Ready
from manager_vm.wire.ticket import Ticket

log = logging.getLogger(__name__)

_ANSWER = 60.0  # seconds: a hardware TPM quotes, a process starts
_ANCHORED = 5.0  # seconds
_AHEAD = 60.0  # seconds an agreement lives
_MOST_AHEAD = 64  # agreements that wait for their ticket
_LEAVES = (State.RUNNING, State.PARKED)


class Giver:
    """The source's side. ``listens``: the address of our own listener, or ""."""

    def __init__(self, local: Local, registry: Registry, transit: Transit, ledger: Ledger, proofs: Proofs) -> None:
        self._local = local
        self._registry = registry
        self._transit = transit
        self._ledger = ledger
        self._proofs = proofs
        self.parkings = Parkings(registry)
        self._awaited: list[str] = []  # uuids whose destination stands by for the ticket, once for each that does
        self._lock = threading.Lock()  # of that list
        self.listens = ""

    def ticket(self, name: str, vm: str, address: str) -> bytes:
        """Park this VM's vTPM; the ticket that names the park, the same again as long as it stands.

        Where a destination stands by the vTPM is still, and the rest of the park is under way.
        """
        record = self._settled(name)
        binding.demand(record, vm)
        if not record.vm:
            raise StateError(f"vTPM {name!r} belongs to no VM, so nobody could say whose ticket it is: 'bind' it first")
        park = self._park(record) if record.state is State.RUNNING else record.ticket
        if record.state not in _LEAVES or not park:
            raise StateError(f"vTPM {name!r} is {record.state}: only one that runs can go along with its VM")
        platform = self._local.platform.name
        return tickets.pack(Ticket(record.uuid, name, record.generation, park, record.vm, platform, address))

    def _park(self, record: VtpmRecord) -> str:
        """Which park a ticket is to name; its error if it has failed already."""
        parking = self.parkings.begin(record)
        with self._lock:
            awaited = record.uuid in self._awaited
        if not awaited:
            parking.wait()
        if parking.error is not None:
            raise parking.error
        return parking.ticket

    def _settled(self, name: str) -> VtpmRecord:
        """Its record. One that serves since a moment ago is still ARRIVING there until its commit is anchored."""
        self.parkings.last(self._registry.record(name).uuid)
        until = time.monotonic() + _ANCHORED
        while (record := self._registry.record(name)).state is State.ARRIVING and time.monotonic() < until:
            time.sleep(_ANCHORED / 200)
        return record

    def give(self, link: PeerLink, asked: Pull | Ahead, known: Callable[[], None]) -> None:
        """Who has a ticket, or will have one: offer, agree, send the state. Nothing is given up by that.

        ``known``: the ticket, or the knowledge of the standing order, is good.
        """
        move = os.urandom(ID_SIZE)
        talk: Talk | None = None
        try:
            record = self._meant(asked)
            here = self._local.platform.name
            statement = standing.demand_allowed(self._local.manifest.contents, record.vm, here, asked.platform)
            known()
            side = Side(self._local, asked.platform)
            offered = side.offering(move, statement, listens=self.visible(link), **_said(record, here))
            agreed = link.converse(agreement.offer(side, offered), _ANSWER)
            move_rules.demand_fits(features.parse(agreed.offer.features), features.parse(agreed.accept.features))
            talk = Talk(link, agreed.session)
            talk.expect(Ready, _ANSWER)
            ticket = tickets.parse(asked.ticket) if isinstance(asked, Pull) else self._shown(asked, talk, record)
            if ticket is None:
                return
            for part in parts.split(self._offered(ticket, side, agreed, asked)):
                talk.say(part)
        except VtpmManagerError as error:
            (talk or link).refuse(move, error)
            if isinstance(asked, Pull):
                raise
            log.info("platform %s was not agreed with: %s", asked.platform, error)  # it asks many, and again

    def _meant(self, asked: Pull | Ahead) -> VtpmRecord:
        """The vTPM that is asked for: of the ticket, or of the VM whose ticket is to come."""
        if isinstance(asked, Pull):
            return self._named(tickets.parse(asked.ticket))
        contents = self._local.manifest.contents
        order = standing.current_of(contents, asked.vm)
        if order is None or order.digest != asked.order:
            raise MigrationError("this is not the standing order that is known here", Cause.ORDER.word)
        found = (record for record in contents.vtpms.values() if record.vm == asked.vm)
        record = next((record for record in found if record.state in _LEAVES), None)
        if record is None:
            raise MigrationError("no vTPM of this VM runs here", Cause.POLICY.word)
        return replace(record, ticket=os.urandom(tickets.PARK_SIZE).hex())  # nobody knows its park yet

    def _shown(self, asked: Ahead, talk: Talk, record: VtpmRecord) -> Ticket | None:
        """The ticket that comes later, which must be of what was offered; None if none comes."""
        try:
            with self._standing_by(record.uuid):
                log.info("vTPM %s: platform %s stands by for its ticket", record.name, asked.platform)
                ticket = tickets.parse(talk.expect(Pull, _AHEAD).ticket)
        except MigrationError as error:
            if error.cause in (Cause.PEER_LOST.word, Cause.TIMEOUT.word):
                return None
            raise
        if (ticket.vtpm, ticket.generation, ticket.vm) != (record.uuid, record.generation, record.vm):
            raise MigrationError("this ticket is not of the vTPM that was offered", Cause.ORDER.word)
        here = self._local.platform.name
        standing.demand_allowed(self._local.manifest.contents, record.vm, here, asked.platform)  # it may be revoked
        return ticket

    @contextmanager
    def _standing_by(self, uuid: str) -> Iterator[None]:
        """A destination waits for the ticket of this vTPM."""
        with self._lock:
            if len(self._awaited) >= _MOST_AHEAD:
                raise MigrationError("too many wait here for a ticket", Cause.BUSY.word)
            self._awaited.append(uuid)
        try:
            yield
        finally:
            with self._lock:
                self._awaited.remove(uuid)

    def _offered(self, ticket: Ticket, side: Side, agreed: Agreed, asked: Pull | Ahead) -> bytes:
        """The state, which may be asked for from now on; an earlier one that had it has come too early."""
        self.parkings.settle(ticket)
        contents, found = self._local.manifest.contents, side.peer
        assert found is not None  # the conversation has verified it
        older = moves.open_one(contents, ticket.vtpm)
        if older is not None and older.out and older.pulled:
            self._ledger.give_up(older.id, Cause.POLICY.word, f"platform {asked.platform} has asked for it since")
        self._bring_back(ticket)
        with self._transit.leaving(ticket.vtpm) as departure:
            record = self._parked(ticket)
            data, digest = departure.data, departure.digest
        entry = Move(
            id=agreed.offer.move.hex(),
            out=True,
            state=str(SourceState.OFFERED),
            vtpm=record.uuid,
            name=record.name,
            group=record.group,
            generation=record.generation + 1,
            peer=found.platform.name,
            address=asked.listens,
            transcript=agreed.session.transcript,
            peer_key=agreed.accept.move_key,
            peer_ak=found.platform.ak.name,
            order=standing.digest_of(agreed.offer.order),
            started=ledgers.now(),
            digest=digest,
            pulled=ticket.park,
        )
        with self._proofs.kept(agreed):
            self._ledger.offer(entry, side.key)
        return data

    def _named(self, ticket: Ticket) -> VtpmRecord:
        """The vTPM whose park the ticket names, or whose snapshot, if an admin lets it come back."""
        self.parkings.settle(ticket)
        if not self._comes_back(ticket):
            return self._parked(ticket)
        return replace(self._local.manifest.contents.vtpms[ticket.vtpm], ticket=ticket.park)

    def _comes_back(self, ticket: Ticket) -> bool:
        contents = self._local.manifest.contents
        record = contents.vtpms.get(ticket.vtpm)
        if record is None or record.vm != ticket.vm or record.ticket == ticket.park:
            return False
        return snapshots.is_permitted(contents, record.uuid, ticket.park)

    def _bring_back(self, ticket: Ticket) -> None:
        """BusyError while a VM uses it: that would find another state under it."""
        if not self._comes_back(ticket):
            return
        name = self._local.manifest.contents.vtpms[ticket.vtpm].name
        if self._registry.get(name).live:
            raise BusyError(f"a guest is using vTPM {name!r}; end its VM before another comes back for it")
        self._registry.revert(name, ticket.park, ticket=ticket.park)

    def _parked(self, ticket: Ticket) -> VtpmRecord:
        """MigrationError (replayed) unless the park that the ticket names still stands."""
        record = self._local.manifest.contents.vtpms.get(ticket.vtpm)
        if record is None or (record.ticket, record.generation, record.vm) != (
            ticket.park,
            ticket.generation,
            ticket.vm,
        ):
            raise MigrationError("this ticket is void: its vTPM has gone on since", Cause.REPLAYED.word)
        if record.state is not State.PARKED:
            raise MigrationError(f"this ticket's vTPM is {record.state}", Cause.REPLAYED.word)
        return record

    def visible(self, link: PeerLink) -> str:
        """Where the other end of this link reaches us, ""."""
        return peer_link.visible(self.listens, link.local_host) if self.listens else ""


def _said(record: VtpmRecord, here: str) -> dict[str, str]:
    """What stands in the OFFER beside the standing order, which names the VM only."""
    said = {"name": record.name, "vtpm": record.uuid, "generation": str(record.generation), "park": record.ticket}
    return {**said, "from": here}
