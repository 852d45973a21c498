"""Recovery: a manager whose hardware TPM died or was cleared goes on with another one that nobody owns.

It takes the disk, the store key (which the recovery key's holder unwraps) and the authority's order. A new root key is
sealed to the new TPM; the old one is not needed. The anchor's write is the point of no return, each step before it can
be repeated: ``STATE/recovering`` holds the new keyslot under the old store key, so that nobody but a holder of that
can have put it there.

Post-condition: after success the disk belongs to this TPM and to no other. After a failure it is as it was, and asking
again continues. Nothing proves that the disk is the newest: what did prove it was the old TPM's anchor.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from manager_vm import crypto, provision
from manager_vm.crypto import Key
from manager_vm.errors import EvidenceError, IntegrityError, TrustError, UnsealError
from manager_vm.keys import approvals
from manager_vm.keys.anchor import NvAnchor
from manager_vm.keys.approvals import Found
from manager_vm.keys.hwtpm import auths, nv, ownership, sealing
from manager_vm.keys.hwtpm.connection import Connection, srk_name
from manager_vm.keys.keyslot import Keyslot
from manager_vm.server import recovery as changes
from manager_vm.server.journal import open_log
from manager_vm.server.reception import Offer
from manager_vm.store import atomic, sealed
from manager_vm.store.manifest import MAX_SIZE, Manifest
from manager_vm.store.marks import Recovered
from manager_vm.store.records import Contents
from manager_vm.store.sealed import Outside
from manager_vm.trust import approval, recovery
from manager_vm.trust.recovery import Order
from manager_vm.trust.signing import SigningKey, VerifyKey

log = logging.getLogger(__name__)

_BEGUN = "recovering"
_OLDER = "nothing proves that the disk was the newest: what was removed, revoked or moved away since may be back"
_CONTINUE = "a recovery was begun here and cut off; asking for the same again continues it"


@dataclass(frozen=True, slots=True)
class _Copy:
    path: Path
    data: bytes
    outside: Outside


class Waiting:
    """A manager that can be recovered here. ``why``: what keeps it from serving. Its key lives as long as it."""

    def __init__(self, state: Path, tpm: Connection, copy: _Copy, srk: bytes, why: str) -> None:
        self.why = why
        self._state = state
        self._tpm = tpm
        self._copy = copy
        self._srk = srk
        self._key = SigningKey.create()
        self._slot = Keyslot(state / "keyslot", tpm)

    @property
    def offer(self) -> Offer:
        """For the recovery key's holder."""
        said = self._copy.outside
        key = self._key.public.der
        return Offer(said.manager, said.owner, self._srk, said.serial, said.statement, said.stanza, key)

    def perform(self, ordered: bytes, more: Sequence[bytes], handover: bytes) -> None:
        """Recover; the next step is to open the manager, which unseals and caps. ``more``: approvals."""
        store = recovery.take_over(self._key, handover, self._copy.outside.manager, ordered)
        old = sealed.open_with(self._copy.data, store)  # from here on the manifest is believed
        authority = VerifyKey.from_der(old.authority)
        order = recovery.verify_order(ordered, authority)
        self._demand_fits(order, old)
        found = self._approvals(more, authority, order.revoked)
        data = self._begun(store) or self._begin(store, authority)
        root = self._slot.unseal(found.approvals, found.complaints, self._slot.parse(data))
        for each in more:
            if approval.verify(each, authority).number not in approval.numbers(order.revoked):
                approvals.deposit(self._state / "approvals", each, authority)
        authorizations = auths.derive(root, self._srk)
        ownership.take(self._tpm, authorizations)
        nv.revoke(self._tpm, authorizations, order.revoked)
        anchor = NvAnchor(self._tpm, authorizations)
        provision.demand_unwritten(anchor)
        self._settle()
        self._slot.keep(data)
        new = self._noted(changes.recovered(old, order, int(time.time())), order)
        Manifest.create(self._state, root, anchor, new)
        tidy(self._state)
        log.warning("RECOVERED: %s; authority %s ordered it: %s", _OLDER, authority.id, order.reason)

    def _demand_fits(self, order: Order, old: Contents) -> None:
        if order.manager != old.manager:
            raise EvidenceError(f"this order is for manager {order.manager[:16]}..., and this is {old.manager[:16]}...")
        if order.old != old.owner:
            raise EvidenceError(
                f"this order is for a manager of the TPM with SRK {order.old.hex()[:20]}..., and this one's was "
                f"{old.owner.hex()[:20]}...: it was recovered since, or never was there"
            )
        if order.new != self._srk:
            raise EvidenceError(
                f"this order leads to the TPM with SRK {order.new.hex()[:20]}..., and this one's is "
                f"{self._srk.hex()[:20]}...; have the authority order what 'status' shows"
            )

    def _approvals(self, more: Sequence[bytes], authority: VerifyKey, revoked: int) -> Found:
        """Those that are not revoked; UnsealError unless one is for what has booted."""
        found = approvals.load(self._state / "approvals", authority)
        known = [*found.approvals, *(approval.verify(each, authority) for each in more)]
        good = [each for each in known if not revoked >> each.number & 1]
        values = sealing.read_pcrs(self._tpm)
        if values not in [dict(each.pcrs) for each in good]:
            why = "revoked by this order" if values in [dict(each.pcrs) for each in known] else "not there"
            raise UnsealError(f"the approval of what has booted here is {why}; {provision.what_booted(self._tpm)}")
        return Found(good, found.complaints)

    def _begin(self, store: Key, authority: VerifyKey) -> bytes:
        """A new keyslot, on the disk before anything of the TPM is changed that could not be changed again."""
        _, data = self._slot.make(authority)
        atomic.write_file(self._state / _BEGUN, crypto.seal(store, data, self._place))
        return data

    def _begun(self, store: Key) -> bytes | None:
        """The keyslot of a recovery that was cut off, on this TPM."""
        found = atomic.read_file(self._state / _BEGUN, MAX_SIZE)
        try:
            return crypto.unseal(store, found or b"", self._place, "the recovery that was begun")
        except IntegrityError:
            return None

    @property
    def _place(self) -> bytes:
        return b"\0".join((b"vtpm-manager recovering", self._copy.outside.manager.encode(), self._srk))

    def _settle(self) -> None:
        """The copy that was opened is the manifest, also if its commit was cut off: manifest.pending is needed now."""
        final = self._state / "manifest"
        if self._copy.path != final:
            with atomic.store_errors(f"finish the last commit in {self._state}"):
                os.rename(self._copy.path, final)
                atomic.sync_directory(self._state)
            self._copy = replace(self._copy, path=final)

    def _noted(self, new: Contents, order: Order) -> Contents:
        """With the entry in the audit log that says so."""
        audit = open_log(self._state, new.audit, [])
        try:
            said = {"from": order.old.hex(), "to": order.new.hex(), "order": order.id.hex(), "reason": order.reason}
            return replace(new, audit=audit.append(("recovered", {**said, "serial": new.serial})))
        finally:
            audit.close()


