"""A TPM in software, for tests of those who verify: its keys, what it certifies, how it opens a credential."""

from __future__ import annotations

import hashlib
import hmac
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from manager_vm.trust import credential, templates, tpm_structures
from manager_vm.trust.credential import Credential
from manager_vm.trust.tpm_constants import Alg, Attributes, Type
from manager_vm.trust.tpm_structures import Public

SK = (
    Attributes.FIXED_TPM
    | Attributes.FIXED_PARENT
    | Attributes.SENSITIVE_DATA_ORIGIN
    | Attributes.USER_WITH_AUTH
    | Attributes.NO_DA
    | Attributes.SIGN_ENCRYPT
)
AK = SK | Attributes.RESTRICTED


def signing(
    key: ec.EllipticCurvePrivateKey,
    attributes: Attributes,
    *,
    policy: bytes = b"",
    name_alg: int = Alg.SHA256,
    scheme: tuple[int, int] = (Alg.ECDSA, Alg.SHA256),
) -> bytes:
    """TPMT_PUBLIC of a signing key."""
    head = struct.pack(">HHI", Alg.ECC, name_alg, attributes) + _sized(policy) + struct.pack(">H", Alg.NULL)
    curve = 3 if key.curve.name == "secp256r1" else 4
    head += struct.pack(">H", scheme[0]) + (struct.pack(">H", scheme[1]) if scheme[0] != Alg.NULL else b"")
    point = b"".join(_sized(each) for each in credential.coordinates(key.public_key()))
    return head + struct.pack(">HH", curve, Alg.NULL) + point


def attest(type_: int, extra: bytes, attested: bytes) -> bytes:
    """TPMS_ATTEST. ``attested``: its last part, marshalled."""
    return struct.pack(">IH", 0xFF544347, type_) + _sized(b"signer") + _sized(extra) + bytes(17 + 8) + attested


def certify(name: bytes, extra: bytes) -> bytes:
    """TPMS_ATTEST of TPM2_Certify."""
    return attest(Type.CERTIFY, extra, _sized(name) + _sized(b"qualified"))


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """TPMT_SIGNATURE, ECDSA with SHA-256."""
    r, s = utils.decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return struct.pack(">HH", Alg.ECDSA, Alg.SHA256) + _sized(r.to_bytes(32)) + _sized(s.to_bytes(32))


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def ek(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> Public:
    """The public area of the EK that has this key."""
    if isinstance(key, rsa.RSAPrivateKey):
        modulus = key.public_key().public_numbers().n.to_bytes(256)
        return tpm_structures.parse_public(templates.template("rsa2048").public[:-256] + modulus)
    point = b"".join(struct.pack(">H", len(each)) + each for each in credential.coordinates(key.public_key()))
    p256 = key.curve.name == "secp256r1"
    return tpm_structures.parse_public(
        templates.template("ecc-p256" if p256 else "ecc-p384").public[: -68 if p256 else -4] + point
    )


def seed_of(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, secret: bytes) -> bytes:
    """What a TPM with this EK makes of TPM2B_ENCRYPTED_SECRET."""
    buffer = tpm_structures.unwrap(secret, "a secret")
    if isinstance(key, rsa.RSAPrivateKey):
        return key.decrypt(buffer, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0"))
    size = key.curve.key_size // 8
    x, y = buffer[2 : 2 + size], buffer[-size:]
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), key.curve)
    z = key.exchange(ec.ECDH(), numbers.public_key())
    return credential.kdfe(ek(key).name_alg.name.lower(), z, x, credential.coordinates(key.public_key())[0])


def opened(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, made: Credential, name: bytes) -> bytes:
    """What TPM2_ActivateCredential does, without a TPM."""
    public, seed = ek(key), seed_of(key, made.secret)
    digest = public.name_alg.name.lower()
    size = hashlib.new(digest).digest_size
    body = tpm_structures.unwrap(made.blob, "a credential")
    mac, encrypted = body[2 : 2 + size], body[2 + size :]
    integrity = credential.kdfa(digest, seed, "INTEGRITY", b"", size * 8)
    assert hmac.digest(integrity, encrypted + name, digest) == mac
    stream = credential.kdfa(digest, seed, "STORAGE", name, public.symmetric[1])
    plain = bytearray()
    for start in range(0, len(encrypted), 16):
        before = encrypted[start - 16 : start] if start else bytes(16)
        plain += bytes(a ^ b for a, b in zip(encrypted[start : start + 16], _aes(stream, before), strict=False))
    return tpm_structures.unwrap(bytes(plain), "a value")


def _aes(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)
