"""Moves of vTPMs as the daemon starts them and operators ask for them: sender, receiver, and who asks again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from manager_vm.config import Config
from manager_vm.errors import ConfigError, MigrationError, StateError, VtpmManagerError
from manager_vm.net import Cards
from manager_vm.protocol.handover import DestinationState, SourceState
from manager_vm.protocol.lifecycle import State
from manager_vm.server import peer_link
from manager_vm.server.ahead import Ahead, Waiting
from manager_vm.server.guest_gate import Gates
from manager_vm.server.guest_tunnel import Tunnels
from manager_vm.server.ledger import Ledger
from manager_vm.server.migrate_in import Receiver, Relocations
from manager_vm.server.migrate_out import Sender
from manager_vm.server.move_rules import Local
from manager_vm.server.peer_link import PeerLink
from manager_vm.server.pull_out import Giver
from manager_vm.server.receipts import Proofs
from manager_vm.server.taking import Shown, Taking
from manager_vm.server.wiring import Wiring
from manager_vm.store import atomic, moves
from manager_vm.store.records import Move
from manager_vm.vtpm.registry import Registry
from manager_vm.vtpm.transit import Transit
from manager_vm.wire.migration import Cause, Handover, Offer, Pull

log = logging.getLogger(__name__)

_LOOK = 1.0  # seconds
_FIRST, _LONGEST = 2.0, 60.0  # seconds before a peer is asked again, growing
_ANSWER = 20.0
_KNOWN = "migration.address"


class Moving:
    """Thread-safe. ``arrived``: what is done for a vTPM that is PREPARED. ``relocations``: for a whole manager.

    ``tunnels``: for guests' memory. ``gates``: where a vTPM waits for its guest to stop.
    """

    def __init__(
        self,
        config: Config,
        local: Local,
        registry: Registry,
        transit: Transit,
        wiring: Wiring,
        arrived: Callable[[str], None],
        cards: Cards,
        relocations: Relocations,
        tunnels: Tunnels,
        gates: Gates,
    ) -> None:
        self._cards = cards
        self._gates = gates
        manifest = self._manifest = local.manifest
        self._registry = registry
        self.ledger = self._ledger = Ledger(manifest, transit, config.state_dir / "moves", wiring.detach)
        self._ledger.recover()
        self._proofs = Proofs(manifest, config.state_dir / "receipts")
        self.giver = Giver(local, registry, transit, self._ledger, self._proofs)
        self._taking = Taking(local, transit, self._ledger, self._proofs)
        self._tasks = ExitStack()
        self._tasks.callback(self.giver.parkings.close)
        self._receiver: Receiver | None = None
        if config.migration:
            asked = arrived, relocations, tunnels, self.giver.give
            self._receiver = _listening(config, lambda at: Receiver(self._taking, self._ledger, at, *asked))
            self._tasks.callback(self._receiver.close)
        listener = self.giver.listens = self._receiver.address if self._receiver is not None else ""
        self._sender = Sender(local, transit, self._ledger, self._proofs, listener)
        self.ahead = Ahead(local, self._taking, listener)
        self._tasks.callback(self.ahead.close)
        self._asker = Asker(self._ledger)
        self._tasks.callback(self._asker.close)

    @property
    def address(self) -> str:
        """Where other managers reach this one, "" if it does not listen, or has no address yet."""
        if self._receiver is None:
            return ""
        return peer_link.visible(self._receiver.address, next(iter(self._cards.addresses), ""))

    @property
    def alive(self) -> bool:
        """Whether all threads live."""
        return self._asker.alive and (self._receiver is None or self._receiver.alive)

    def interrupt(self) -> None:
        """Before the links that ask for moves are closed: no request waits for another manager."""
        self._sender.interrupt()
        self._gates.interrupt()

    def close(self) -> None:
        """No new moves; those under way end as if the network had.

        What was pulled and surely not used stays with who has it: behind a restart nobody could tell whether it served.
        """
        for move in self._ledger.open():
            if not move.out and move.pulled and move.state == DestinationState.PREPARED:
                with suppress(VtpmManagerError):
                    if self.surely_unused(move):
                        self._ledger.give_up(move.id, "", "the manager ends; its VM's host asks for it again")
        self._tasks.close()

    def surely_unused(self, move: Move) -> bool:
        """Whether a vTPM that is PREPARED has executed nothing here: it still waits in a process of this start.

        Of an earlier one nobody can tell: its COMMIT lay in a file, which whoever has the disk can take away.
        """
        vtpm = self._registry.get(move.name)
        return vtpm.run is not None and vtpm.state is State.ARRIVING

    def migrate(self, args: dict[str, Any]) -> dict[str, Any]:
        """Move vTPM ``name`` by ``order`` to the manager at ``to``; ``dry_run``: all but the move itself.

        ``with_guest``: just before it is quiesced wait until the host says that its guest stands still.
        """
        name, ordered, to = args.get("name"), args.get("order"), args.get("to")
        if not isinstance(name, str) or not isinstance(ordered, bytes) or not isinstance(to, str):
            raise ConfigError("name a vTPM, an order of its group's authority, and the other manager's address")
        record = self._registry.record(name, _group(args))
        if args.get("with_guest") is not True:
            return self._sender.migrate(record, ordered, to, dry_run=args.get("dry_run") is True)
        with self._gates.of(name) as gate:
            return self._sender.migrate(record, ordered, to, dry_run=False, gate=gate)

    def listed(self, args: dict[str, Any]) -> list[dict[str, Any]]:
        """All moves that are remembered, oldest first."""
        return [_told(move) for move in self._manifest.contents.moves.values()]

    def receipt(self, args: dict[str, Any]) -> bytes:
        """What proves a move to others (MIGRATION.md, section 11): by its id, or the newest of a vTPM by its name."""
        named = args.get("move")
        if not isinstance(named, str):
            raise ConfigError("name a move or a vTPM")
        return self._proofs.of(named)

    def fetch(self, link: PeerLink, offer: Offer, shown: Shown) -> None:
        """What somebody offers to whom we have shown this ticket: PREPARED, and nobody is told yet."""
        with ExitStack() as held:
            self._taking.receive(self._taking.agree(link, offer, held), shown)

    def show(self, waiting: Waiting, pull: Pull, shown: Shown) -> None:
        """The same of somebody with whom that was agreed on before; MigrationError if the other end is gone."""
        with waiting.held:
            waiting.coming.talk.say(pull)
            self._taking.receive(waiting.coming, shown)

    def tell(self, move: Move, word: Handover) -> None:
        """Say this to the peer of a move, and go on as long as there is something to say."""
        self._asker.tell(move, word)

    def abort(self, args: dict[str, Any]) -> dict[str, Any]:
        """Give up the move of vTPM ``name``, at either end, if it has not come to its point of no return."""
        move = self._open(args)
        word = self._ledger.give_up(move.id, "", "an operator has given it up")
        if word is None:
            raise StateError(f"the move of vTPM {move.name!r} cannot be given up any more: it is {move.state}")
        with suppress(MigrationError):  # it asks, or is told when it does
            self._asker.tell(move, word)
        return _told(self._ledger.get(move.id))

    def declare_dead(self, args: dict[str, Any]) -> dict[str, Any]:
        """Take back vTPM ``name`` from a destination that will never answer."""
        move = self._open(args)
        self._ledger.declare_dead(move.id)
        return _told(self._ledger.get(move.id))

    def _open(self, args: dict[str, Any]) -> Move:
        record = self._registry.record(str(args.get("name")), _group(args))
        move = moves.open_one(self._manifest.contents, record.uuid)
        if move is None:
            raise StateError(f"vTPM {record.name!r} does not move")
        return move


class Asker:
    """A thread that asks the peers of open moves again, until they have answered: at a start at once."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._due = {move.id: (time.monotonic(), _FIRST / 2) for move in ledger.open()}  # when, pause before
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ask again", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still asks."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Idempotent."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(_LOOK):
            for move in self._ledger.lapsed():
                self._lapse(move)
            waiting = [move for move in self._ledger.open() if not _waits_for_guest(move)]
            self._due = {move.id: self._due.get(move.id) or (time.monotonic() + _FIRST, _FIRST) for move in waiting}
            for move in waiting:
                when, pause = self._due[move.id]
                if time.monotonic() >= when and not self._closing.is_set():
                    pause = min(pause * 2, _LONGEST)
                    self._due[move.id] = (time.monotonic() + pause, pause)
                    self._ask(move)

    def _lapse(self, move: Move) -> None:
        word = self._ledger.give_up(move.id, Cause.POLICY.word, "its VM went on at the source")
        with suppress(VtpmManagerError):  # it is told when it asks
            if word is not None and move.address:
                self.tell(move, word)

    def _ask(self, move: Move) -> None:
        try:
            word = self._ledger.again(move.id)
            if word is None or not move.address:
                return
            self.tell(move, word)
        except MigrationError as error:
            log.info("move %s of vTPM %s: platform %s: %s", move.id[:8], move.name, move.peer, error)
        except VtpmManagerError as error:
            log.error("move %s of vTPM %s: %s", move.id[:8], move.name, error)

    def tell(self, move: Move, word: Handover) -> None:
        """Say it, and go on as long as both sides have something to say; MigrationError if nobody is there."""
        with PeerLink.connect(move.address) as link:
            answer: Handover | None = word
            while answer is not None:
                link.send(answer)
                heard = link.receive(_ANSWER)
                answer = self._ledger.hear(heard) if isinstance(heard, Handover) else None


