"""CAs for EK certificates, one root for each group (TCG EK Credential Profile 2.5, section 3; RFC 5280).

A certificate says: this EK is in a *virtual* TPM; the model in it says so in words. Nothing in it names the host, the
manager or the group: the CA is called after its own key, dates are whole days, and there is no address to ask at.
"""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID, ObjectIdentifier

_EK_CERTIFICATE = ObjectIdentifier("2.23.133.8.1")  # tcg-kp-EKCertificate
_TPM_MANUFACTURER = ObjectIdentifier("2.23.133.2.1")
_TPM_MODEL = ObjectIdentifier("2.23.133.2.2")
_TPM_VERSION = ObjectIdentifier("2.23.133.2.3")
_SUBJECT_DIRECTORY_ATTRIBUTES = ObjectIdentifier("2.5.29.9")
# SEQUENCE { SEQUENCE { OID 2.23.133.2.16 tPMSpecification, SET { SEQUENCE { UTF8 "2.0", INTEGER 0, INTEGER 164 }}}}
_SPECIFICATION = bytes.fromhex("30193017060567810502103 10e300c0c03322e3002010002020 0a4".replace(" ", ""))
_MANUFACTURER = "id:00001014"  # IBM, as libtpms reports in TPM_PT_MANUFACTURER
_MODEL = "vtpm-manager virtual TPM"
_VERSION = "id:20191023"  # TPM_PT_FIRMWARE_VERSION_1 of libtpms 0.9
_NEVER = datetime.datetime(9999, 12, 31, 23, 59, 59)  # RFC 5280, 4.1.2.5: no well-defined expiration date
_CA_NAME = "vTPM EK CA"
_CA_YEARS = 25


class EkCa:
    """A CA key (ECDSA P-384) and its self-signed certificate."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @classmethod
    def create(cls, called: str = _CA_NAME) -> EkCa:
        """A new root CA. Its name ends with its key's identifier: unique (RFC 5280, 4.1.2.4), and says nothing else."""
        key = ec.generate_private_key(ec.SECP384R1())
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{called} {identifier.digest.hex()[:16]}")])
        today = _today()
        builder = _certificate(key.public_key(), name, name, today, today + datetime.timedelta(days=365 * _CA_YEARS))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(key_cert_sign=True), critical=True)
        return cls(key, builder.add_extension(identifier, critical=False).sign(key, hashes.SHA384()))

    @classmethod
    def load(cls, private: bytes, certificate: bytes) -> EkCa:
        """From what ``private_bytes`` and ``certificate`` gave (PKCS #8 and X.509, DER); both are authentic already."""
        key = serialization.load_der_private_key(private, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(key, x509.load_der_x509_certificate(certificate))

    @property
    def certificate(self) -> bytes:
        """The CA's certificate, DER."""
        return self._certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        """The same as PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def private_bytes(self) -> bytes:
        """The CA's private key, PKCS #8 DER, not encrypted: the caller seals it."""
        return self._key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def issue(self, public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
        """An EK certificate, DER: empty subject, TPM attributes in a critical subjectAltName, no end of validity."""
        issuer = self._certificate.subject
        builder = _certificate(public, x509.Name([]), issuer, _today(), _NEVER)
        is_rsa = isinstance(public, rsa.RSAPublicKey)
        usage = _usage(key_encipherment=is_rsa, key_agreement=not is_rsa)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        specification = x509.UnrecognizedExtension(_SUBJECT_DIRECTORY_ATTRIBUTES, _SPECIFICATION)
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_tpm_names(), True),
            (specification, False),
            (usage, True),
            (x509.ExtendedKeyUsage([_EK_CERTIFICATE]), False),
            (authority, False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self._key, hashes.SHA384()).public_bytes(serialization.Encoding.DER)


def _today() -> datetime.datetime:
    """Midnight (UTC): what was made on one day does not show in which order, or together with what."""
    return datetime.datetime.now(datetime.UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _certificate(
    public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    subject: x509.Name,
    issuer: x509.Name,
    start: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .public_key(public)
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - datetime.timedelta(days=1))  # a guest's clock may be behind
        .not_valid_after(end)
    )


def _tpm_names() -> x509.SubjectAlternativeName:
    attributes = ((_TPM_MANUFACTURER, _MANUFACTURER), (_TPM_MODEL, _MODEL), (_TPM_VERSION, _VERSION))
    names = [x509.RelativeDistinguishedName([x509.NameAttribute(oid, value)]) for oid, value in attributes]
    return x509.SubjectAlternativeName([x509.DirectoryName(x509.Name(names))])


def _usage(
    *, key_cert_sign: bool = False, key_encipherment: bool = False, key_agreement: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=key_agreement,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        encipher_only=False,
        decipher_only=False,
    )
