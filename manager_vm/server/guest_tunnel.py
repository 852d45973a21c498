"""A key for the memory of a guest that moves together with its vTPM (MIGRATION.md, section 12; R2, R4, R5).

A conversation beside the move: the same order, the same agreement, in which both hardware TPMs quote. Each manager
hands the key to its own host, once. It changes nothing durable; a key that nobody takes is forgotten.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from manager_vm.crypto import Key
from manager_vm.errors import ConfigError, StateError, VtpmManagerError
from manager_vm.protocol import agreement
from manager_vm.server import move_rules
from manager_vm.server.admission import Incoming
from manager_vm.server.move_rules import Local, Side
from manager_vm.server.peer_link import PeerLink, Talk
from manager_vm.store.records import VtpmRecord
from manager_vm.vtpm.registry import Registry
from manager_vm.wire.admin import Request
from manager_vm.wire.migration import ID_SIZE, KeyKept, Offer

log = logging.getLogger(__name__)

LABEL = "vtpm-manager guest tunnel 1"
_USE, _TUNNEL = "use", "guest-tunnel"  # a feature in OFFER
_ANSWER = 60.0  # seconds for ACCEPT, and for the destination to keep the key
_CONFIRM = 60.0
_KEPT, _WAITS = 8, 120.0  # keys that hosts have not taken, at most; seconds that one waits


def is_asked(offer: Offer) -> bool:
    """Whether an OFFER is for this, and not for the move itself."""
    return f"{_USE}={_TUNNEL}" in offer.features.split("\n")  # their form is looked at behind the order


class Tunnels:
    """Thread-safe. ``host_link`` serves the hosts' two requests."""

    def __init__(self, local: Local, registry: Registry) -> None:
        self._local = local
        self._registry = registry
        self._keys: dict[str, tuple[Key, float]] = {}  # of vTPMs that are to come here, by uuid; until when
        self._lock = threading.Lock()

    def host_link(self, others: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """Who answers on the host link: these two verbs, and ``others`` all other requests."""
        verbs = {"guest_tunnel": self._asked, "guest_tunnel_take": self._taken}

        def perform(request: Request) -> Any:
            own = verbs.get(request.verb)
            return others(request) if own is None else own(request.args)

        return perform

    def agree(self, record: VtpmRecord, ordered: bytes, address: str) -> Key:
        """With the manager at ``address``, to which this order moves the vTPM. MigrationError as of a move."""
        order = move_rules.verify_order(self._local.manifest.contents, ordered)
        move_rules.demand_is_of(order, record, self._local.platform.name)
        side, move = Side(self._local, order.destination), os.urandom(ID_SIZE)
        with PeerLink.connect(address) as link:
            talk = None
            try:
                offered = side.offering(move, ordered, name=record.name, **{_USE: _TUNNEL})
                agreed = link.converse(agreement.offer(side, offered), _ANSWER)
                talk = Talk(link, agreed.session)
                talk.expect(KeyKept, _ANSWER)
                return talk.export(LABEL)
            except VtpmManagerError as error:
                (talk or link).refuse(move, error)
                raise

    def answer(self, side: Incoming, link: PeerLink, offer: Offer, known: Callable[[], None]) -> None:
        """The destination's side: what a move asks is asked here too. ``known``: its order is good."""
        talk = None
        try:
            agreed = link.converse(agreement.noting(agreement.accept(side, offer), known), _CONFIRM)
            talk = Talk(link, agreed.session)
            assert side.order is not None  # the conversation has verified it
            self._keep(side.order.vtpm, talk.export(LABEL))
            talk.say(KeyKept())
        except VtpmManagerError as error:
            (talk or link).refuse(offer.move, error)
            raise
        log.info("a guest comes with vTPM %s: the key of its memory waits for the host", side.order.vtpm)

    def take(self, vtpm: str) -> Key:
        """The key for the vTPM with this uuid, once: whoever asks again gets nothing."""
        with self._lock:
            found, until = self._keys.pop(vtpm, (None, 0.0))
        if found is None or time.monotonic() > until:
            raise StateError(f"no guest comes here with vTPM {vtpm[:80]}, or its key was taken already")
        return found

    def _keep(self, vtpm: str, key: Key) -> None:
        now = time.monotonic()
        with self._lock:
            waiting = {uuid: kept for uuid, kept in self._keys.items() if kept[1] > now and uuid != vtpm}
            if len(waiting) >= _KEPT:
                del waiting[next(iter(waiting))]
            self._keys = {**waiting, vtpm: (key, now + _WAITS)}

    # -- the host link --------------------------------------------------------------------------------------

    def _asked(self, args: dict[str, Any]) -> dict[str, Any]:
        """At the source: agree with the manager at ``to`` by ``order`` for vTPM ``name``."""
        name, ordered, to = args.get("name"), args.get("order"), args.get("to")
        if not isinstance(name, str) or not isinstance(ordered, bytes) or not isinstance(to, str):
            raise ConfigError("name a vTPM, an order of its group's authority, and the other manager's address")
        return {"tunnel": self.agree(self._registry.record(name), ordered, to).reveal()}

    def _taken(self, args: dict[str, Any]) -> dict[str, Any]:
        """At the destination: the same key, for ``vtpm`` (uuid)."""
        return {"tunnel": self.take(str(args.get("vtpm"))).reveal()}