def _waits_for_guest(move: Move) -> bool:
    """One that was pulled asks for the vTPM when its VM does, and not by itself."""
    return bool(move.pulled) and move.state in (SourceState.OFFERED, DestinationState.PREPARED)


def _listening(config: Config, listen: Callable[[str], Receiver]) -> Receiver:
    """A free port is the same again after a restart, if it still is free: peers ask there."""
    known = config.run_dir / _KNOWN
    if peer_link.parse_address(config.migration)[1] != 0:
        return listen(config.migration)
    before = atomic.read_file(known, 255)
    try:
        receiver = listen(before.decode() if before else config.migration)
    except (ConfigError, UnicodeDecodeError):
        receiver = listen(config.migration)
    atomic.write_file(known, receiver.address.encode())
    return receiver


def _group(args: dict[str, Any]) -> str | None:
    group = args.get("group")
    return group if isinstance(group, str) else None


def _told(move: Move) -> dict[str, Any]:
    """For people and programs; receipts in hex."""
    waits = "" if move.ended else ("the destination's word" if move.state == SourceState.TOMBSTONE else "its peer")
    return {
        "move": move.id,
        "name": move.name,
        "vtpm": move.vtpm,
        "group": move.group,
        "direction": "out" if move.out else "in",
        "state": move.state,
        "peer": move.peer,
        "address": move.address,
        "generation": move.generation,
        "started": move.started,
        "ended": move.ended,
        "waits": waits,
        "cause": move.cause,
        "text": move.text,
        "order": move.order.hex(),
        "transcript": move.transcript.hex(),
        "receipt": {"sent": move.sent.hex(), "received": move.received.hex(), "peer_key": move.peer_key.hex()},
    }
