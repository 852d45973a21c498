"""What the destination decides about an offer: order first, then policy, generation, features, room (MIGRATION.md)."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack

from manager_vm.errors import MigrationError
from manager_vm.server import move_rules, standing
from manager_vm.server.move_rules import Entrance, Local
from manager_vm.store import moves
from manager_vm.store.records import Contents
from manager_vm.trust import standing as trust
from manager_vm.trust.order import Order
from manager_vm.wire import features
from manager_vm.wire.migration import Accept, Cause, Offer

_MOVES, _OF_ONE = 4, 2  # at once; of one source


class Room:
    """Who is counted where; MigrationError (busy) for who is one too many: of all, and of one source."""

    def __init__(self, most: int = _MOVES, of_one: int = _OF_ONE) -> None:
        self._most = most
        self._of_one = of_one
        self._lock = threading.Lock()
        self._sources: Counter[str] = Counter()

    def enter(self, source: str) -> None:
        """A move of this source begins."""
        with self._lock:
            if self._sources.total() >= self._most or self._sources[source] >= self._of_one:
                raise MigrationError("too many moves to this manager at once; try again", Cause.BUSY.word)
            self._sources[source] += 1

    def leave(self, source: str) -> None:
        """It is over."""
        with self._lock:
            self._sources[source] -= 1


class Incoming(Entrance):
    """``protocol.agreement.Destination``: what this manager decides about an offer."""

    def __init__(self, local: Local, room: Room, turn: threading.Lock, held: ExitStack) -> None:
        super().__init__(local, turn)
        self.order: Order | None = None
        self.name = ""
        self._room = room
        self._held = held

    def admit(self, offer: Offer) -> Accept:
        """Order first; then policy, generation, features, room. Nothing here asks a TPM, a process or the disk."""
        contents, platform = self._local.manifest.contents, self._local.platform
        theirs = features.parse(offer.features)
        if trust.is_standing(offer.order):
            order = self.order = standing.as_order(contents, offer.order, theirs, platform.name)
        else:
            order = self.order = move_rules.verify_order(contents, offer.order)
        self._other = order.source
        if order.destination != platform.name:
            raise MigrationError(f"the order is for {order.destination!r}, and here is {platform.name!r}", "order")
        _demand_new(contents, order)
        move_rules.demand_fits(theirs, features.parse(self._local.features()))
        self.name = theirs.get("name", "")
        self._room.enter(order.source)
        self._held.callback(self._room.leave, order.source)
        return self.accepting(offer)


def _demand_new(contents: Contents, order: Order) -> None:
    """MigrationError (replayed, policy) for a vTPM that is here, or that has come further already."""
    if order.vtpm in contents.vtpms:
        raise MigrationError("this vTPM is at this manager already", Cause.REPLAYED.word)
    if order.generation + 1 <= moves.newest(contents, order.vtpm):
        raise MigrationError("this order was used already: the vTPM has come further since", Cause.REPLAYED.word)
