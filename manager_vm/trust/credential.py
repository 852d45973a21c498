"""TPM2_MakeCredential without a TPM (TPM 2.0 Part 1, 24 and annexes B.10.4, C.6.4): a secret for one key of one TPM.

Only the TPM that has the EK opens it (TPM2_ActivateCredential), and only for the key with the given Name.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from manager_vm.errors import EvidenceError
from manager_vm.trust.tpm_constants import Alg
from manager_vm.trust.tpm_structures import Public

_HASHES: dict[int, type[hashes.HashAlgorithm]] = {Alg.SHA256: hashes.SHA256, Alg.SHA384: hashes.SHA384}
_IDENTITY = b"IDENTITY\0"
_BLOCK = 16  # bytes of an AES block


@dataclass(frozen=True, slots=True)
class Credential:
    """``blob``: TPM2B_ID_OBJECT, ``secret``: TPM2B_ENCRYPTED_SECRET, both as TPM2_ActivateCredential takes them."""

    blob: bytes
    secret: bytes


def make(ek: Public, name: bytes, value: bytes) -> Credential:
    """``value`` (at most as long as a digest of the EK's nameAlg) for the key with this Name in the TPM with ``ek``.

    EvidenceError for a key that no credential can be encrypted to.
    """
    if ek.name_alg not in _HASHES or ek.symmetric[0] != Alg.AES or ek.symmetric[2] != Alg.CFB:
        raise EvidenceError("this EK is of no kind that a credential can be made for (AES in CFB mode)")
    seed, secret = _rsa_seed(ek, ek.key) if isinstance(ek.key, rsa.RSAPublicKey) else _ecc_seed(ek, ek.key)
    return Credential(protect(ek, seed, name, value), _sized(secret))


def protect(ek: Public, seed: bytes, name: bytes, value: bytes) -> bytes:
    """TPM2B_ID_OBJECT: ``value``, encrypted and authenticated under ``seed`` (Part 1, 24.4 and 24.5)."""
    digest = ek.name_alg.name.lower()
    key = kdfa(digest, seed, "STORAGE", name, ek.symmetric[1])
    encrypted = _cfb(key, _sized(value))
    integrity = kdfa(digest, seed, "INTEGRITY", b"", hashlib.new(digest).digest_size * 8)
    return _sized(_sized(hmac.digest(integrity, encrypted + name, digest)) + encrypted)


def kdfa(digest: str, key: bytes, label: str, context: bytes, bits: int) -> bytes:
    """Part 1, 11.4.10.2: NIST SP 800-108 in counter mode with HMAC; ``bits`` is a multiple of 8."""
    tail = label.encode() + b"\0" + context + struct.pack(">I", bits)
    blocks = range(1, bits // (hashlib.new(digest).digest_size * 8) + 2)
    return b"".join(hmac.digest(key, struct.pack(">I", count) + tail, digest) for count in blocks)[: bits // 8]


def kdfe(digest: str, z: bytes, party_u: bytes, party_v: bytes) -> bytes:
    """Part 1, 11.4.10.3, label IDENTITY, for as many bits as ``digest`` has: one block."""
    return hashlib.new(digest, struct.pack(">I", 1) + z + _IDENTITY + party_u + party_v).digest()


def _rsa_seed(ek: Public, key: rsa.RSAPublicKey) -> tuple[bytes, bytes]:
    """A random seed, and it encrypted by OAEP (annex B.10.4)."""
    hash_ = _HASHES[ek.name_alg]()
    seed = os.urandom(hash_.digest_size)
    return seed, key.encrypt(seed, padding.OAEP(padding.MGF1(hash_), hash_, _IDENTITY))


def _ecc_seed(ek: Public, key: ec.EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    """A seed agreed with a key made for it, and that key's TPMS_ECC_POINT (annex C.6.4)."""
    ephemeral = ec.generate_private_key(key.curve)
    mine, theirs = coordinates(ephemeral.public_key()), coordinates(key)
    seed = kdfe(ek.name_alg.name.lower(), ephemeral.exchange(ec.ECDH(), key), mine[0], theirs[0])
    return seed, _sized(mine[0]) + _sized(mine[1])


def coordinates(key: ec.EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    """x and y, as long as the curve's field elements, big-endian."""
    size, numbers = (key.curve.key_size + 7) // 8, key.public_numbers()
    return numbers.x.to_bytes(size), numbers.y.to_bytes(size)


def _cfb(key: bytes, plain: bytes) -> bytes:
    """AES in CFB mode with a zero IV, block by block: libraries are about to drop that mode."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    found, block = b"", bytes(_BLOCK)
    for start in range(0, len(plain), _BLOCK):
        stream = encryptor.update(block)
        block = bytes(a ^ b for a, b in zip(plain[start : start + _BLOCK], stream, strict=False))
        found += block
    return found


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data
