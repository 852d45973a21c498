"""Operators, as the authority enrols and removes them: whose key may ask a manager for what.

A name has one enrolment: that with the highest serial. A key that was removed never comes back: who returns has a new
one. Both are for the manager to keep; here is only what one statement says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeGuard

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import envelope
from manager_vm.trust.signing import SigningKey, VerifyKey

OPERATOR = "operator"
OPERATOR_REMOVAL = "operator-removal"
MAX_SERIAL = (1 << 63) - 1
_NAME = re.compile(r"[A-Za-z0-9._-]{1,63}")
_KEY_ID = re.compile(r"[0-9a-f]{64}")
_MAX_TEXT = 200


class Role(StrEnum):
    """What an operator may ask for."""

    ADMIN = "admin"  # everything
    OPERATOR = "operator"  # create, start, stop, destroy; reading
    AUDITOR = "auditor"  # reading, and the audit log


@dataclass(frozen=True, slots=True)
class Operator:
    """Whoever holds ``key`` is ``name`` and has ``role``. Made by ``verify`` only.

    ``serial`` grows with each enrolment that the authority signs. ``description`` is for people. ``group``: that of the
    authority, "" for the platform's; whoever verifies knows it, the statement does not say it.
    """

    name: str
    role: Role
    key: VerifyKey
    serial: int = 1
    description: str = ""
    group: str = ""


def enroll(
    name: str, key: VerifyKey, role: Role, authority: SigningKey, *, serial: int = 1, description: str = ""
) -> bytes:
    """A signed enrolment; ConfigError for a name or a serial that no statement can carry."""
    if not is_name(name):
        raise ConfigError(f"{name[:80]!r} is no operator's name: use 1 to 63 letters, digits, '.', '_' or '-'")
    if not 0 < serial <= MAX_SERIAL:
        raise ConfigError(f"serial {serial}: use a number from 1 to 2^63-1, above that of every earlier enrolment")
    body = {"name": name, "role": role.value, "key": key.der.hex(), "serial": serial}
    return envelope.sign(OPERATOR, {**body, "description": description[:_MAX_TEXT]}, authority)


def verify(data: bytes, authority: VerifyKey) -> Operator:
    """The operator that ``authority`` enrolled; EvidenceError otherwise."""
    body, _ = envelope.verify(OPERATOR, data, [authority])
    try:
        role, der = Role(body["role"]), bytes.fromhex(body["key"])
    except (KeyError, TypeError, ValueError) as error:
        raise EvidenceError(f"this enrolment lacks a part ({error}): it was made by another version") from None
    name, serial, description = body.get("name"), body.get("serial"), body.get("description", "")
    if not is_name(name) or not is_serial(serial) or not isinstance(description, str):
        raise EvidenceError("this enrolment does not say whom it enrols: it was made by another version")
    return Operator(name, role, VerifyKey.from_der(der), serial, description)


def remove(key: VerifyKey | str, reason: str, authority: SigningKey) -> bytes:
    """A signed removal of the operator with this key (or key id, 64 hex digits), for ever."""
    id_ = key if isinstance(key, str) else key.id
    if not _KEY_ID.fullmatch(id_):
        raise ConfigError(f"{id_[:80]!r} is no key id: use the 64 hex digits that 'vtpmctl authority show' prints")
    return envelope.sign(OPERATOR_REMOVAL, {"key": id_, "reason": reason[:_MAX_TEXT]}, authority)


def verify_removal(data: bytes, authority: VerifyKey) -> str:
    """Id of the key that ``authority`` removed; EvidenceError otherwise."""
    body, _ = envelope.verify(OPERATOR_REMOVAL, data, [authority])
    id_ = body.get("key")
    if not isinstance(id_, str) or not _KEY_ID.fullmatch(id_):
        raise EvidenceError("this removal names no key: it was made by another version")
    return id_


def is_name(name: object) -> TypeGuard[str]:
    """Whether an operator can have this name."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def is_serial(serial: object) -> TypeGuard[int]:
    """Whether a statement can have this serial."""
    return isinstance(serial, int) and not isinstance(serial, bool) and 0 < serial <= MAX_SERIAL
