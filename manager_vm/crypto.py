"""The whole inventory of symmetric cryptography: AES-256-GCM, HKDF-SHA-256, SHA-256, the system's random numbers.

ChaCha20-Poly1305 is there for the tunnel of a move alone, for processors without AES instructions.
Nothing else in the product calls a cipher; signatures and certificates are in ``keys/``.
"""

from __future__ import annotations

import hashlib
import os
from enum import StrEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from manager_vm.errors import IntegrityError

KEY_SIZE = 32  # bytes, AES-256 and HKDF output
NONCE_SIZE = 12  # bytes, NIST SP 800-38D 8.2, RFC 8439
TAG_SIZE = 16


class Cipher(StrEnum):
    """What numbered records can be sealed with; key, nonce and tag have the same sizes."""

    AES = "aes-256-gcm"
    CHACHA = "chacha20-poly1305"


_CIPHERS: dict[Cipher, type[AESGCM] | type[ChaCha20Poly1305]] = {Cipher.AES: AESGCM, Cipher.CHACHA: ChaCha20Poly1305}


class Key:
    """A 256-bit secret. Its bytes never appear in repr or str; ``reveal()`` is easy to search for."""

    __slots__ = ("_bytes",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_SIZE:
            raise IntegrityError(
                f"a key of {len(secret)} bytes instead of {KEY_SIZE}: the file that holds it is damaged"
            )
        self._bytes = secret

    @classmethod
    def random(cls) -> Key:
        """A new key from the kernel's generator."""
        return cls(os.urandom(KEY_SIZE))

    def reveal(self) -> bytes:
        """The 32 secret bytes."""
        return self._bytes

    def __repr__(self) -> str:
        return "Key(...)"


def derive(key: Key, label: str, context: bytes) -> Key:
    """HKDF-SHA-256 (RFC 5869): salt = ``context``, info = ``label``."""
    return Key(HKDF(SHA256(), KEY_SIZE, salt=context, info=label.encode()).derive(key.reveal()))


def seal(key: Key, plain: bytes, associated: bytes) -> bytes:
    """AES-256-GCM: nonce (12 random bytes) || ciphertext || tag (16). ``associated`` is authenticated, not stored.

    Random nonces are safe here: no key encrypts more than a few messages.
    """
    nonce = os.urandom(NONCE_SIZE)
    return nonce + AESGCM(key.reveal()).encrypt(nonce, plain, associated)


def unseal(key: Key, sealed: bytes, associated: bytes, what: str) -> bytes:
    """The plaintext of ``seal``; IntegrityError naming ``what`` if one bit of it or of ``associated`` differs."""
    if len(sealed) < NONCE_SIZE + TAG_SIZE:
        raise IntegrityError(
            f"{what} is too short to be authentic: it was truncated; restore the newest copy of the state disk"
        )
    try:
        return AESGCM(key.reveal()).decrypt(sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], associated)
    except InvalidTag:
        raise IntegrityError(f"{what} fails its authentication: it was changed, or belongs elsewhere") from None


def seal_numbered(
    key: Key, number: int, plain: bytes | memoryview, associated: bytes, cipher: Cipher = Cipher.AES
) -> bytes:
    """Ciphertext || tag (16). The nonce is ``number`` (u64 behind four zero bytes): never the same twice."""
    return _CIPHERS[cipher](key.reveal()).encrypt(_numbered(number), plain, associated)


def unseal_numbered(
    key: Key, number: int, sealed: bytes | memoryview, associated: bytes, what: str, cipher: Cipher = Cipher.AES
) -> bytes:
    """The inverse; IntegrityError naming ``what`` if one bit differs."""
    try:
        return _CIPHERS[cipher](key.reveal()).decrypt(_numbered(number), sealed, associated)
    except InvalidTag:
        raise IntegrityError(f"{what} fails its authentication: it was changed, or belongs elsewhere") from None


def _numbered(number: int) -> bytes:
    return bytes(NONCE_SIZE - 8) + number.to_bytes(8, "big")


def digest(data: bytes) -> bytes:
    """SHA-256, 32 bytes."""
    return hashlib.sha256(data).digest()
