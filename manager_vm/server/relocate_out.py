"""The manager that moves: at its source, and where it wakes up (RELOCATION.md, sections 3 and 4).

Post-condition of ``freeze``: either it serves as before, or it has left and serves nothing until a word of the
destination's hardware TPM leads on: CLAIMED (``settle``), RELEASED (``take_back``), or its own ``claim`` there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, Protocol

from manager_vm import systemd
from manager_vm.crypto import Key
from manager_vm.errors import (
    ConfigError,
    EvidenceError,
    MigrationError,
    StateError,
    TakenError,
    TrustError,
    VtpmManagerError,
)
from manager_vm.keys import approvals, keyslot
from manager_vm.keys import place as places
from manager_vm.keys.anchor import NvAnchor
from manager_vm.keys.anchor import Place as Unwritten
from manager_vm.keys.hwtpm import attest, nv, ownership
from manager_vm.keys.hwtpm.connection import srk_name
from manager_vm.keys.keyslot import Keyslot
from manager_vm.keys.place import Footing
from manager_vm.protocol import agreement, relocation
from manager_vm.protocol.parts import Assembly
from manager_vm.protocol.relocation import Effect, Event, Leaving, Step, Word
from manager_vm.server import ledger
from manager_vm.server import relocate_rules as rules
from manager_vm.server.move_rules import Local, Side
from manager_vm.server.peer_link import PeerLink, Talk
from manager_vm.store import atomic
from manager_vm.store.relocation import Departure, Place, pack_place, unpack_place
from manager_vm.trust import policy, tpm_structures
from manager_vm.trust import relocation as trust
from manager_vm.trust.relocation import Said
from manager_vm.wire.migration import ID_SIZE, Cause, StatePart
from manager_vm.wire.relocation import TUNNEL, Adopt, Commit, Release, Told

log = logging.getLogger(__name__)

_ANSWER = 60.0  # seconds: the receiver's TPM quotes, and makes a keyslot


class Serving(Protocol):
    """What stops while the manager moves. A manager that has left, and only waits for a word, has nothing to stop."""

    def stop(self, *, park: bool) -> None:
        """No vTPM executes or changes any more; ``park``: their processes end, in order."""

    def go_on(self, log: bytes | None = None) -> None:
        """All of it again. ``log``: the event log of the platform that is ours from now on, None: it is the same."""


class Traveller:
    """Not thread-safe: one request at a time (``relocating``)."""

    def __init__(self, local: Local, own: Footing, state: Path, serving: Serving) -> None:
        self._local = local
        self._own = own
        self._state = state
        self._serving = serving
        self.wiped = False  # another copy is the manager: this one must end
        self.settled = False  # the destination has it, this platform is given up

    @property
    def departure(self) -> Departure | None:
        """The move that is not over."""
        return self._local.manifest.contents.departure

    # -- before the point of no return ----------------------------------------------------------------------

    def begin(self, ordered: bytes, address: str) -> tuple[str, Key]:
        """Agree with the receiver at ``address``; it makes a place. (id of the move, key of its tunnel)."""
        self._step(Event.AGREE)
        order = rules.demand_ordered(self._local.manifest.contents, ordered, self._local.platform.name)
        move, side = os.urandom(ID_SIZE), Side(self._local, order.destination)
        with self._talk(side, move, ordered, address) as talk:
            talk.say(Adopt(self._own.root.reveal(), nv.revoked(self._own.tpm)))
            place, tunnel = _place(talk), talk.export(TUNNEL)
        assert side.peer is not None  # the conversation has verified it
        slot = Keyslot(self._state / keyslot.NEXT, self._own.tpm)
        contents, parsed = self._local.manifest.contents, slot.parse(place.keyslot)
        rules.demand_fits(contents, self._own, parsed, place, side.peer.platform)
        slot.keep(place.keyslot)
        departure = Departure(
            id=move.hex(),
            state=Leaving.AGREED,
            peer=order.destination,
            peer_ak=place.ak,
            address=address,
            order=order.digest,
            home=contents.owner,
            since=ledger.now(),
            ordered=ordered,
            place=pack_place(place),
        )
        self._local.manifest.commit(lambda c: replace(rules.at_rest(c), departure=departure), moves=True)
        log.warning("agreed with platform %s that this manager moves there", order.destination)
        return departure.id, tunnel

    def give_up(self) -> None:
        """Before the point of no return: the manager stays. The receiver is told if it can be."""
        departure = self._departing(Event.GIVE_UP, Effect.NOTHING)
        self._local.manifest.commit(lambda c: replace(c, departure=None), moves=True)
        self._forget_next()
        with suppress(MigrationError, ConfigError):
            self._asked(departure, Release())

    # -- the point of no return and behind it -----------------------------------------------------------------

    def freeze(self, *, park: bool) -> None:
        """Serve nothing any more, and commit that the destination is the owner: the point of no return."""
        departure = self._departing(Event.FREEZE, Effect.CERTIFY)
        place = unpack_place(departure.place)
        try:
            self._serving.stop(park=park)
            left = replace(departure, state=Leaving.LEFT)
            self._local.manifest.commit(lambda c: rules.left(c, left, place, unwired=park), moves=True)
        except BaseException:
            self._serving.go_on()
            raise
        log.warning("LEFT for platform %s: nothing is served here any more", departure.peer)

    def hand_over(self) -> Said:
        """Have the receiver claim for our disk: its word CLAIMED."""
        departure = self._departing(Event.CERTIFY, Effect.CERTIFY)
        digest, secret = self._newest()
        move = bytes.fromhex(departure.id)
        signed = attest.certify_nv(self._own.tpm, self._own.auths, trust.qualifying(Word.COMMIT, move))
        told = self._asked(departure, Commit(signed.attested, signed.signature, secret.reveal()))
        found = self._verified(told, Word.CLAIMED, departure)
        if found != digest:
            raise MigrationError("the receiver has claimed for another manifest", Cause.TAMPERED.word)
        return Said(told.attested, told.signature)

    def take_back(self) -> None:
        """Have the receiver give its place up, and go on here."""
        departure = self._departing(Event.RELEASED, Effect.SERVE)
        self._verified(self._asked(departure, Release()), Word.RELEASED, departure)
        self._newest()
        self._local.manifest.commit(lambda c: replace(c, owner=departure.home, departure=None), moves=True)
        self._forget_next()
        self._serving.go_on()
        log.warning("taken back from platform %s: this manager serves here again", departure.peer)

    def settle(self, said: Said) -> None:
        """The destination has the manager: give this platform's TPM up. No copy of the disk is anything after that."""
        departure = self._departing(Event.CLAIMED, Effect.GIVE_UP_TPM)
        self._verified(Told(1, said.attested, said.signature), Word.CLAIMED, departure)
        ownership.leave(self._own.tpm, self._own.auths)
        systemd.forget(systemd.ROOT_KEY)
        self.settled = True
        log.warning("this manager is at platform %s now; this hardware TPM is free", departure.peer)

    # -- at the destination -----------------------------------------------------------------------------------

    def claim(self) -> None:
        """Woken up in memory: be the manager here, if nobody else is. TakenError, and the end, for a second copy."""
        departure = self.departure
        if departure is None or departure.state is not Leaving.LEFT:
            raise StateError("this manager has not left: there is nothing to claim")
        place = unpack_place(departure.place)
        if srk_name(self._own.tpm) != place.srk:
            self._wipe(f"this is not platform {departure.peer}, for which this manager has left")
        self._stand_on(Keyslot(self._state / keyslot.NEXT, self._own.tpm))
        self._own.auths.become(places.found(place))
        tpm, auths = self._own.tpm, self._own.auths
        try:
            self._local.manifest.claim(Unwritten(tpm, auths), NvAnchor(tpm, auths), lambda c: places.arrived(c, place))
        except TrustError as error:
            self._wipe(str(error))
        self._serving.go_on(place.log)
        log.warning("claimed: this manager is at platform %s now", departure.peer)

    def _stand_on(self, slot: Keyslot) -> None:
        """Talk to the TPM of this keyslot; what the receiver's boot did not cap is capped now."""
        found = approvals.load(self._state / "approvals", slot.read().authority)
        slot.retained(self._own.root.reveal(), found.approvals)

    def claimed(self) -> Said:
        """That this manager is here, as its source must hear: also again, as long as it does not move further."""
        contents = self._local.manifest.contents
        if not contents.came:
            raise StateError("this manager has not come from another platform")
        rules.settle_in(self._state, self._own, contents.owner)
        qualifying = trust.qualifying(Word.CLAIMED, bytes.fromhex(contents.came))
        signed = attest.certify_nv(self._own.tpm, self._own.auths, qualifying)
        return Said(signed.attested, signed.signature)

    def _newest(self) -> tuple[bytes, Key]:
        """What the anchor at the source says: as long as it is what we have left with, nobody else goes on here."""
        digest, secret = self._local.manifest.anchored()
        if digest != self._local.manifest.digest:
            self._wipe("another copy of this manager has gone on here")
        return digest, secret

    def _wipe(self, why: str) -> NoReturn:
        """End for certain: systemd forgets the root key, and the PCRs do not give it again before a reset."""
        systemd.forget(systemd.ROOT_KEY)
        self.wiped = True
        log.critical("REFUSED: %s; this copy ends, its keys are wiped", why)
        raise TakenError(f"{why}: this copy ends, its keys are wiped")

    # -- parts --------------------------------------------------------------------------------------------------

    def _step(self, event: Event) -> Step:
        contents = self._local.manifest.contents
        state = contents.departure.state if contents.departure else None
        step = relocation.source(state, event)
        if step is None or (contents.expected is not None and event is Event.AGREE):
            told = f"it is {state}; 'relocate --abort' leads back" if state else "no move of it was agreed on"
            raise StateError(f"this manager cannot {event.name.lower().replace('_', ' ')} now: {told}")
        return step

    def _departing(self, event: Event, effect: Effect) -> Departure:
        """The move that ``event`` is about. ``effect``: what the caller does then; the table says the same."""
        step, departure = self._step(event), self.departure
        assert departure is not None and step.effect is effect, "the table has another row"
        return departure

    def _asked(self, departure: Departure, message: Commit | Release) -> Told:
        side = Side(self._local, departure.peer)
        with self._talk(side, bytes.fromhex(departure.id), departure.ordered, departure.address) as talk:
            talk.say(message)
            return talk.expect(Told, _ANSWER)

    @contextmanager
    def _talk(self, side: Side, move: bytes, ordered: bytes, address: str) -> Iterator[Talk]:
        """A conversation with the receiver, up to its keys: both sides have attested each other."""
        offer = side.offering(move, ordered)
        with PeerLink.connect(address) as link:
            try:
                agreed = link.converse(agreement.offer(side, offer), _ANSWER)
            except VtpmManagerError as error:
                link.refuse(move, error)
                raise
            talk = Talk(link, agreed.session)
            try:
                yield talk
            except VtpmManagerError as error:
                talk.refuse(move, error)
                raise

    def _verified(self, told: Told, word: Word, departure: Departure) -> bytes:
        place, ak = unpack_place(departure.place), tpm_structures.parse_public(departure.peer_ak)
        said, move = Said(told.attested, told.signature), bytes.fromhex(departure.id)
        try:
            return trust.verify_word(said, word, move, ak, [policy.place_name(place.index)])
        except EvidenceError as error:
            raise MigrationError(str(error), Cause.TAMPERED.word) from None

    def _forget_next(self) -> None:
        with atomic.store_errors("remove the keyslot of a platform that is not ours"):
            (self._state / keyslot.NEXT).unlink(missing_ok=True)


def _place(talk: Talk) -> Place:
    assembly, data = Assembly(), None
    while data is None:
        data = assembly.add(talk.expect(StatePart, _ANSWER))
    return unpack_place(data)
