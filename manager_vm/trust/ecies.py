"""Wrapping: encryption to a public P-256 key (ECIES). Whoever has the private key, and nobody else, unwraps.

A wrapped message is ephemeral public key || sealed (``crypto.seal``), under the key

    HKDF-SHA-256(x of the ECDH point, salt = ephemeral || recipient's public key, info = "vtpm-manager wrapped")

with public keys as uncompressed points of 65 bytes (SEC 1, 2.3.3). Each message has an ephemeral key of its own. It
says nothing of who has made it: that must follow from what is wrapped, or from ``associated``.
"""

from __future__ import annotations

from manager_vm import crypto
from manager_vm.crypto import NONCE_SIZE, TAG_SIZE, Key
from manager_vm.errors import EvidenceError, IntegrityError
from manager_vm.trust.signing import POINT_SIZE, SigningKey, VerifyKey

OVERHEAD = POINT_SIZE + NONCE_SIZE + TAG_SIZE  # bytes that wrapping adds
_LABEL = "vtpm-manager wrapped"


def wrap(recipient: VerifyKey, plain: bytes, associated: bytes) -> bytes:
    """``plain`` for the holder of ``recipient``'s private key; ``associated`` is authenticated, not stored."""
    ephemeral = SigningKey.create()
    key = _key(ephemeral, recipient, ephemeral.public, recipient)
    return ephemeral.public.uncompressed + crypto.seal(key, plain, associated)


def unwrap(private: SigningKey, wrapped: bytes, associated: bytes, what: str) -> bytes:
    """What was wrapped; IntegrityError naming ``what`` if it is for another key, or one bit of it is another."""
    if len(wrapped) < OVERHEAD:
        raise IntegrityError(f"{what} is too short to be wrapped: it was truncated")
    try:
        ephemeral = VerifyKey.from_point(wrapped[:POINT_SIZE])
    except EvidenceError:
        raise IntegrityError(f"{what} does not begin with a public key: it was changed") from None
    key = _key(private, ephemeral, ephemeral, private.public)
    try:
        return crypto.unseal(key, wrapped[POINT_SIZE:], associated, what)
    except IntegrityError:
        raise IntegrityError(
            f"{what} does not open: it is wrapped for another key, belongs elsewhere, or was changed"
        ) from None


def _key(mine: SigningKey, theirs: VerifyKey, ephemeral: VerifyKey, recipient: VerifyKey) -> Key:
    return crypto.derive(mine.agree(theirs), _LABEL, ephemeral.uncompressed + recipient.uncompressed)
