"""Provisioning: from a hardware TPM that nobody owns and an empty state disk to the first anchored manifest.

It happens once, by whoever comes first. The root key is sealed and on the disk before the TPM's authorizations change,
and each step can be repeated, so a provisioning that was cut off is continued by asking again with the same authority.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from manager_vm.errors import ConfigError, RollbackError, StateError, TrustError, UnsealError
from manager_vm.keys import approvals
from manager_vm.keys.anchor import NvAnchor
from manager_vm.keys.ek_ca import EkCa
from manager_vm.keys.enrolment import Enrolment
from manager_vm.keys.hwtpm import auths, nv, ownership, sealing
from manager_vm.keys.hwtpm.connection import Connection
from manager_vm.keys.keyslot import Keyslot, RootKey
from manager_vm.server import provision as changes
from manager_vm.server import recovery
from manager_vm.server.reception import Order
from manager_vm.store.manifest import Manifest
from manager_vm.store.records import Contents
from manager_vm.trust import approval, local
from manager_vm.trust.signing import VerifyKey

log = logging.getLogger(__name__)

_LOCAL_POOL = 8  # signing keys of a manager that enrols itself when it starts


def is_done(state: Path, tpm: Connection) -> bool:
    """Whether this state disk has a manager. Once the anchor is written, or a manifest was, there is no way back."""
    slot = Keyslot(state / "keyslot", tpm)
    if (state / "manifest").exists() or (slot.exists() and nv.is_written(tpm)):
        return True
    if not slot.exists() and any(any((state / part).iterdir()) for part in ("blobs", "runs")):
        raise RollbackError(f"{state} holds vTPMs but no keyslot and no manifest; restore the newest state disk")
    return False


def perform(state: Path, tpm: Connection, order: Order) -> None:
    """Make the manager of this state disk; the next step is to open it, which unseals and caps."""
    if is_done(state, tpm):
        raise StateError("this manager is provisioned already; its operators are changed with 'operator add'")
    authority = VerifyKey.from_der(order.authority)
    found = [approval.verify(data, authority) for data in order.approvals]
    if sealing.read_pcrs(tpm) not in [dict(each.pcrs) for each in found]:
        raise UnsealError("none of these approvals is for what has booted here; " + what_booted(tpm))
    ca = EkCa.create()
    first = Contents(serial=1, ca_certificate=ca.certificate, ca_key=ca.private_bytes())
    first = changes.provision(first, order.authority, list(order.operators))  # refused before the TPM is changed
    if order.recovery:
        first = recovery.set_recipient(first, order.recovery)
    slot = Keyslot(state / "keyslot", tpm)
    root = _root_key(slot, authority, found)
    srk = slot.read().srk
    for data in order.approvals:
        approvals.deposit(state / "approvals", data, authority)
    authorizations = auths.derive(root, srk)
    ownership.take(tpm, authorizations)
    anchor = NvAnchor(tpm, authorizations)
    demand_unwritten(anchor)
    Manifest.create(state, root, anchor, replace(first, owner=srk))
    changes.announce(first)


def by_local_authority(tpm: Connection, directory: Path) -> Order:
    """What ``dev`` is provisioned with: the authority of this machine, made if there is none, approves what runs."""
    found = local.open_or_make(directory)
    return Order(found.public.der, [found.enrolment], [found.approve("dev", sealing.read_pcrs(tpm))])


def enrol_by_local_authority(enrolment: Enrolment, directory: Path, contents: Contents, vendor: Path) -> None:
    """What ``dev`` is enrolled with: evidence, challenge and answer like everybody's, a small pool of signing keys.

    ConfigError if another authority than that of this machine has provisioned the manager.
    """
    found = local.open_or_make(directory)
    if found.public.der != contents.authority:
        raise ConfigError(f"its authority is not the one in {directory}")
    found.enrol(enrolment, vendor, keys=_LOCAL_POOL)


def _root_key(slot: Keyslot, authority: VerifyKey, found: Sequence[approval.Approval]) -> RootKey:
    """A new one, or that of a provisioning which was cut off."""
    if not slot.exists():
        return slot.create(authority)
    if slot.read().authority.id != authority.id:
        raise TrustError("a provisioning by another authority was begun here; use that one, or an empty state disk")
    return slot.unseal(found)


def demand_unwritten(anchor: NvAnchor) -> None:
    """StateError for an anchor that was written: what it says is never given up."""
    try:
        anchor.read()
    except RollbackError:
        return
    raise StateError("the hardware TPM holds an anchor already: this manager is provisioned")


def what_booted(tpm: Connection) -> str:
    """The PCRs that approvals bind, for a message."""
    return ", ".join(f"PCR {pcr} is {value.hex()}" for pcr, value in sealing.read_pcrs(tpm).items())
