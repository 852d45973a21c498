"""Evidence of a platform: whose TPM it is (the EK's certificate), and which AK its manager has made there.

It is not signed. That the AK is in that TPM proves only who opens a credential for both (``credential``).
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ObjectIdentifier

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import envelope, platform, templates, tpm_structures
from manager_vm.trust.tpm_structures import Public

KINDS = ("ecc-p256", "rsa2048")  # of EKs, the preferred one first
WHAT = "platform evidence"
_EK_CERTIFICATE = ObjectIdentifier("2.23.133.8.1")  # tcg-kp-EKCertificate
_MAX_CERTIFICATE = 1 << 14  # bytes
_MAX_FILE = 1 << 20
_UNREADABLE = (ValueError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Made by ``verify`` only. ``kind``: of the EK. ``ek_digest``: SHA-256 of its certificate (DER)."""

    kind: str
    ek: Public
    ek_digest: bytes
    ak: Public


def pack(certificate: bytes, ek: bytes, ak: bytes) -> bytes:
    """The file: the EK's certificate (DER), the TPMT_PUBLICs of EK and AK."""
    fields = {"ek_certificate": certificate.hex(), "ek": ek.hex(), "ak": ak.hex()}
    return json.dumps(fields, indent=1).encode() + b"\n"


def verify(data: bytes, vendors: Sequence[x509.Certificate], now: datetime.datetime) -> Evidence:
    """EvidenceError unless one of ``vendors`` has certified the EK, it is made as the TCG says, and the AK is one."""
    body = envelope.json_object(data, WHAT)
    der = platform.hex_field(body, "ek_certificate", WHAT)
    certificate = _ek_certificate(der, vendors, now)
    ek = tpm_structures.parse_public(platform.hex_field(body, "ek", WHAT))
    template = templates.matching(ek)
    if template is None or template.kind not in KINDS:
        raise EvidenceError("this EK is not made from a template of the TCG (RSA-2048 or P-256): it proves nothing")
    if _key(certificate) != ek.key:
        raise EvidenceError("the EK's certificate is for another key than this EK")
    ak = tpm_structures.parse_public(platform.hex_field(body, "ak", WHAT))
    platform.check_ak(ak)
    return Evidence(template.kind, ek, hashlib.sha256(der).digest(), ak)


def load_vendors(path: Path) -> list[x509.Certificate]:
    """The CA certificates of a PEM file; ConfigError if there is none in it."""
    try:
        with open(path, "rb") as file:
            found = x509.load_pem_x509_certificates(file.read(_MAX_FILE))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        found = []
    if not found:
        raise ConfigError(f"{path} holds no certificate in PEM form")
    return found


def _ek_certificate(der: bytes, vendors: Sequence[x509.Certificate], now: datetime.datetime) -> x509.Certificate:
    if len(der) > _MAX_CERTIFICATE:
        raise EvidenceError(f"the EK's certificate has {len(der)} bytes: it is none")
    try:
        certificate = x509.load_der_x509_certificate(der)
        _check_issuer(certificate, vendors, now)  # before anything in it is looked at
        extensions = certificate.extensions
    except _UNREADABLE as error:
        raise EvidenceError(f"the EK's certificate cannot be read ({error})") from None
    _check_valid(certificate, now, "the EK's certificate")
    if _is_ca(extensions):
        raise EvidenceError("the EK's certificate is one of a CA: it is not that of an EK")
    try:
        usages = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        usages = []
    if _EK_CERTIFICATE not in usages:
        raise EvidenceError("the EK's certificate is not one of an EK (it lacks the usage tcg-kp-EKCertificate)")
    return certificate


def _check_issuer(certificate: x509.Certificate, vendors: Sequence[x509.Certificate], now: datetime.datetime) -> None:
    """One of ``vendors`` itself has signed it: each of them is trusted, an intermediate CA as well as a root."""
    for vendor in vendors:
        try:
            certificate.verify_directly_issued_by(vendor)
        except (ValueError, TypeError, InvalidSignature):
            continue
        _check_valid(vendor, now, "the vendor's certificate")
        if not _is_ca(vendor.extensions):
            raise EvidenceError("the vendor's certificate is not that of a CA")
        return
    raise EvidenceError("the EK's certificate is not signed by a vendor who is trusted here (--vendor-ca)")


def _check_valid(certificate: x509.Certificate, now: datetime.datetime, what: str) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= now <= last:
        raise EvidenceError(f"{what} is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d} only")


def _is_ca(extensions: x509.Extensions) -> bool:
    try:
        return extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _key(certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EvidenceError(f"the EK's certificate holds a key of an unknown kind ({error})") from None
