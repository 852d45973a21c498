"""Platforms, as the authority enrols them: this AK is in the TPM with this EK, and the manager there has this name.

Also what the keys of a platform must look like: the AK, restricted, signs only what its TPM has made; SKs never leave
their TPM, and sign credentials of vTPMs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import envelope, operator, tpm_structures
from manager_vm.trust.signing import SigningKey, VerifyKey
from manager_vm.trust.tpm_constants import Alg, Attributes
from manager_vm.trust.tpm_structures import Public

PLATFORM = "platform"
MAX_LEVEL = 255
_DIGEST_SIZE = 32  # bytes, SHA-256
_SIGNING = Attributes.FIXED_TPM | Attributes.FIXED_PARENT | Attributes.SENSITIVE_DATA_ORIGIN | Attributes.SIGN_ENCRYPT
_EITHER = Attributes.USER_WITH_AUTH | Attributes.NO_DA  # how its own manager uses it


@dataclass(frozen=True, slots=True)
class Platform:
    """Made by ``verify`` only. ``ek``: SHA-256 of the EK's certificate (DER). ``serial`` grows with each enrolment.

    ``level``: how far the authority trusts it, 0 to 255: no vTPM moves from a platform to one with a lower level.
    """

    name: str
    ak: Public
    ek: bytes
    serial: int
    level: int = 0


def enrol(name: str, ak: Public, ek: bytes, serial: int, authority: SigningKey, *, level: int = 0) -> bytes:
    """A signed enrolment; ConfigError for a name or level that no statement can carry. The rest is verified already."""
    if not operator.is_name(name):
        raise ConfigError(f"{name[:80]!r} is no platform's name: use 1 to 63 letters, digits, '.', '_' or '-'")
    if not 0 <= level <= MAX_LEVEL:
        raise ConfigError(f"trust level {level}: use a number from 0 to {MAX_LEVEL}")
    body = {"name": name, "ak": ak.area.hex(), "ek": ek.hex(), "serial": serial, "level": level}
    return envelope.sign(PLATFORM, body, authority)


def verify(data: bytes, authority: VerifyKey) -> Platform:
    """The platform that ``authority`` enrolled; EvidenceError otherwise."""
    body, _ = envelope.verify(PLATFORM, data, [authority])
    name, serial, level = body.get("name"), body.get("serial"), body.get("level")
    ek = hex_field(body, "ek", PLATFORM)
    ranked = type(level) is int and 0 <= level <= MAX_LEVEL
    if not operator.is_name(name) or not operator.is_serial(serial) or len(ek) != _DIGEST_SIZE or not ranked:
        raise EvidenceError("this platform statement does not say whom it enrols: it was made by another version")
    ak = tpm_structures.parse_public(hex_field(body, "ak", PLATFORM))
    check_ak(ak)
    return Platform(name, ak, ek, serial, int(str(level)))


def check_ak(ak: Public) -> None:
    """EvidenceError unless this is an AK: restricted, in one TPM for ever, P-256."""
    _check(ak, "AK", _SIGNING | Attributes.RESTRICTED)


def check_sk(sk: Public) -> None:
    """EvidenceError unless this is an SK: not restricted, in one TPM for ever, P-256."""
    _check(sk, "SK", _SIGNING)


def _check(public: Public, what: str, needed: Attributes) -> None:
    if missing := needed & ~public.attributes:
        raise EvidenceError(f"this {what} lacks {_names(missing)}: what it signs proves nothing")
    if extra := Attributes(public.attributes.value & ~(needed | _EITHER).value):  # unknown bits too
        raise EvidenceError(f"this {what} is {_names(extra)}, which an {what} is not")
    if public.policy:
        raise EvidenceError(f"this {what} has a policy, which an {what} has not")
    on_p256 = isinstance(public.key, ec.EllipticCurvePublicKey) and isinstance(public.key.curve, ec.SECP256R1)
    if not on_p256 or public.scheme != (Alg.ECDSA, Alg.SHA256) or public.name_alg is not Alg.SHA256:
        raise EvidenceError(f"this {what} is not of the kind ECDSA P-256 with SHA-256")


def _names(attributes: Attributes) -> str:
    named = [each for each in Attributes if each in attributes]
    rest = int(attributes) & ~sum(named)
    return ", ".join([each.name or "" for each in named] + ([f"bits 0x{rest:08x}"] if rest else []))


def hex_field(body: dict[str, Any], name: str, what: str) -> bytes:
    """A field in hex digits; EvidenceError if it is none."""
    try:
        return bytes.fromhex(body[name])
    except (KeyError, TypeError, ValueError):
        raise EvidenceError(f"this {what} lacks {name!r} (hex digits): it was made by another version") from None


def hex_fields(values: object, what: str) -> Iterable[dict[str, bytes]]:
    """An array of objects that have nothing but hex digits."""
    if not isinstance(values, list) or not all(isinstance(each, dict) for each in values):
        raise EvidenceError(f"this {what} lacks an array of keys: it was made by another version")
    return [{name: hex_field(each, name, what) for name in each} for each in values]
