"""Recovery: to whom a manager's keys are wrapped, the order to use that, and the two messages that carry keys.

The authority names the recipient, so that no admin alone can have the keys wrapped to himself; and it orders each use
for one manager, from one hardware TPM to another. A TPM that was cleared has another SRK, so an order serves once.

| message | wrapped to | plain | associated data, parts with NUL between them |
|---|---|---|---|
| stanza | the recipient, anew in each commit | root key, store key | "vtpm-manager recovery stanza", manager id |
| handover | the waiting manager's key | store key | "vtpm-manager recovery handover", manager id, order id |
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from manager_vm.crypto import KEY_SIZE, Key
from manager_vm.errors import ConfigError, EvidenceError, IntegrityError
from manager_vm.trust import ecies, envelope, operator
from manager_vm.trust.signing import SigningKey, VerifyKey

RECIPIENT = "recovery-recipient"
ORDER = "recovery"
_MANAGER = re.compile(r"[0-9a-f]{64}")
_SRK = re.compile(r"000b[0-9a-f]{64}")  # a Name with SHA-256
_BITS = re.compile(r"[0-9a-f]{16}")
_MAX_TEXT = 200
_STANZA, _HANDOVER = b"vtpm-manager recovery stanza", b"vtpm-manager recovery handover"


@dataclass(frozen=True, slots=True)
class Recipient:
    """To whom keys are wrapped. Made by ``verify_recipient`` only. ``serial`` grows with each that is named."""

    key: VerifyKey
    serial: int


@dataclass(frozen=True, slots=True)
class Order:
    """``manager`` goes from the TPM whose SRK has the Name ``old`` to that with ``new``. Made by ``verify_order`` only.

    ``revoked``: approvals that the authority has voided, one bit each: the old TPM's bits went with it. ``id``: SHA-256
    of what was signed, which names this order whatever its signature looks like.
    """

    manager: str
    old: bytes
    new: bytes
    revoked: int
    reason: str
    serial: int
    id: bytes


def name_recipient(key: VerifyKey, serial: int, authority: SigningKey) -> bytes:
    """A signed statement: managers wrap their keys to ``key``."""
    return envelope.sign(RECIPIENT, {"key": key.der.hex(), "serial": serial}, authority)


def verify_recipient(data: bytes, authority: VerifyKey) -> Recipient:
    """The recipient that ``authority`` named; EvidenceError otherwise."""
    body, _ = envelope.verify(RECIPIENT, data, [authority])
    serial = body.get("serial")
    try:
        der = bytes.fromhex(body["key"])
    except (KeyError, TypeError, ValueError):
        der = b""
    if not der or not operator.is_serial(serial):
        raise EvidenceError("this statement names no recovery recipient: it was made by another version")
    return Recipient(VerifyKey.from_der(der), serial)


def order(
    manager: str, old: str, new: str, authority: SigningKey, *, revoked: int = 0, reason: str = "", serial: int = 1
) -> bytes:
    """A signed order; ConfigError for a manager's id, or Names of SRKs (hex), that are none."""
    if not _MANAGER.fullmatch(manager):
        raise ConfigError(f"{manager[:80]!r} is no manager's id: use the 64 hex digits that 'status' prints")
    for name in (old, new):
        if not _SRK.fullmatch(name):
            raise ConfigError(f"{name[:80]!r} is no SRK's Name: use the 68 hex digits that 'status' prints")
    if old == new:
        raise ConfigError("a recovery leads to another hardware TPM, and these are the same")
    body = {"manager": manager, "from": old, "to": new, "revoked": f"{revoked:016x}"}
    return envelope.sign(ORDER, {**body, "reason": reason[:_MAX_TEXT], "serial": serial}, authority)


def verify_order(data: bytes, authority: VerifyKey) -> Order:
    """The order that ``authority`` signed; EvidenceError otherwise."""
    body, _ = envelope.verify(ORDER, data, [authority])
    manager, reason, serial = body.get("manager"), body.get("reason", ""), body.get("serial")
    old, new, revoked = body.get("from"), body.get("to"), body.get("revoked")
    fits = isinstance(manager, str) and _MANAGER.fullmatch(manager) and isinstance(reason, str)
    named = all(isinstance(each, str) and _SRK.fullmatch(each) for each in (old, new))
    bits = isinstance(revoked, str) and _BITS.fullmatch(revoked)
    if not fits or not named or not bits or not operator.is_serial(serial):
        raise EvidenceError("this recovery order does not say what it orders: it was made by another version")
    digest = envelope.digest(ORDER, data)
    return Order(
        str(manager), bytes.fromhex(str(old)), bytes.fromhex(str(new)), int(str(revoked), 16), reason, serial, digest
    )


def wrap_keys(recipient: Recipient, root: Key, store: Key, manager: str) -> bytes:
    """The stanza of a commit whose key table is under ``store``."""
    return ecies.wrap(recipient.key, root.reveal() + store.reveal(), _associated(_STANZA, manager))


def unwrap_keys(private: SigningKey, stanza: bytes, manager: str) -> tuple[Key, Key]:
    """(root key, store key); IntegrityError if the stanza is for another key, or of another manager."""
    plain = ecies.unwrap(private, stanza, _associated(_STANZA, manager), "the recovery stanza")
    if len(plain) != 2 * KEY_SIZE:
        raise IntegrityError("the recovery stanza does not hold two keys: it was made by another version")
    return Key(plain[:KEY_SIZE]), Key(plain[KEY_SIZE:])


def hand_over(private: SigningKey, stanza: bytes, manager: str, ordered: bytes, receiver: VerifyKey) -> bytes:
    """What the recovery key's holder gives the manager that waits: the store key, for it and for this order alone."""
    _, store = unwrap_keys(private, stanza, manager)
    return ecies.wrap(receiver, store.reveal(), _associated(_HANDOVER, manager, envelope.digest(ORDER, ordered)))


def take_over(private: SigningKey, handover: bytes, manager: str, ordered: bytes) -> Key:
    """The store key that was handed over; IntegrityError if it is for another manager, start or order."""
    associated = _associated(_HANDOVER, manager, envelope.digest(ORDER, ordered))
    return Key(ecies.unwrap(private, handover, associated, "what was handed over"))


def _associated(label: bytes, manager: str, *more: bytes) -> bytes:
    return b"\0".join((label, manager.encode(), *more))
