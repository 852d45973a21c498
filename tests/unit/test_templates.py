"""trust/templates: the EK templates byte by byte (TCG EK Credential Profile 2.5) and the keys read back from a TPM."""

from __future__ import annotations

import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from manager_vm.errors import IntegrityError
from manager_vm.trust.templates import EK_TEMPLATES, public_key

# by hand: type nameAlg attributes | policy | symmetric | parameters | unique
VECTORS = {
    "rsa2048": "0001 000b 000300b2 0020 837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
    "0006 0080 0043 0010 0800 00000000 0100" + "00" * 256,
    "ecc-p256": "0023 000b 000300b2 0020 837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
    "0006 0080 0043 0010 0003 0010 0020" + "00" * 32 + "0020" + "00" * 32,
    "ecc-p384": "0023 000c 000300f2 0030 b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419ca"
    "cb47ba09699646150f9fc000f3f80e12 0006 0100 0043 0010 0004 0010 0000 0000",
}
INDICES = {"rsa2048": 0x01C00002, "ecc-p256": 0x01C0000A, "ecc-p384": 0x01C00016}
TEMPLATES = {template.kind: template for template in EK_TEMPLATES}

RSA = rsa.generate_private_key(65537, 2048).public_key()
POINTS = {
    "ecc-p256": ec.derive_private_key(0xABCDEF, ec.SECP256R1()).public_key(),
    "ecc-p384": ec.derive_private_key(0xABCDEF, ec.SECP384R1()).public_key(),
}


def rsa_public(exponent: int = 0) -> bytes:
    """What a TPM returns for the RSA template: the same with a modulus."""
    head = TEMPLATES["rsa2048"].public[: -256 - 6]
    return head + struct.pack(">IH", exponent, 256) + RSA.public_numbers().n.to_bytes(256, "big")


def ecc_public(kind: str) -> bytes:
    """What a TPM returns for an ECC template: the same with a point."""
    size = 32 if kind == "ecc-p256" else 48
    head = TEMPLATES[kind].public[: -2 * (2 + (32 if kind == "ecc-p256" else 0))]
    numbers = POINTS[kind].public_numbers()
    return head + b"".join(struct.pack(">H", size) + each.to_bytes(size, "big") for each in (numbers.x, numbers.y))


@pytest.mark.parametrize("kind", VECTORS)
def test_a_template_has_the_bytes_and_the_index_of_the_profile(kind: str) -> None:
    assert TEMPLATES[kind].public == bytes.fromhex(VECTORS[kind])
    assert TEMPLATES[kind].nv_index == INDICES[kind]


def test_every_ek_has_a_template_and_an_index_of_its_own() -> None:
    assert list(TEMPLATES) == list(VECTORS)
    assert len({template.nv_index for template in EK_TEMPLATES}) == 3


def test_the_low_policy_is_policy_secret_of_the_endorsement_hierarchy() -> None:
    """TPM2_PolicySecret (Part 3, 23.4): H(H(0 || CC || Name of TPM_RH_ENDORSEMENT) || empty policyRef)."""
    first = hashlib.sha256(bytes(32) + bytes.fromhex("00000151 4000000b")).digest()
    assert hashlib.sha256(first).digest() == TEMPLATES["rsa2048"].public[10:42]


def test_an_ek_is_restricted_fixed_and_decrypts_but_never_signs() -> None:
    for template in EK_TEMPLATES:
        attributes = int.from_bytes(template.public[4:8], "big")
        for bit in (1, 4, 5, 7, 16, 17):  # fixedTPM fixedParent sensitiveDataOrigin adminWithPolicy restricted decrypt
            assert attributes >> bit & 1
        assert attributes >> 18 & 1 == 0  # sign


@pytest.mark.parametrize("exponent", [0, 65537])
def test_an_rsa_key_is_read_back_and_exponent_zero_is_the_default(exponent: int) -> None:
    key = public_key(rsa_public(exponent))
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.public_numbers() == RSA.public_numbers()


@pytest.mark.parametrize("kind", POINTS)
def test_an_ecc_key_is_read_back(kind: str) -> None:
    key = public_key(ecc_public(kind))
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.public_numbers() == POINTS[kind].public_numbers()


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_without_a_key_in_it_is_an_integrity_error(kind: str) -> None:
    with pytest.raises(IntegrityError, match="no EK of a known template"):
        public_key(TEMPLATES[kind].public)


def test_an_unknown_curve_or_a_point_that_is_not_on_it_is_an_integrity_error() -> None:
    good = ecc_public("ecc-p256")
    curve = good.index(bytes.fromhex("0010 0003 0010")) + 2
    for bad in (good[:curve] + b"\x00\x05" + good[curve + 2 :], good[:-1] + bytes([good[-1] ^ 1])):
        with pytest.raises(IntegrityError):
            public_key(bad)


@given(st.sampled_from(["rsa2048", *POINTS]), st.data())
def test_a_public_area_that_was_cut_off_before_its_key_or_in_its_point_is_an_integrity_error(
    kind: str, data: st.DataObject
) -> None:
    good = rsa_public()[:-256] if kind == "rsa2048" else ecc_public(kind)[:-1]
    with pytest.raises(IntegrityError):
        public_key(good[: data.draw(st.integers(0, len(good)))])
