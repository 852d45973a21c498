"""Keys of people and authorities on P-256: signatures (ECDSA with SHA-256, which every TPM verifies too), and ECDH.

A key's id is SHA-256 over its SubjectPublicKeyInfo (DER), in hex. Files are PEM (PKCS #8, SubjectPublicKeyInfo).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from manager_vm.crypto import Key
from manager_vm.errors import ConfigError, EvidenceError

COORDINATE_SIZE = 32  # bytes of r, s, x, y on P-256
POINT_SIZE = 65  # bytes of an uncompressed point
_MAX_FILE = 1 << 16
_HASH = ec.ECDSA(hashes.SHA256())


class VerifyKey:
    """A public key."""

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        if not isinstance(key.curve, ec.SECP256R1):
            raise EvidenceError("this signature key is not on the curve P-256; make one with 'vtpmctl authority init'")
        self._key = key
        self.der = key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )  # SubjectPublicKeyInfo
        self.id = hashlib.sha256(self.der).hexdigest()

    @classmethod
    def from_der(cls, der: bytes) -> VerifyKey:
        """From SubjectPublicKeyInfo; EvidenceError for anything but a P-256 key."""
        try:
            key = serialization.load_der_public_key(der)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise EvidenceError(f"this is no public key ({error})") from None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise EvidenceError("this public key is not of the kind ECDSA P-256")
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> VerifyKey:
        """From a PEM file; ConfigError if there is none."""
        try:
            key = serialization.load_pem_public_key(_read(path))
        except (ValueError, UnsupportedAlgorithm):
            raise ConfigError(f"{path} holds no public key in PEM form") from None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ConfigError(f"{path} holds a public key that is not of the kind ECDSA P-256")
        return cls(key)

    @property
    def key(self) -> ec.EllipticCurvePublicKey:
        """For certificates."""
        return self._key

    @classmethod
    def from_point(cls, point: bytes) -> VerifyKey:
        """From an uncompressed point; EvidenceError for anything that is none of P-256."""
        try:
            if len(point) != POINT_SIZE:
                raise ValueError(f"it has {len(point)} bytes")
            return cls(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))
        except ValueError as error:
            raise EvidenceError(f"this is no point of P-256 ({error})") from None

    @property
    def uncompressed(self) -> bytes:
        """The public point, 65 bytes (SEC 1, 2.3.3)."""
        return b"\x04" + b"".join(self.point)

    @property
    def pem(self) -> bytes:
        """SubjectPublicKeyInfo, PEM."""
        return self._key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def store(self, path: Path) -> None:
        """Into a new PEM file; ConfigError if there is one already."""
        _write_new(path, self.pem, 0o644)

    @property
    def point(self) -> tuple[bytes, bytes]:
        """x and y, 32 bytes each, big-endian."""
        numbers = self._key.public_numbers()
        return numbers.x.to_bytes(COORDINATE_SIZE), numbers.y.to_bytes(COORDINATE_SIZE)

    def verify(self, signature: bytes, message: bytes, what: str) -> None:
        """``signature`` = r || s over SHA-256 of ``message``; EvidenceError naming ``what``."""
        if len(signature) != 2 * COORDINATE_SIZE:
            raise EvidenceError(f"{what}: its signature has {len(signature)} bytes, not {2 * COORDINATE_SIZE}")
        r, s = (int.from_bytes(half) for half in (signature[:COORDINATE_SIZE], signature[COORDINATE_SIZE:]))
        try:
            self._key.verify(utils.encode_dss_signature(r, s), message, _HASH)
        except InvalidSignature:
            raise EvidenceError(f"{what} is not signed by key {self.id[:16]}: it was changed, or forged") from None


class SigningKey:
    """A private key. Its bytes appear in files only."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = VerifyKey(key.public_key())

    @classmethod
    def create(cls) -> SigningKey:
        """A new key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """From a PEM file without a passphrase; ConfigError if there is none."""
        try:
            key = serialization.load_pem_private_key(_read(path), None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ConfigError(f"{path} holds no private key in PEM form without a passphrase") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{path} holds a private key that is not of the kind ECDSA P-256")
        return cls(key)

    def store(self, path: Path) -> None:
        """Into a new file (mode 0600); ConfigError if there is one already: a key is never overwritten."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _write_new(path, pem, 0o600)

    @classmethod
    def from_der(cls, der: bytes) -> SigningKey:
        """The inverse of ``der``."""
        key = serialization.load_der_private_key(der, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(key)

    @property
    def der(self) -> bytes:
        """PKCS #8, not encrypted: for what is sealed as a whole."""
        return self._key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, message: bytes) -> bytes:
        """r || s over SHA-256 of ``message``, 64 bytes."""
        r, s = utils.decode_dss_signature(self._key.sign(message, _HASH))
        return r.to_bytes(COORDINATE_SIZE) + s.to_bytes(COORDINATE_SIZE)

    def agree(self, other: VerifyKey) -> Key:
        """ECDH: the x coordinate that both ends come to. To be derived from (``ecies``), never used as it is."""
        return Key(self._key.exchange(ec.ECDH(), other._key))

    def sign_certificate(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """An X.509 certificate, ECDSA with SHA-256."""
        return builder.sign(self._key, hashes.SHA256())


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_FILE)
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror}") from None


def _write_new(path: Path, pem: bytes, mode: int) -> None:
    """Durable on return; after a failure there is no such file, or the one that was there before."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:
        raise ConfigError(f"cannot write the key {path}: {error.strerror}") from None
    try:
        with open(fd, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(fd)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ConfigError(f"cannot write the key {path}: {error.strerror}") from None
