"""Who may move what where, as a manager sees it: the order, the platforms, what both sides can do (R1, R4)."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from manager_vm.crypto import Key
from manager_vm.errors import ConfigError, EvidenceError, MigrationError, TrustError, VtpmManagerError
from manager_vm.keys import evidence, identity
from manager_vm.keys.approvals import Images
from manager_vm.keys.evidence import Voucher
from manager_vm.server import groups
from manager_vm.store.final_state import VERSION as STATE_VERSION
from manager_vm.store.manifest import Manifest
from manager_vm.store.records import Contents, VtpmRecord
from manager_vm.trust import bundle, order, peer
from manager_vm.trust.order import Order
from manager_vm.trust.peer import Peer, Rules
from manager_vm.trust.platform import Platform
from manager_vm.trust.signing import SigningKey, VerifyKey
from manager_vm.wire import features
from manager_vm.wire.migration import NONCE_SIZE, VERSION, Accept, Cause, Offer


@dataclass(frozen=True, slots=True)
class Local:
    """What this manager has and knows. ``versions``: of "swtpm" and "libtpms"."""

    manifest: Manifest
    images: Images
    voucher: Voucher
    versions: Mapping[str, str]

    @property
    def platform(self) -> Platform:
        """Who we are; EvidenceError before the authority has enrolled us."""
        return identity.verified(self.manifest.contents)

    def features(self, **more: str) -> str:
        """For the other side."""
        fixed = {"profile": "null", "state": str(STATE_VERSION)}
        return features.pack({**fixed, **self.versions, **more})


class Side:
    """One side of one move (``protocol.agreement.Us``). ``peer`` is known once its evidence was verified."""

    def __init__(self, local: Local, other: str) -> None:
        self.share = SigningKey.create()
        self.key = SigningKey.create()  # signs this side's words of the hand-over
        self.peer: Peer | None = None
        self._local = local
        self._other = other

    def offering(self, move: bytes, ordered: bytes, *, listens: str = "", **more: str) -> Offer:
        """OFFER of this move by this order. ``more``: features beside those that every manager has."""
        return Offer(
            lowest=VERSION,
            highest=VERSION,
            move=move,
            order=ordered,
            share=self.share.public.uncompressed,
            nonce=os.urandom(NONCE_SIZE),
            move_key=self.key.public.uncompressed,
            features=self._local.features(**more),
            listens=listens,
        )

    def evidence(self, binding: bytes) -> bytes:
        """Of our platform: the hardware TPM quotes."""
        try:
            return bundle.pack_host(evidence.host_evidence(self._local.voucher, binding))
        except VtpmManagerError as error:
            raise MigrationError(f"our platform cannot vouch for itself: {error}", Cause.FAULT.word) from error

    def verify(self, evidence: bytes, binding: bytes) -> None:
        """That of the platform which the order names."""
        contents = self._local.manifest.contents
        revoked = {each.ak for each in contents.revoked_platforms if each.ak}
        authority = VerifyKey.from_der(contents.authority)
        rules = Rules(authority, self._local.images.is_revoked, lambda ak: ak in revoked)
        try:
            self.peer = peer.verify(evidence, binding, self._other, rules)
        except TrustError as error:
            raise MigrationError(str(error), Cause.EVIDENCE.word) from None
        self.demand_level(self._local.platform.level, self.peer.platform.level)

    def demand_level(self, ours: int, theirs: int) -> None:
        """MigrationError (policy) if the vTPM would go down in trust. Here: it goes there."""
        demand_no_descent(ours, theirs)

    def agree(self, share: bytes) -> Key:
        """ECDH."""
        try:
            return self.share.agree(VerifyKey.from_point(share))
        except EvidenceError as error:
            raise MigrationError(str(error), Cause.TAMPERED.word) from None


class Entrance(Side):
    """The destination's side of one move. ``turn``: whoever has it asks the hardware TPM for a quote."""

    def __init__(self, local: Local, turn: threading.Lock) -> None:
        super().__init__(local, "")
        self._turn = turn

    def accepting(self, offer: Offer) -> Accept:
        """ACCEPT, without evidence yet."""
        return Accept(
            version=VERSION,
            move=offer.move,
            share=self.share.public.uncompressed,
            nonce=os.urandom(NONCE_SIZE),
            move_key=self.key.public.uncompressed,
            features=self._local.features(),
            evidence=b"",
        )

    def demand_level(self, ours: int, theirs: int) -> None:
        """It comes here."""
        demand_no_descent(theirs, ours)

    def evidence(self, binding: bytes) -> bytes:
        """One at a time: a guest's question, and a commit, must not wait for many."""
        with self._turn:
            return super().evidence(binding)


def verify_order(contents: Contents, ordered: bytes) -> Order:
    """The order, by the authority of its group at this manager; MigrationError (order) otherwise."""
    try:
        return order.verify(ordered, lambda group: groups.authority(contents, group))
    except (EvidenceError, ConfigError) as error:
        raise MigrationError(f"the order is not good here: {error}", Cause.ORDER.word) from None


def demand_is_of(order: Order, record: VtpmRecord, platform: str) -> None:
    """MigrationError (order) unless the order is for this vTPM as it is now, at the platform of this name."""
    wrong = [
        f"{what} {ordered!r}, and it is {here!r}"
        for what, ordered, here in (
            ("uuid", order.vtpm, record.uuid),
            ("generation", order.generation, record.generation),
            ("group", order.group, record.group),
            ("source", order.source, platform),
        )
        if ordered != here
    ]
    if wrong:
        raise MigrationError(f"the order is for {'; '.join(wrong)}", Cause.ORDER.word)


def demand_fits(source: Mapping[str, str], destination: Mapping[str, str]) -> None:
    """Whether a vTPM with the features of ``source`` can be at ``destination``; MigrationError (version)."""
    for key in ("state", "profile"):
        if source.get(key) != destination.get(key):
            raise MigrationError(_unlike(key, source, destination), Cause.VERSION.word)
    for key in ("swtpm", "libtpms"):
        if features.version(destination.get(key, "")) < features.version(source.get(key, "")):
            raise MigrationError(_unlike(key, source, destination), Cause.VERSION.word)


def demand_no_descent(source: int, destination: int) -> None:
    """MigrationError (policy) if a vTPM would move to a platform that the authority trusts less."""
    if destination < source:
        levels = f"{source} at the source and {destination} at the destination"
        raise MigrationError(f"the trust level is {levels}; no vTPM goes down", Cause.POLICY.word)


def _unlike(key: str, source: Mapping[str, str], destination: Mapping[str, str]) -> str:
    return f"{key} is {source.get(key)!r} at the source and {destination.get(key)!r} at the destination"
