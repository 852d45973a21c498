"""What is agreed before a VM comes, so that its switch-over pays for the state alone (MIGRATION.md, section 13).

While a hypervisor copies a VM to here its vTPM's manager and this one agree, each attested, and wait for the ticket. An
agreement is a minute old at most: it is made anew until the VM has come, or nobody waits for it any more. Who has the
vTPM nobody knows before the ticket: all platforms of the standing order are asked whose address an earlier move has
told. Where nothing was agreed on in time the ticket leads to its manager as ever.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass

from manager_vm.errors import MigrationError, RemoteProtocolError, VtpmManagerError
from manager_vm.protocol import agreement
from manager_vm.protocol.lifecycle import State
from manager_vm.server import standing
from manager_vm.server.admission import Room
from manager_vm.server.move_rules import Local
from manager_vm.server.peer_link import PeerLink
from manager_vm.server.taking import Coming, Taking
from manager_vm.store.records import Contents
from manager_vm.wire.migration import Ahead as Ask
from manager_vm.wire.migration import Offer, Refuse
from manager_vm.wire.ticket import Ticket

log = logging.getLogger(__name__)

MOST = 16  # VMs that are waited for at once
_ANSWER = 20.0
_FRESH = 45.0  # seconds; the other side waits for 60
_PAUSE = 2.0  # seconds before those who refused are asked again
_LONGEST = 600.0  # seconds for which a VM is waited for: QEMU copies that long, or somebody has forgotten it


@dataclass(frozen=True, slots=True)
class Waiting:
    """An agreement that waits for a ticket. Whoever has it ends ``held``."""

    coming: Coming
    held: ExitStack

    def fits(self, ticket: Ticket) -> bool:
        """Whether the ticket is of the vTPM, and of the manager, that it was made for."""
        order = self.coming.side.order
        found = (order.vtpm, order.generation, order.source) if order is not None else None
        return found == (ticket.vtpm, ticket.generation, ticket.platform)


class Expected:
    """One VM that is waited for. ``idle``: no conversation is under way; ``link``: of the one that is."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.idle = threading.Event()
        self.link: PeerLink | None = None
        self.waiting: Waiting | None = None


class Ahead:
    """Thread-safe. ``listens``: the address of our own listener, or ""."""

    def __init__(self, local: Local, taking: Taking, listens: str) -> None:
        self._local = local
        self._taking = taking
        self._listens = listens
        self._room = Room(MOST, MOST)
        self._lock = threading.Lock()
        self._expected: dict[str, Expected] = {}
        self._threads: set[threading.Thread] = set()

    def expect(self, vm: str) -> None:
        """A VM with this UUID may come soon."""
        with self._lock:
            if vm in self._expected or len(self._threads) >= MOST:
                return
            found = self._expected[vm] = Expected()
            thread = threading.Thread(target=self._run, args=(vm, found), name=f"ahead {vm}", daemon=True)
            self._threads.add(thread)
            thread.start()

    def take(self, ticket: Ticket) -> Waiting | None:
        """What was agreed on for this ticket's vTPM, None if nothing was. The VM is not waited for any more.

        A conversation that is under way is let come to its end: a new one would take longer, and find no room.
        """
        with self._lock:
            found = self._expected.get(ticket.vm)
        if found is not None:
            found.idle.wait(_ANSWER)
        waiting = self._end(ticket.vm)
        if waiting is not None and not waiting.fits(ticket):
            waiting.held.close()
            return None
        return waiting

    def forget(self, vm: str) -> None:
        """It does not come, or has come."""
        waiting = self._end(vm)
        if waiting is not None:
            waiting.held.close()

    def close(self) -> None:
        """Nobody is waited for any more."""
        with self._lock:
            vms, threads = list(self._expected), list(self._threads)
        for vm in vms:
            self.forget(vm)
        for thread in threads:
            thread.join()

    def _end(self, vm: str) -> Waiting | None:
        with self._lock:
            found = self._expected.pop(vm, None)
            if found is None:
                return None
            found.over.set()
            waiting, found.waiting = found.waiting, None
            if waiting is None and found.link is not None:
                found.link.cut()
        return waiting

    def _run(self, vm: str, found: Expected) -> None:
        until, pause = time.monotonic() + _LONGEST, _PAUSE
        try:
            while not found.over.is_set() and time.monotonic() < until and self._may_come(vm):
                agreed = self._agreed(vm, found)
                found.over.wait(_FRESH if agreed else pause)
                pause = _PAUSE if agreed else min(2 * pause, _FRESH)
        except VtpmManagerError as error:  # not enrolled, for instance: the ticket's own way says so
            log.info("nothing is agreed on before VM %s comes: %s", vm, error)
        finally:
            self._leave(vm, found)

    def _leave(self, vm: str, found: Expected) -> None:
        with self._lock:
            self._threads.discard(threading.current_thread())
            if self._expected.get(vm) is found:
                del self._expected[vm]
            waiting, found.waiting = found.waiting, None
        found.idle.set()
        if waiting is not None:
            waiting.held.close()

    def _may_come(self, vm: str) -> bool:
        """Whether it has a standing order, and no vTPM here."""
        contents = self._local.manifest.contents
        here = any(record.vm == vm and record.state is not State.GONE for record in contents.vtpms.values())
        return not here and standing.current_of(contents, vm) is not None

    def _agreed(self, vm: str, found: Expected) -> bool:
        """Make an agreement in place of the one before, with the first of those who may have the vTPM and answer."""
        contents, platform = self._local.manifest.contents, self._local.platform.name
        order = standing.current_of(contents, vm)
        assert order is not None  # ``_may_come``
        ask = Ask(vm, order.digest, platform, self._listens)
        found.idle.clear()
        try:
            self._put(found, None)
            for address in _addresses(contents, [each for each in order.platforms if each != platform]):
                try:
                    self._put(found, self._conversation(ask, address, found))
                    return True
                except (MigrationError, RemoteProtocolError) as error:
                    log.debug("nothing is agreed on with %s before VM %s comes: %s", address, vm, error)
            return False
        finally:
            found.link = None
            found.idle.set()

    def _put(self, found: Expected, new: Waiting | None) -> None:
        with self._lock:
            old, kept = found.waiting, not found.over.is_set()
            found.waiting = new if kept else None
        for each in (old, None if kept else new):
            if each is not None:
                each.held.close()

    def _conversation(self, ask: Ask, address: str, found: Expected) -> Waiting:
        with ExitStack() as held:
            link = found.link = held.enter_context(PeerLink.connect(address))
            link.send(ask)
            message = link.receive(_ANSWER)
            if isinstance(message, Refuse):
                raise agreement.refused(message)
            if not isinstance(message, Offer):
                raise RemoteProtocolError(f"the other end answered with {type(message).__name__}, not with an OFFER")
            return Waiting(self._taking.agree(link, message, held, room=self._room), held.pop_all())


def _addresses(contents: Contents, platforms: list[str]) -> list[str]:
    """Where the managers of these platforms were met last."""
    found = {move.peer: move.address for move in contents.moves.values() if move.address}
    return [found[each] for each in platforms if each in found]
