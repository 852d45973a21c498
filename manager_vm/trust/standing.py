"""The standing order: a VM may take its vTPM along between these platforms, as often as it moves (MIGRATION.md, 3).

For guests that their hypervisor moves by itself: nobody can sign an order for each of these moves in time. It names the
VM that the vTPM is bound to (R6). A statement with a higher serial replaces it, one without platforms revokes it.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import envelope, operator
from manager_vm.trust.group import DEFAULT
from manager_vm.trust.signing import SigningKey, VerifyKey

STANDING = "standing-order"
MAX_SIZE = 1 << 14  # bytes of the statement
MAX_PLATFORMS = 64


@dataclass(frozen=True, slots=True)
class Standing:
    """Made by ``verify`` only. ``vm``: UUID; ``platforms``: between which, () = revoked. ``digest``: of the payload."""

    vm: str
    group: str
    platforms: tuple[str, ...]
    serial: int
    issued: str
    digest: bytes


def give(vm: str, platforms: Sequence[str], serial: int, authority: SigningKey, *, group: str = DEFAULT) -> bytes:
    """A signed standing order, dated now; ConfigError for one that nobody could follow."""
    if not _is_uuid(vm):
        raise ConfigError(f"{vm[:80]!r} is no VM's UUID in its usual form, 8-4-4-4-12 lower-case hex digits")
    if not operator.is_serial(serial):
        raise ConfigError(f"serial {serial}: use 1 for the first one of this VM, and one more for each that follows")
    for name in (*platforms, group):
        if not operator.is_name(name):
            raise ConfigError(f"{name[:80]!r} is no name: use 1 to 63 letters, digits, '.', '_' or '-'")
    if len(platforms) == 1 or len(set(platforms)) != len(platforms) or len(platforms) > MAX_PLATFORMS:
        raise ConfigError(f"name 2 to {MAX_PLATFORMS} platforms, each once; or none, to revoke")
    issued = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    body = {"vm": vm, "group": group, "platforms": sorted(platforms), "serial": serial, "issued": issued}
    return envelope.sign(STANDING, body, authority)


def verify(data: bytes, authority: Callable[[str], VerifyKey]) -> Standing:
    """What the authority of its group has signed; EvidenceError otherwise. ``authority``: as in ``order.verify``."""
    if len(data) > MAX_SIZE:
        raise EvidenceError(f"a standing order of {len(data)} bytes; at most {MAX_SIZE} are looked at")
    group = envelope.peek(STANDING, data).get("group")
    if not operator.is_name(group):
        raise EvidenceError("this standing order names no group: it was made by another version")
    body, _ = envelope.verify(STANDING, data, [authority(group)])
    vm, platforms, serial, issued = (body.get(name) for name in ("vm", "platforms", "serial", "issued"))
    listed = isinstance(platforms, list) and len(platforms) <= MAX_PLATFORMS and all(map(operator.is_name, platforms))
    if not _is_uuid(vm) or not listed or not operator.is_serial(serial) or not isinstance(issued, str):
        raise EvidenceError("this standing order does not say what it orders: it was made by another version")
    assert isinstance(platforms, list)
    return Standing(str(vm), group, tuple(platforms), int(str(serial)), issued, envelope.digest(STANDING, data))


def peek_vm(data: bytes) -> str:
    """The VM that an unverified one claims to be about."""
    return str(envelope.peek(STANDING, data).get("vm"))


def is_standing(data: bytes) -> bool:
    """Whether a statement claims to be one; nobody has verified it."""
    try:
        return len(data) <= MAX_SIZE and envelope.kind_of(data) == STANDING
    except EvidenceError:
        return False


def _is_uuid(text: object) -> bool:
    try:
        return isinstance(text, str) and str(uuid.UUID(text)) == text
    except ValueError:
        return False
