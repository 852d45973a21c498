"""The authority as a CA: certificates of SKs, X.509 (RFC 5280). Third parties see vTPM <- SK <- authority, no more.

Two certificates of one authority differ in nothing but serial number (random), key and signature, and in the month in
which they were issued: nobody can tell from them which are of one host.
"""

from __future__ import annotations

import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID, ObjectIdentifier

from manager_vm.errors import EvidenceError
from manager_vm.trust.signing import COORDINATE_SIZE, SigningKey, VerifyKey

_ANY_POLICY = ObjectIdentifier("2.5.29.32.0")  # an OID of our own would need a registered arc
POLICY = "signs credentials of virtual TPMs"  # explicitText of the certificate's policy
_ISSUER = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vTPM attestation authority")])
_SUBJECT = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vTPM credential signer")])
_NEVER = datetime.datetime(9999, 12, 31, 23, 59, 59)  # RFC 5280, 4.1.2.5: no well-defined expiration date
_YEARS = 10  # for which an SK's certificate is valid
_ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")  # AlgorithmIdentifier (RFC 5758, 3.2)
_MAX_SIZE = 4096  # bytes of a certificate
_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


def certify_authority(authority: SigningKey, now: datetime.datetime) -> x509.Certificate:
    """The authority's own certificate, self-signed."""
    builder = _builder(authority.public.key, _ISSUER, _month(now), _NEVER)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(of_ca=True), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority.public.key)
    return authority.sign_certificate(builder.add_extension(identifier, critical=False))


def certify_sk(key: ec.EllipticCurvePublicKey, authority: SigningKey, now: datetime.datetime) -> bytes:
    """An SK's certificate, DER. Who calls has verified that the key is an SK."""
    start = _month(now)
    builder = _builder(key, _SUBJECT, start, start.replace(year=start.year + _YEARS))
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(of_ca=False), True),
        (_policies(), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public.key), False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    return _der(authority.sign_certificate(builder))


def verify_authority(der: bytes, authority: VerifyKey) -> None:
    """EvidenceError unless this is the certificate that ``authority`` has signed for itself."""
    found = _load(der, "the authority's certificate")
    _check_signed(found, der, authority, "the authority's certificate")
    if found.subject != _ISSUER or found.public_key() != authority.key:
        raise EvidenceError("the authority's certificate is for another key or name")


def verify_sk(der: bytes, authority: VerifyKey) -> ec.EllipticCurvePublicKey:
    """The SK that ``authority`` has certified; EvidenceError otherwise. Its validity in time is not looked at here."""
    what = "an SK's certificate"
    found = _load(der, what)
    _check_signed(found, der, authority, what)
    usage, policies = _extension(found, x509.KeyUsage), _extension(found, x509.CertificatePolicies)
    if usage != _usage(of_ca=False) or policies != _policies():
        raise EvidenceError(f"{what} is for another use")
    key = found.public_key()
    if found.subject != _SUBJECT or not isinstance(key, ec.EllipticCurvePublicKey):
        raise EvidenceError(f"{what} is not for an SK")
    return key


def _builder(
    key: ec.EllipticCurvePublicKey, subject: x509.Name, start: datetime.datetime, end: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(_ISSUER)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _month(now: datetime.datetime) -> datetime.datetime:
    """Its beginning, UTC: batches of one month are alike."""
    return now.astimezone(datetime.UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _check_signed(found: x509.Certificate, der: bytes, authority: VerifyKey, what: str) -> None:
    try:
        r, s = utils.decode_dss_signature(found.signature)
        signature = r.to_bytes(COORDINATE_SIZE) + s.to_bytes(COORDINATE_SIZE)
    except (ValueError, OverflowError):
        signature = b""
    authority.verify(signature, found.tbs_certificate_bytes, what)
    tail = b"\x03" + bytes([len(found.signature) + 1]) + b"\0" + found.signature  # BIT STRING
    if not der.endswith(found.tbs_certificate_bytes + _ECDSA_WITH_SHA256 + tail):  # what nobody has signed
        raise EvidenceError(f"{what} is not encoded as it was signed")
    if found.issuer != _ISSUER:
        raise EvidenceError(f"{what} has another issuer")


def _load(der: bytes, what: str) -> x509.Certificate:
    if len(der) > _MAX_SIZE:
        raise EvidenceError(f"{what} has {len(der)} bytes: it is none")
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion) as error:
        raise EvidenceError(f"{what} cannot be read ({error})") from None


def _extension(found: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    try:
        return found.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, ValueError):
        return None


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _policies() -> x509.CertificatePolicies:
    notice = x509.UserNotice(None, POLICY)
    return x509.CertificatePolicies([x509.PolicyInformation(_ANY_POLICY, [notice])])


def _usage(*, of_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not of_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=of_ca,
        crl_sign=of_ca,
        encipher_only=False,
        decipher_only=False,
    )
