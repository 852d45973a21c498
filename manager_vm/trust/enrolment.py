"""What a platform and the authority say to each other after the evidence: challenge, answer, enrolment. Pure.

challenge   signed by the authority   a credential that only the TPM with this EK opens for this AK; a nonce
answer      not signed                the credential's secret; SKs, each certified by the AK over the nonce
enrolment   its parts are signed      the statement that enrols the platform; a certificate for each SK
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from cryptography.hazmat.primitives.asymmetric import ec

from manager_vm.errors import EvidenceError
from manager_vm.trust import attestation_ca, credential, envelope, operator, platform, tpm_structures
from manager_vm.trust.credential import Credential
from manager_vm.trust.evidence import KINDS, Evidence
from manager_vm.trust.platform import Platform, hex_field, hex_fields
from manager_vm.trust.signing import SigningKey, VerifyKey
from manager_vm.trust.tpm_structures import Certify, Public

CHALLENGE = "platform-challenge"
SECRET_SIZE = 32  # bytes of a credential's value, of a nonce
MAX_KEYS = 200  # SKs in one enrolment
_ID = re.compile(r"[0-9a-f]{32}")
_LABEL = b"vtpm-manager SK certification"
_ANSWER, _ENROLMENT = "answer to a challenge", "enrolment of a platform"


@dataclass(frozen=True, slots=True)
class Challenge:
    """Made by ``verify_challenge`` only. ``ak``: the Name that it is for. ``kind``: of the EK."""

    id: str
    kind: str
    ak: bytes
    credential: Credential
    nonce: bytes


@dataclass(frozen=True, slots=True)
class CertifiedKey:
    """``public``: TPMT_PUBLIC of an SK; TPMS_ATTEST and TPMT_SIGNATURE of TPM2_Certify by the AK."""

    public: bytes
    attested: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Pending:
    """What the authority keeps of a challenge until the answer comes: the secret's SHA-256, not the secret."""

    name: str
    ak: bytes
    ek: bytes
    nonce: bytes
    secret_digest: bytes
    level: int = 0


@dataclass(frozen=True, slots=True)
class Enrolled:
    """Made by ``verify`` only. ``certificates``: (SK, its certificate in DER)."""

    platform: Platform
    statement: bytes
    authority: bytes
    certificates: list[tuple[ec.EllipticCurvePublicKey, bytes]]


def challenge(id_: str, name: str, found: Evidence, secret: bytes, nonce: bytes, authority: SigningKey) -> bytes:
    """A signed challenge to the platform with this evidence. ``secret``, ``nonce``, ``id_`` are random."""
    made = credential.make(found.ek, found.ak.name, secret)
    parts = {"ak": found.ak.name, "credential": made.blob, "secret": made.secret, "nonce": nonce}
    body = {"id": id_, "platform": name, "kind": found.kind, **{key: value.hex() for key, value in parts.items()}}
    return envelope.sign(CHALLENGE, body, authority)


def verify_challenge(data: bytes, authority: VerifyKey) -> Challenge:
    """The challenge that ``authority`` has signed; EvidenceError otherwise."""
    body, _ = envelope.verify(CHALLENGE, data, [authority])
    id_, kind = body.get("id"), body.get("kind")
    ak, blob, secret, nonce = (hex_field(body, name, CHALLENGE) for name in ("ak", "credential", "secret", "nonce"))
    if not is_id(id_) or not isinstance(kind, str) or kind not in KINDS or len(nonce) != SECRET_SIZE:
        raise EvidenceError("this challenge lacks a part: it was made by another version")
    return Challenge(id_, kind, ak, Credential(blob, secret), nonce)


def qualifying_data(nonce: bytes) -> bytes:
    """What the AK certifies SKs over: for this use alone."""
    return hashlib.sha256(_LABEL + nonce).digest()


def answer(id_: str, secret: bytes, keys: Sequence[CertifiedKey]) -> bytes:
    """The file with which a platform answers."""
    said = [{name: getattr(key, name).hex() for name in CertifiedKey.__slots__} for key in keys]
    return json.dumps({"challenge": id_, "secret": secret.hex(), "keys": said}).encode() + b"\n"


def challenge_of(data: bytes) -> str:
    """Which challenge an answer is to."""
    found = envelope.json_object(data, _ANSWER).get("challenge")
    if not is_id(found):
        raise EvidenceError("this is no answer to a challenge: it names none")
    return found


