"""The receiver: a manager without vTPMs that makes its place for another one (RELOCATION.md, section 3).

Post-condition of each message: either its effect is durable and the answer was sent, or it can be asked again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from manager_vm.crypto import Key
from manager_vm.errors import EvidenceError, MigrationError, StateError, TakenError, VtpmManagerError
from manager_vm.keys import place as places
from manager_vm.keys.anchor import NvAnchor, Place
from manager_vm.keys.hwtpm import attest, nv
from manager_vm.keys.hwtpm.auths import Authorizations
from manager_vm.keys.place import Footing
from manager_vm.protocol import agreement, parts, relocation
from manager_vm.protocol.agreement import Agreed
from manager_vm.protocol.relocation import Effect, Event, Receiving, Word
from manager_vm.server import ledger, move_rules
from manager_vm.server import relocate_rules as rules
from manager_vm.server.move_rules import Entrance, Local
from manager_vm.server.peer_link import PeerLink, Talk
from manager_vm.store.records import Contents
from manager_vm.store.relocation import Expected, pack_place
from manager_vm.trust import policy, tpm_structures
from manager_vm.trust import relocation as trust
from manager_vm.trust.relocation import Order, Said
from manager_vm.wire import features
from manager_vm.wire.migration import Accept, Cause, Offer
from manager_vm.wire.relocation import TUNNEL, Adopt, Commit, Release, Told

log = logging.getLogger(__name__)

_CONFIRM = 60.0  # seconds for CONFIRM, and for what is wanted then
_EVENTS = {Adopt: Event.ADOPT, Commit: Event.COMMIT, Release: Event.RELEASE}
_NAMES = (*policy.anchor_names(policy.ANCHOR_INDEX), *policy.anchor_names(policy.OTHER_ANCHOR_INDEX))


class Coming(Entrance):
    """``protocol.agreement.Destination``: what a receiver decides about another manager."""

    def __init__(self, local: Local, turn: threading.Lock) -> None:
        super().__init__(local, turn)
        self.order: Order | None = None

    def admit(self, offer: Offer) -> Accept:
        """Order first; nothing here asks a TPM, a process or the disk."""
        contents, platform = self._local.manifest.contents, self._local.platform
        order = self.order = rules.verified(contents, offer.order)
        self._other = order.source
        if order.destination != platform.name:
            raise MigrationError(f"the order is for {order.destination!r}, and here is {platform.name!r}", "order")
        if offer.move.hex() not in contents.released:  # that word is kept for it, whatever this manager has become
            rules.demand_empty(contents, order)
        move_rules.demand_fits(features.parse(offer.features), features.parse(self._local.features()))
        return self.accepting(offer)


class Receiver:
    """Thread-safe. ``log``: the event log of this platform, b"" if there is none."""

    def __init__(self, local: Local, own: Footing, event_log: Callable[[], bytes]) -> None:
        self._local = local
        self._own = own
        self._event_log = event_log
        self._turn = threading.Lock()
        self._quote = threading.Lock()
        self._tunnel: tuple[str, Key] | None = None

    def offered(self, link: PeerLink, offer: Offer, known: Callable[[], None]) -> None:
        """A conversation. ``known``: the other side has shown a good order."""
        side, talk = Coming(self._local, self._quote), None
        try:
            agreed = link.converse(agreement.noting(agreement.accept(side, offer), known), _CONFIRM)
            talk = Talk(link, agreed.session)
            wanted = talk.expect_any((Adopt, Commit, Release), _CONFIRM)
            assert isinstance(wanted, Adopt | Commit | Release)
            with self._turn:
                self._answer(talk, side, agreed, wanted)
        except VtpmManagerError as error:
            (talk or link).refuse(offer.move, error)
            raise

    def tunnel(self, move: str) -> Key:
        """The key of the tunnel that this move uses, once: whoever asks again gets nothing."""
        with self._turn:
            found, self._tunnel = self._tunnel, None
            if found is None or found[0] != move:
                raise StateError("no tunnel of this move waits for its key: it was taken already, or never agreed on")
            return found[1]

    def release(self) -> None:
        """Give up the place, on an operator's word. StateError if the manager is here already."""
        with self._turn:
            expected = self._local.manifest.contents.expected
            if expected is None:
                raise StateError("no manager is expected here")
            self._given_up(expected)

    def _answer(self, talk: Talk, side: Coming, agreed: Agreed, wanted: Adopt | Commit | Release) -> None:
        contents, move = self._local.manifest.contents, agreed.offer.move.hex()
        expected = contents.expected
        if isinstance(wanted, Release) and move in contents.released:
            talk.say(Told(0, *contents.released[move]))
            return
        if isinstance(wanted, Adopt) and expected is not None and expected.id != move:
            self._given_up(expected)  # this ADOPT may be late: then its source has left for the place that is here
            expected = None
        step = relocation.receiver(Receiving.PREPARED if expected else None, _EVENTS[type(wanted)])
        if step is None or move in contents.released or (expected is not None and expected.id != move):
            raise MigrationError("no place was made for this move here, or not any more", Cause.POLICY.word)
        match step.effect, wanted, expected:
            case Effect.MAKE_PLACE, Adopt(), None:
                self._adopt(talk, side, agreed, wanted)
            case Effect.CLAIM, Commit(), Expected():
                talk.say(Told(1, *_pair(self._claim(expected, wanted))))
            case Effect.RELEASE, Release(), Expected():
                talk.say(Told(0, *_pair(self._given_up(expected))))
            case _:
                raise AssertionError(f"the table has another row: {step}")

    def _adopt(self, talk: Talk, side: Coming, agreed: Agreed, wanted: Adopt) -> None:
        contents, order, found = self._local.manifest.contents, side.order, side.peer
        assert order is not None and found is not None  # the conversation has verified both
        rules.demand_empty(contents, order)
        if wanted.revoked:
            nv.revoke(self._own.tpm, self._own.auths, wanted.revoked)
        made = places.make(self._own, contents, Key(wanted.root), self._event_log())
        expected = Expected(
            id=agreed.offer.move.hex(),
            manager=order.manager,
            peer=order.source,
            peer_ak=found.platform.ak.area,
            index=made.index,
            since=ledger.now(),
            secret=made.secret.reveal(),
        )
        self._local.manifest.commit(lambda c: rules.expecting(c, order, expected), moves=True)
        self._tunnel = (expected.id, agreed.session.export(TUNNEL))
        for part in parts.split(pack_place(made)):
            talk.say(part)
        log.warning("a place was made for manager %s of platform %s", order.manager[:16], order.source)

    def _claim(self, expected: Expected, wanted: Commit) -> Said:
        """For the source's disk: what stands in its anchor, as its own TPM says, stands in the place from now on."""
        said = Said(wanted.attested, wanted.signature)
        move, ak = bytes.fromhex(expected.id), tpm_structures.parse_public(expected.peer_ak)
        try:
            digest = trust.verify_word(said, Word.COMMIT, move, ak, _NAMES)
        except EvidenceError as error:
            raise MigrationError(str(error), Cause.TAMPERED.word) from None
        self._write_first(expected, digest, Key(wanted.secret))
        log.warning("manager %s is to be started here, from its disk", expected.manager[:16])
        return self._certified(expected, Word.CLAIMED)

    def _given_up(self, expected: Expected) -> Said:
        self._write_first(expected, trust.RELEASED, Key.random())
        said = self._certified(expected, Word.RELEASED)
        self._local.manifest.commit(lambda c: _released(c, expected, said), moves=True)
        log.warning("manager %s is not expected any more", expected.manager[:16])
        return said

    def _write_first(self, expected: Expected, digest: bytes, secret: Key) -> None:
        there = self._place(expected)
        try:
            Place(self._own.tpm, there).write(digest, secret)
        except TakenError:
            if NvAnchor(self._own.tpm, there).read()[0] != digest:
                raise MigrationError(
                    "the place is taken: the manager is here already, or was given up", Cause.REPLAYED.word
                ) from None

    def _certified(self, expected: Expected, word: Word) -> Said:
        qualifying = trust.qualifying(word, bytes.fromhex(expected.id))
        signed = attest.certify_nv(self._own.tpm, self._place(expected), qualifying)
        return Said(signed.attested, signed.signature)

    def _place(self, expected: Expected) -> Authorizations:
        return replace(self._own.auths, anchor=Key(expected.secret), index=expected.index)


def _released(contents: Contents, expected: Expected, said: Said) -> Contents:
    return replace(contents, expected=None, released={**contents.released, expected.id: _pair(said)})


def _pair(said: Said) -> tuple[bytes, bytes]:
    return said.attested, said.signature
