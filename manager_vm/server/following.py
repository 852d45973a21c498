"""vTPMs that follow VMs which their hypervisor moves or saves by itself (MIGRATION.md, section 13).

A *ticket* goes with the VM; the state stays, parked. Who gets the ticket pulls the state (attested, by a standing
order) and is PREPARED. It says so, and thereby becomes the vTPM, when the VM that has come asks its TPM for something;
until then a command of the VM that has stayed consumes the park, and the ticket is void. So a hypervisor that fails in
between finds the vTPM where its VM runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from manager_vm.errors import BoundError, ConfigError, MigrationError, RemoteProtocolError, StateError
from manager_vm.protocol import agreement
from manager_vm.protocol.handover import DestinationState
from manager_vm.protocol.lifecycle import State
from manager_vm.server.move_rules import Local
from manager_vm.server.moving import Moving
from manager_vm.server.peer_link import PeerLink
from manager_vm.server.taking import Shown
from manager_vm.store import moves
from manager_vm.store.records import Move, VtpmRecord
from manager_vm.vchan import address
from manager_vm.vchan.address import Kind
from manager_vm.vtpm import binding, snapshots
from manager_vm.vtpm.registry import Registry
from manager_vm.wire import ticket as tickets
from manager_vm.wire.admin import Request
from manager_vm.wire.migration import Handover, Offer, Pull, Refuse
from manager_vm.wire.ticket import Ticket

log = logging.getLogger(__name__)

_ANSWER = 60.0  # seconds: the source's manager reads the ticket
_RECEIPT = 10.0  # seconds, from the destination's first command


class Following:
    """The host link's verbs of both sides, and what a guest's command does for a vTPM that follows. Thread-safe."""

    def __init__(self, local: Local, registry: Registry, moving: Moving) -> None:
        self._local = local
        self._registry = registry
        self._moving = moving

    def host_link(self, others: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """Who answers on the host link: these verbs, and ``others`` all other requests."""
        verbs = {"ticket": self._ticket, "expect": self._expect, "redeem": self._redeem, "ticket_void": self._void}

        def perform(request: Request) -> Any:
            own = verbs.get(request.verb)
            return others(request) if own is None else own(request.args)

        return perform

    def concerns(self, name: str) -> bool:
        """Whether this vTPM is parked for a ticket, or has come by one."""
        record = self._local.manifest.contents.named(name)
        if record is None:
            return False
        move = moves.open_one(self._local.manifest.contents, record.uuid)
        return bool(record.ticket) or (record.state is State.ARRIVING and move is not None and bool(move.pulled))

    def wanted(self, name: str) -> None:
        """A guest's command has come for this vTPM, which does not run."""
        record = self._registry.record(name)
        if record.state is State.PARKED and record.ticket:
            self._registry.start(name, power_on=False)
            log.info("vTPM %s: its VM goes on here, the ticket is void", name)
            return
        move = moves.open_one(self._local.manifest.contents, record.uuid)
        if record.state is State.ARRIVING and move is not None and move.pulled:
            began = time.monotonic()
            word = self._moving.ledger.again(move.id)
            if word is not None:
                self._say(move, word)
            log.info("vTPM %s: its VM has it after %.3f s", name, time.monotonic() - began)

    def _say(self, move: Move, word: Handover) -> None:
        """MigrationError if the source cannot be asked; one that has no more to say when all is over is none."""
        try:
            self._moving.tell(move, word)
        except MigrationError:
            if not self._moving.ledger.get(move.id).ended:
                raise

    def _ticket(self, args: dict[str, Any]) -> dict[str, Any]:
        """The VM of vTPM ``name`` leaves, or is saved."""
        name = args.get("name")
        if not isinstance(name, str):
            raise ConfigError("name a vTPM")
        return {"ticket": self._moving.giver.ticket(name, _vm(args), self._moving.address)}

    def _expect(self, args: dict[str, Any]) -> None:
        """The VM ``vm`` may come soon; with ``over``: it does not."""
        vm = _vm(args)
        if args.get("over") is True:
            self._moving.ahead.forget(vm)
        elif self._moving.address:  # one that does not listen takes no vTPMs
            self._moving.ahead.expect(vm)

    def _redeem(self, args: dict[str, Any]) -> dict[str, Any]:
        """The VM ``vm`` has come with this ``ticket``: its vTPM is here now, and not given up where it was.

        ``channel``: at which it waits, if it is known: then ``attach`` commits nothing more.
        """
        data = args.get("ticket")
        if not isinstance(data, bytes):
            raise ConfigError("name a ticket")
        ticket = tickets.parse(data)
        if _vm(args) != ticket.vm:
            raise BoundError(f"this ticket is for VM {ticket.vm} and is not redeemed by another")
        self._moving.giver.parkings.settle(ticket)
        record = self._confirmed(ticket.vtpm)
        if record is None:
            self._pull(ticket, data, Shown(ticket.park, _channel(args)))
            record = self._local.manifest.contents.vtpms[ticket.vtpm]
        elif not self._stands(ticket, record):
            self._bring_back(ticket, record)
        return {"name": record.name, "boot": record.boot}

    def _confirmed(self, uuid: str) -> VtpmRecord | None:
        """What is here of this vTPM. One that went and is back already may have its receipt under way still."""
        until = time.monotonic() + _RECEIPT
        while (record := self._local.manifest.contents.vtpms.get(uuid)) is not None and record.state is State.GONE:
            if time.monotonic() >= until:
                raise StateError(f"vTPM {record.name!r} has gone from here and nobody has confirmed it yet: try again")
            time.sleep(_RECEIPT / 200)
        return record

    def _stands(self, ticket: Ticket, record: VtpmRecord) -> bool:
        """Whether what the ticket names is here: the park itself, or what was pulled of it."""
        move = moves.open_one(self._local.manifest.contents, record.uuid)
        pulled = move.pulled if move is not None and not move.out else ""
        return ticket.park in (record.ticket if record.state is State.PARKED else "", pulled)

    def _bring_back(self, ticket: Ticket, record: VtpmRecord) -> None:
        """The VM's image is older than its vTPM: that may go back, if an admin has said so."""
        contents = self._local.manifest.contents
        if not snapshots.is_permitted(contents, record.uuid, ticket.park):
            known = any(each.id == ticket.park for each in snapshots.of(contents, record.uuid).kept)
            remedy = f": 'revert {record.name} {ticket.park}' would bring that back" if known else ""
            raise StateError(f"this ticket of vTPM {record.name!r} is void: it has gone on since{remedy}")
        self._registry.revert(record.name, ticket.park, ticket=ticket.park)

    def _pull(self, ticket: Ticket, data: bytes, shown: Shown) -> None:
        began = time.monotonic()
        if not self._agreed_ahead(ticket, data, shown):
            self._ask(ticket, data, shown)
        took = time.monotonic() - began
        log.info("vTPM %s: here from %s after %.3f s", ticket.name, ticket.platform, took)

    def _agreed_ahead(self, ticket: Ticket, data: bytes, shown: Shown) -> bool:
        """Whether it has come over what was agreed on before; else it has to be asked for from the beginning."""
        waiting = self._moving.ahead.take(ticket)
        if waiting is None:
            return False
        try:
            self._moving.show(waiting, Pull(data, self._local.platform.name, ""), shown)
        except (MigrationError, RemoteProtocolError) as error:
            log.info("vTPM %s: what was agreed on ahead came to nothing: %s", ticket.name, error)
            return False
        log.info("vTPM %s: agreed on ahead", ticket.name)
        return True

    def _ask(self, ticket: Ticket, data: bytes, shown: Shown) -> None:
        if not ticket.address:
            raise StateError("this ticket names no address: it is for the manager that gave it")
        with PeerLink.connect(ticket.address) as link:
            link.send(Pull(data, self._local.platform.name, self._moving.giver.visible(link)))
            message = link.receive(_ANSWER)
            if isinstance(message, Refuse):
                raise agreement.refused(message)
            if not isinstance(message, Offer):
                raise RemoteProtocolError(f"the other end answered a ticket with {type(message).__name__}")
            self._moving.fetch(link, message, shown)

    def _void(self, args: dict[str, Any]) -> None:
        """The VM that came for vTPM ``name`` has gone without a command: the vTPM is not taken from where it was."""
        record = self._registry.record(str(args.get("name")))
        move = moves.open_one(self._local.manifest.contents, record.uuid)
        if move is None or move.out or not move.pulled or move.state != DestinationState.PREPARED:
            raise StateError(f"vTPM {record.name!r} waits for no VM here")
        if not self._moving.surely_unused(move):
            raise StateError(
                f"vTPM {record.name!r} may have served its VM before this manager was started; it goes back when the "
                "VM goes on at the source, or by an operator's 'abort'"
            )
        word = self._moving.ledger.give_up(move.id, "", "its VM did not begin to run here")
        with suppress(MigrationError):  # it asks, or is told when it does
            if word is not None:
                self._moving.tell(move, word)


def _channel(args: dict[str, Any]) -> str:
    """ConfigError unless it is a shim's: no other VM comes with a ticket."""
    channel = args.get("channel", "")
    if not isinstance(channel, str) or (channel and address.parse(channel).kind is not Kind.SHIM):
        raise ConfigError(f"{str(channel)[:80]!r} is no shim's channel")
    return channel


def _vm(args: dict[str, Any]) -> str:
    vm = args.get("vm")
    if not isinstance(vm, str) or not vm:
        raise ConfigError("name the VM by its UUID")
    return binding.parse(vm)