def verify_answer(data: bytes, pending: Pending) -> list[Public]:
    """The SKs of the platform that has opened the credential; EvidenceError for anything else."""
    body = envelope.json_object(data, _ANSWER)
    secret = hex_field(body, "secret", _ANSWER)
    if not hmac.compare_digest(hashlib.sha256(secret).digest(), pending.secret_digest):
        raise EvidenceError("this answer has not the credential's secret: the AK is not in the TPM with this EK")
    ak = tpm_structures.parse_public(pending.ak)
    said = [_certified(each) for each in hex_fields(body.get("keys"), _ANSWER)]
    if len(said) > MAX_KEYS:
        raise EvidenceError(f"this answer names {len(said)} keys; at most {MAX_KEYS} are certified at a time")
    found = [verify_sk(key, ak, pending.nonce) for key in said]
    if len({key.name for key in found}) != len(found):
        raise EvidenceError("this answer names a key twice")
    return found


def verify_sk(key: CertifiedKey, ak: Public, nonce: bytes) -> Public:
    """The SK of which this AK says, over this nonce, that it is in its TPM; EvidenceError otherwise."""
    public = tpm_structures.parse_public(key.public)
    platform.check_sk(public)
    tpm_structures.verify_signature(ak, key.attested, key.signature)
    attested = tpm_structures.parse_attest(key.attested)
    if not isinstance(attested.attested, Certify):
        raise EvidenceError("the AK has signed something, but not that it certifies an SK")
    if attested.attested.name != public.name:
        raise EvidenceError("the AK has certified another key than this SK")
    if not hmac.compare_digest(attested.extra_data, qualifying_data(nonce)):
        raise EvidenceError("the AK has certified this SK, but not for this challenge")
    return public


def pack(statement: bytes, authority: bytes, certificates: Sequence[bytes]) -> bytes:
    """The file that a manager installs."""
    fields = {"platform": statement.decode(), "authority": authority.hex()}
    return json.dumps({**fields, "certificates": [each.hex() for each in certificates]}).encode() + b"\n"


def verify(data: bytes, authority: VerifyKey) -> Enrolled:
    """What ``authority`` says of a platform, each part verified; EvidenceError otherwise."""
    body = envelope.json_object(data, _ENROLMENT)
    statement, certificates = body.get("platform"), body.get("certificates")
    if not isinstance(statement, str) or not isinstance(certificates, list) or len(certificates) > MAX_KEYS:
        raise EvidenceError("this is no enrolment of a platform; use the file of 'authority enroll --answer'")
    encoded = statement.encode(errors="replace")
    found = platform.verify(encoded, authority)
    own = hex_field(body, "authority", _ENROLMENT)
    attestation_ca.verify_authority(own, authority)
    ders = [hex_field({"certificate": each}, "certificate", _ENROLMENT) for each in certificates]
    return Enrolled(found, encoded, own, [(attestation_ca.verify_sk(der, authority), der) for der in ders])


def is_id(value: object) -> TypeGuard[str]:
    """Whether a challenge can have this id."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def pack_pending(pending: Pending) -> bytes:
    """As the authority's directory keeps it."""
    parts = {"ak": pending.ak, "ek": pending.ek, "nonce": pending.nonce, "secret_digest": pending.secret_digest}
    named = {"platform": pending.name, "level": pending.level}
    return json.dumps({**named, **{key: value.hex() for key, value in parts.items()}}).encode()


def unpack_pending(data: bytes) -> Pending:
    """The inverse; EvidenceError for anything else."""
    what = "pending challenge"
    body = envelope.json_object(data, what)
    name, level = body.get("platform"), body.get("level")
    if not operator.is_name(name) or type(level) is not int:
        raise EvidenceError("this pending challenge names no platform; restore the authority's directory from its copy")
    parts = {part: hex_field(body, part, what) for part in ("ak", "ek", "nonce", "secret_digest")}
    return Pending(name, **parts, level=level)


def _certified(fields: dict[str, bytes]) -> CertifiedKey:
    try:
        return CertifiedKey(**fields)
    except TypeError as error:
        raise EvidenceError(f"this answer names a key that lacks a part ({error})") from None
