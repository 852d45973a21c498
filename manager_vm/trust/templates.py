"""Key templates and NV indices of the TCG EK Credential Profile 2.5 (sections 2.2, B), as TPMT_PUBLIC."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from manager_vm.errors import IntegrityError
from manager_vm.trust.tpm_structures import Public

TPM_ALG_RSA = 0x0001
TPM_ALG_AES = 0x0006
TPM_ALG_SHA256 = 0x000B
TPM_ALG_SHA384 = 0x000C
TPM_ALG_NULL = 0x0010
TPM_ALG_ECC = 0x0023
TPM_ALG_CFB = 0x0043
TPM_ECC_NIST_P256 = 0x0003
TPM_ECC_NIST_P384 = 0x0004
_RSA_DEFAULT_EXPONENT = 65537
_HEAD_SIZE = 10  # bytes: type, nameAlg, objectAttributes, size of the policy

_LOW_ATTRIBUTES = 0x000300B2  # fixedTPM fixedParent sensitiveDataOrigin adminWithPolicy restricted decrypt
_HIGH_ATTRIBUTES = 0x000300F2  # the same and userWithAuth
_POLICY_A_SHA256 = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_POLICY_B_SHA384 = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba0969964615 0f9fc000f3f80e12".replace(" ", "")
)


@dataclass(frozen=True, slots=True)
class EkTemplate:
    """``kind``: our name of the key; ``public``: TPMT_PUBLIC; ``nv_index``: where its certificate stands."""

    kind: str
    public: bytes
    nv_index: int


def _head(alg: int, name_alg: int, attributes: int, policy: bytes) -> bytes:
    return struct.pack(">HHIH", alg, name_alg, attributes, len(policy)) + policy


def _aes_cfb(bits: int) -> bytes:
    return struct.pack(">HHH", TPM_ALG_AES, bits, TPM_ALG_CFB)


def _rsa2048() -> bytes:
    """Template L-1 (B.3.3)."""
    head = _head(TPM_ALG_RSA, TPM_ALG_SHA256, _LOW_ATTRIBUTES, _POLICY_A_SHA256)
    return head + _aes_cfb(128) + struct.pack(">HHIH", TPM_ALG_NULL, 2048, 0, 256) + bytes(256)


def _p256() -> bytes:
    """Template L-2 (B.3.4)."""
    head = _head(TPM_ALG_ECC, TPM_ALG_SHA256, _LOW_ATTRIBUTES, _POLICY_A_SHA256)
    point = (struct.pack(">H", 32) + bytes(32)) * 2
    return head + _aes_cfb(128) + struct.pack(">HHH", TPM_ALG_NULL, TPM_ECC_NIST_P256, TPM_ALG_NULL) + point


def _p384() -> bytes:
    """Template H-3 (B.4.5)."""
    head = _head(TPM_ALG_ECC, TPM_ALG_SHA384, _HIGH_ATTRIBUTES, _POLICY_B_SHA384)
    return head + _aes_cfb(256) + struct.pack(">HHHHH", TPM_ALG_NULL, TPM_ECC_NIST_P384, TPM_ALG_NULL, 0, 0)


EK_TEMPLATES = (
    EkTemplate("rsa2048", _rsa2048(), 0x01C00002),
    EkTemplate("ecc-p256", _p256(), 0x01C0000A),
    EkTemplate("ecc-p384", _p384(), 0x01C00016),
)

CHAIN_INDEX = 0x01C00100  # first of the range for the EK certificates' chain (2.2.1.5.2): the CA's certificate


def template(kind: str) -> EkTemplate:
    """The template of this kind of EK."""
    return next(each for each in EK_TEMPLATES if each.kind == kind)


_CURVES: dict[int, ec.EllipticCurve] = {TPM_ECC_NIST_P256: ec.SECP256R1(), TPM_ECC_NIST_P384: ec.SECP384R1()}


def public_key(public: bytes) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    """The key of an EK's TPMT_PUBLIC, as the TPM returned it (Part 2, 12.2.4)."""
    try:
        kind, policy_size = struct.unpack_from(">H6xH", public)
        rest = public[10 + policy_size + 6 :]  # behind the policy and TPMT_SYM_DEF_OBJECT
        if kind == TPM_ALG_RSA:
            exponent, size = struct.unpack_from(">4xIH", rest)
            modulus = int.from_bytes(rest[10 : 10 + size], "big")
            return rsa.RSAPublicNumbers(exponent or _RSA_DEFAULT_EXPONENT, modulus).public_key()
        curve, x_size = struct.unpack_from(">2xH2xH", rest)
        x, y = rest[8 : 8 + x_size], rest[10 + x_size :]
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), _CURVES[curve])
        return numbers.public_key()
    except (struct.error, KeyError, ValueError) as error:
        raise IntegrityError(f"the TPM returned a public area that is no EK of a known template ({error})") from None


def with_key(kind: str, key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    """TPMT_PUBLIC of the EK of this kind with this key: what ``public_key`` takes apart."""
    made = template(kind).public
    if isinstance(key, rsa.RSAPublicKey):
        size = (key.key_size + 7) // 8
        return made[:-size] + key.public_numbers().n.to_bytes(size)
    size, numbers = (key.curve.key_size + 7) // 8, key.public_numbers()
    head = made[: -2 * (2 + size)] if made.endswith(bytes(size)) else made[:-4]
    return head + b"".join(struct.pack(">H", size) + each.to_bytes(size) for each in (numbers.x, numbers.y))


def matching(public: Public) -> EkTemplate | None:
    """The template that this public area was made from: the same but for the key itself; None if there is none."""
    head = public.area[: _HEAD_SIZE + len(public.policy) + len(public.parameters)]
    return next((each for each in EK_TEMPLATES if each.public.startswith(head)), None)