def find(state: Path, tpm: Connection) -> Waiting | None:
    """Whether this disk waits to be recovered here: its keys are wrapped to somebody, its TPM was another one.

    None where the manager is to be opened as usual, or to be refused as usual. UnsealError for a TPM that somebody else
    owns.
    """
    copies = _copies(state)
    if nv.is_written(tpm) or not any(each.outside.stanza for each in copies):
        return None
    owned, begun = ownership.is_owned(tpm), (state / _BEGUN).exists()
    srk = srk_name(tpm) if owned else ownership.future_srk(tpm)
    # without the anchor nobody knows whether the commit of a manifest.pending was finished. To go on with it is right
    # in both cases: until its rename all that the copy before names is kept, and all that it names is there
    foreign = [each for each in copies if each.outside.owner not in (b"", srk)]
    copy = max(foreign, key=lambda each: each.outside.serial, default=None)
    if copy is None or not copy.outside.stanza:
        return None
    why = _why(Keyslot(state / "keyslot", tpm))
    if srk is None or (owned and not begun):
        raise UnsealError(f"{why}; and nothing is recovered on this one: it belongs to another manager; clear it first")
    return Waiting(
        state, tpm, copy, srk, f"{why}; 'vtpmctl recover' brings it here, with the recovery key and an order"
    )


def tidy(state: Path) -> None:
    """Remove what a finished recovery has left."""
    with atomic.store_errors(f"remove {state / _BEGUN}"):
        (state / _BEGUN).unlink(missing_ok=True)


def warning(mark: Recovered) -> str:
    """What ``status`` says of a recovery, for ever."""
    when = time.strftime("%Y-%m-%d", time.gmtime(mark.time))
    return f"recovered {when} from the platform with SRK {mark.old.hex()[:20]}...; {_OLDER}"


def _why(slot: Keyslot) -> str:
    try:
        slot.pin()
    except TrustError as error:
        return str(error)
    return _CONTINUE


def _copies(state: Path) -> list[_Copy]:
    """The copies of the manifest that can be read at all."""
    found = []
    for path in (state / "manifest", state / "manifest.pending"):
        data = atomic.read_file(path, MAX_SIZE) or b""
        with suppress(IntegrityError):
            found.append(_Copy(path, data, sealed.look(data)))
    return found
