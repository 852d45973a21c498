"""Tenants' groups of vTPMs: the platform's authority says which there are, each group's own authority who operates it.

A manager takes a group by the statement of the authority that it was provisioned with. From then on that authority has
no say in the group: its operators are enrolled by the group's authority alone (``operator``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import envelope
from manager_vm.trust.operator import MAX_SERIAL, is_name, is_serial
from manager_vm.trust.signing import SigningKey, VerifyKey

GROUP = "group"
DEFAULT = "default"  # the group of vTPMs that were made without one; its authority is the platform's


class Hierarchy(StrEnum):
    """What vouches for the AKs of a group's vTPMs (keys/HIERARCHIES.md)."""

    SK = "sk"
    AK_VEK = "ak-vek"
    AK_VAK = "ak-vak"
    INDEPENDENT = "independent"
    EK = "ek"  # known so that it can be refused by name


_EK_REFUSED = (
    "the hierarchy 'ek' is refused: the hardware EK would sign for vTPMs, and it is a restricted decryption key that "
    "never signs (R9, TPM key-usage rules); use 'sk'"
)


@dataclass(frozen=True, slots=True)
class Group:
    """Whoever has the key of ``authority`` says who operates the vTPMs of ``name``. Made by ``verify`` only.

    ``serial`` grows with each statement about groups that the platform's authority signs.
    """

    name: str
    authority: VerifyKey
    hierarchy: Hierarchy
    serial: int


def found(name: str, owner: VerifyKey, hierarchy: Hierarchy, platform: SigningKey, *, serial: int = 1) -> bytes:
    """A signed statement; ConfigError for what no group can be. ``owner``: of the group, ``platform``: who signs."""
    if not is_name(name) or name == DEFAULT:
        raise ConfigError(
            f"{name[:80]!r} is no group's name: use 1 to 63 letters, digits, '.', '_' or '-', but not {DEFAULT!r}"
        )
    if owner.id == platform.public.id:
        raise ConfigError("a group has an authority of its own: make one with 'vtpmctl authority init'")
    if not 0 < serial <= MAX_SERIAL:
        raise ConfigError(f"serial {serial}: use a number from 1 to 2^63-1, above that of every earlier group")
    demand_allowed(hierarchy)
    body = {"name": name, "authority": owner.der.hex(), "hierarchy": hierarchy.value, "serial": serial}
    return envelope.sign(GROUP, body, platform)


def verify(data: bytes, platform: VerifyKey) -> Group:
    """The group that ``platform`` has signed; EvidenceError otherwise."""
    body, _ = envelope.verify(GROUP, data, [platform])
    try:
        hierarchy, der = Hierarchy(body["hierarchy"]), bytes.fromhex(body["authority"])
    except (KeyError, TypeError, ValueError) as error:
        raise EvidenceError(f"this group lacks a part ({error}): it was made by another version") from None
    name, serial = body.get("name"), body.get("serial")
    if not is_name(name) or name == DEFAULT or not is_serial(serial):
        raise EvidenceError("this group has no name or serial: it was made by another version")
    demand_allowed(hierarchy)
    owner = VerifyKey.from_der(der)
    if owner.id == platform.id:
        raise EvidenceError(f"group {name!r} has no authority of its own: it names the platform's")
    return Group(name, owner, hierarchy, serial)


def demand_allowed(hierarchy: Hierarchy) -> None:
    """ConfigError for the hierarchy that breaks a TPM's rules."""
    if hierarchy is Hierarchy.EK:
        raise ConfigError(_EK_REFUSED)
