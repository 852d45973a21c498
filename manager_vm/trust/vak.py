"""Credentials of vTPMs' AKs (vAKs), as third parties verify them: who vouches for this key (keys/HIERARCHIES.md).

A credential is a file of JSON. Which fields it has depends on the hierarchy; nothing in it is secret.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from manager_vm.errors import EvidenceError
from manager_vm.trust import attestation_ca, envelope, platform, tpm_structures
from manager_vm.trust.group import Hierarchy
from manager_vm.trust.signing import VerifyKey
from manager_vm.trust.tpm_constants import Attributes
from manager_vm.trust.tpm_structures import Public, Quote

VAK = "vak"
MAX_SIZE = 1 << 17  # bytes of a credential
_NEEDED = (
    Attributes.FIXED_TPM | Attributes.SENSITIVE_DATA_ORIGIN | Attributes.RESTRICTED | Attributes.SIGN_ENCRYPT
)  # of an AK: it never leaves its TPM and signs only what that has made


@dataclass(frozen=True, slots=True)
class Credential:
    """``ak``: TPMT_PUBLIC of the vAK. Of the rest, only what the hierarchy needs is there.

    sk: ``statement`` (kind "vak", signed by the SK), ``chain`` (certificates of the SK and of the authority, DER).
    ak-vek, ak-vak: ``attested`` (TPMS_ATTEST) and ``signature`` (TPMT_SIGNATURE) by the hardware AK that ``statement``
    (kind "platform", signed by the authority) is about; ak-vek: ``ek``, TPMT_PUBLIC of the vEK.
    independent: ``chain``, the vAK's certificate by an outside CA and those above it.
    """

    hierarchy: Hierarchy
    ak: bytes
    statement: bytes = b""
    chain: tuple[bytes, ...] = ()
    ek: bytes = b""
    attested: bytes = b""
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Verified:
    """What a credential proves. Made by ``verify`` only.

    ``platform``: its name, "" where the credential does not show it. ``challenge``: the vEK that is proven in the vAK's
    place; that the vAK is in the same vTPM is for who verifies to ask it (``credential.make``). None: it is proven.
    """

    hierarchy: Hierarchy
    ak: Public
    platform: str = ""
    challenge: Public | None = None


def pack(credential: Credential) -> bytes:
    """The file."""
    found = {each.name: getattr(credential, each.name) for each in fields(credential)}
    return json.dumps({name: _plain(value) for name, value in found.items() if value}, indent=1).encode() + b"\n"


def unpack(data: bytes) -> Credential:
    """What the file says; EvidenceError if it is no credential. Nothing is verified."""
    if len(data) > MAX_SIZE:
        raise EvidenceError(f"this credential is larger than {MAX_SIZE} bytes: it is none")
    try:
        body = json.loads(data)
        chain = tuple(base64.b64decode(each, validate=True) for each in body.pop("chain", []))
        hierarchy = Hierarchy(body.pop("hierarchy"))
        values = {name: base64.b64decode(value, validate=True) for name, value in body.items()}
        return Credential(hierarchy, chain=chain, **values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise EvidenceError(f"this is no credential of a vTPM's AK ({str(error)[:80]})") from None


def check(ak: Public) -> None:
    """EvidenceError unless this is an AK."""
    if missing := _NEEDED & ~ak.attributes:
        lacking = ", ".join(each.name or "" for each in Attributes if each in missing)
        raise EvidenceError(f"this key lacks {lacking}: it is no AK, and nothing vouches for it")
    if Attributes.DECRYPT in ak.attributes:
        raise EvidenceError("this key decrypts too: it is no AK, and nothing vouches for it")


def verify(data: bytes, authority: VerifyKey | None, roots: Sequence[bytes] = ()) -> Verified:
    """What follows from this credential for who trusts ``authority`` (the platforms'), or outside CAs (``roots``, DER).

    EvidenceError if nothing does. Validity in time is not looked at: whoever has a clock to trust compares the dates.
    """
    found = unpack(data)
    ak = tpm_structures.parse_public(found.ak)
    check(ak)
    if found.hierarchy is Hierarchy.INDEPENDENT:
        _verify_chain(found.chain, ak, roots)
        return Verified(found.hierarchy, ak)
    if authority is None:
        raise EvidenceError("this credential is verified with the key of the platforms' authority")
    if found.hierarchy is Hierarchy.SK:
        _verify_sk(found, authority)
        return Verified(found.hierarchy, ak)
    if found.hierarchy is Hierarchy.AK_VAK:
        return Verified(found.hierarchy, ak, _verify_attested(found, authority, ak.name))
    if found.hierarchy is Hierarchy.AK_VEK:
        ek = tpm_structures.parse_public(found.ek)
        return Verified(found.hierarchy, ak, _verify_attested(found, authority, ek.name), challenge=ek)
    raise EvidenceError("a credential by an EK is refused: an EK never signs (R9)")


def qualifying(hierarchy: Hierarchy, name: bytes) -> bytes:
    """What a hardware AK's quote carries to vouch for the key with this Name."""
    return hashlib.sha256(b"vtpm-manager " + hierarchy.value.encode() + b"\0" + name).digest()


def statement(ak: bytes) -> dict[str, Any]:
    """The body of what an SK signs."""
    return {"ak": ak.hex()}


def _verify_sk(found: Credential, authority: VerifyKey) -> None:
    if not found.chain:
        raise EvidenceError("this credential has no certificate of the SK that signed it")
    key = VerifyKey(attestation_ca.verify_sk(found.chain[0], authority))
    body, _ = envelope.verify(VAK, found.statement, [key])
    if body.get("ak") != found.ak.hex():
        raise EvidenceError("what the SK has signed is about another AK")


def _verify_attested(found: Credential, authority: VerifyKey, name: bytes) -> str:
    """Name of the platform whose AK vouches for the key called ``name``."""
    enrolled = platform.verify(found.statement, authority)
    tpm_structures.verify_signature(enrolled.ak, found.attested, found.signature)
    attested = tpm_structures.parse_attest(found.attested)
    if not isinstance(attested.attested, Quote) or attested.extra_data != qualifying(found.hierarchy, name):
        raise EvidenceError("what the platform's AK has signed is about another key")
    return enrolled.name


def _verify_chain(chain: Sequence[bytes], ak: Public, roots: Sequence[bytes]) -> None:
    """EvidenceError unless the first is for the AK, each is issued by the next one, the last by a root."""
    if not chain or not roots:
        raise EvidenceError("this credential is verified with the certificate of the outside CA that issued it")
    try:
        certificates = [x509.load_der_x509_certificate(each) for each in chain]
        trusted = [x509.load_der_x509_certificate(each) for each in roots]
        if certificates[0].public_key() != ak.key:
            raise EvidenceError("the certificate is for another key than the AK")
        for lower, upper in pairwise(certificates):
            lower.verify_directly_issued_by(_ca(upper))
        if not any(_is_issued_by(certificates[-1], root) for root in trusted):
            raise EvidenceError("the certificate was not issued by any CA that is trusted here")
    except (ValueError, TypeError, InvalidSignature) as error:
        raise EvidenceError(f"a certificate of the chain is not good ({error})") from None


def _ca(found: x509.Certificate) -> x509.Certificate:
    try:
        is_ca = found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_ca = False
    if not is_ca:
        raise EvidenceError("a certificate of the chain is no CA's")
    return found


def _is_issued_by(found: x509.Certificate, root: x509.Certificate) -> bool:
    if found == root:
        return True
    try:
        found.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def certificates(data: bytes, ak: bytes) -> tuple[bytes, ...]:
    """What an outside CA has sent (PEM, the AK's certificate first) as DER; EvidenceError if it is for another key."""
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise EvidenceError(f"the outside CA's response holds no certificates in PEM form ({error})") from None
    if found[0].public_key() != tpm_structures.parse_public(ak).key:
        raise EvidenceError("the outside CA's certificate is for another key than this AK")
    return tuple(each.public_bytes(serialization.Encoding.DER) for each in found)


def root(data: bytes) -> bytes:
    """The certificate (DER) of an outside CA, from PEM; EvidenceError if there is none."""
    try:
        return x509.load_pem_x509_certificate(data).public_bytes(serialization.Encoding.DER)
    except ValueError as error:
        raise EvidenceError(f"the file of the outside CA holds no certificate in PEM form ({error})") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Hierarchy):
        return value.value
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return base64.b64encode(value).decode()
