"""trust/credential against vectors that tpm2-pytss made (``utils.make_credential``), and opened again in software.

``tests/integration/test_enrolment.py`` has a real TPM open such credentials.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from manager_vm.errors import EvidenceError
from manager_vm.trust import credential, templates, tpm_structures
from manager_vm.trust.tpm_constants import Alg
from tests.unit.software_tpm import ek, opened, seed_of

NAME, VALUE = b"\0\x0b" + bytes(range(32)), bytes(range(100, 132))
P = int(
    "e4578ebf421ff0cf0e4c49da31fae5f9e2f354a169ab04839b9fbdd9f3ca44c2b1091b8234a9e517d030aa558f9c0574573754e7"
    "cc0bdbc8ed7cc30e8b204fb54506b06ffb348674192877477770f6ea179f76d6b29ee3a9e03b1a5685b61e3f5698fed3200f0207"
    "c9a3882924b60e4f7dc76eba3682d7951556c97142040f0f",
    16,
)
Q = int(
    "cb3bc071b8490e063806e3f6225e5493a0a325edb1f6f220411ac8891df469cdccd0a93055de0f21d5dd9fdc9dc9a8c9c35683ff"
    "81fb1377b134c6d1ead4576d9aa2f94e55f53ab2fe113dfc723732fbf31768446a422759e2517e235772039a5b28eafc7afaf4e7"
    "b5382fea888f53dd69c9e071dfd191f9f42e81ef88579637",
    16,
)
RSA_BLOB = bytes.fromhex(
    "00440020d23d13ff1c12121de7de701e7c87db5a1aec2ac5b6888c1f3a2821ebbf5bdc464a8093b9055e4f555ae9fa52cd0d9401"
    "197cd21430fe4788c352ef31c4e14c1e9fbf"
)
RSA_SECRET = bytes.fromhex(
    "0100aeeff7cb7c27b25bd9c6692f9c0465609cef5655a438d441088200d4366b6226689e39b73c44f908c9bb56c3124ca2819a1a"
    "9edf3812fb64e8a5f523c62f0773e6dc045c111f80f024c6dcd8d53995d0c58eb239b5e031868061ef7b4f042af66238610ac3f8"
    "61be774a0744c020c76ba6dc6b446d72f59cabc3189b9dc4eaec82cff429253c4d1a2cbaa24aad1a4f25c52accaf39837665141c"
    "e54c5dded0641feda275adbcbe4aac3df7621a03c55d87d7231a7c1112c61f0831dfc7b900609041fad3c270b8a6243681026280"
    "82a70562ba0439c90dee7eac0ea657e400187d399d556af6f5a9bfd5b3b411c670234f6f31bfed4161a3130da72450ef2f5c"
)
ECC_BLOB = bytes.fromhex(
    "0044002094fa52854a233091f1b570af026c30409c75276de25c459bc72fe0ae299d9d2185663d20097115066ab6ba9c81002ce9"
    "b33bf2185367089f21c94d76525e56b9362f"
)
ECC_SECRET = bytes.fromhex(
    "00440020597617a52249b93817e63c2a4a58e93087e10abf2ad7b8842bae6dc1d5e563e50020726fb3df4d4fb0aa6b20f60ba26c"
    "da3de16389089fe63a950e7dab4aa492e46d"
)


def rsa_key() -> rsa.RSAPrivateKey:
    d = pow(65537, -1, (P - 1) * (Q - 1))
    public = rsa.RSAPublicNumbers(65537, P * Q)
    return rsa.RSAPrivateNumbers(P, Q, d, d % (P - 1), d % (Q - 1), pow(Q, -1, P), public).private_key()


RSA, P256, P384 = rsa_key(), ec.derive_private_key(0xABCDEF, ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())


@pytest.mark.parametrize(
    ("key", "blob", "secret"), [(RSA, RSA_BLOB, RSA_SECRET), (P256, ECC_BLOB, ECC_SECRET)], ids=["rsa2048", "ecc-p256"]
)
def test_a_seed_gives_the_very_blob_that_another_implementation_made(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, blob: bytes, secret: bytes
) -> None:
    assert credential.protect(ek(key), seed_of(key, secret), NAME, VALUE) == blob


@pytest.mark.parametrize("key", [RSA, P256, P384], ids=["rsa2048", "ecc-p256", "ecc-p384"])
@pytest.mark.parametrize("size", [1, 16, 30, 31, 32])
def test_what_is_made_for_a_key_opens_with_it_and_no_two_are_alike(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, size: int
) -> None:
    first, second = (credential.make(ek(key), NAME, bytes(size)) for _ in range(2))
    assert opened(key, first, NAME) == opened(key, second, NAME) == bytes(size)
    assert first.blob != second.blob and first.secret != second.secret
    with pytest.raises(AssertionError):
        opened(key, first, NAME[:-1] + b"x")


def test_a_key_derivation_longer_than_a_digest_goes_on_with_the_next_block() -> None:
    long = credential.kdfa("sha256", b"key", "LABEL", b"context", 768)
    block = b"\0\0\0\x03LABEL\0context" + struct.pack(">I", 768)
    assert len(long) == 96 and long[64:] == hmac.digest(b"key", block, "sha256")


def test_a_key_that_cannot_hold_a_credential_is_refused() -> None:
    for wrong in (
        replace(ek(RSA), symmetric=(Alg.NULL, 0, 0)),
        replace(ek(RSA), symmetric=(Alg.AES, 128, 0x44)),
        replace(ek(RSA), name_alg=Alg.SHA512),
    ):
        with pytest.raises(EvidenceError, match="no kind that a credential"):
            credential.make(wrong, NAME, VALUE)


def test_an_ek_is_recognised_by_everything_but_its_key() -> None:
    for key, kind in ((RSA, "rsa2048"), (P256, "ecc-p256"), (P384, "ecc-p384")):
        found = templates.matching(ek(key))
        assert found is not None and found.kind == kind
        for index in range(4, 10 + len(ek(key).policy)):  # attributes and policy; not the size of the policy
            changed = bytearray(ek(key).area)
            changed[index] ^= 1
            if index not in (8, 9):
                assert templates.matching(tpm_structures.parse_public(bytes(changed))) is None
