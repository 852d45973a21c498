"""trust.ecies: what is wrapped to a key opens with that key alone, whole, and where it belongs."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from manager_vm.errors import EvidenceError, IntegrityError
from manager_vm.trust import ecies
from manager_vm.trust.signing import SigningKey, VerifyKey
from tests.unit.statements import flipped

RECIPIENT = SigningKey(ec.derive_private_key(0x1234567890ABCDEF, ec.SECP256R1()))
PLAIN, PLACE = b"root key, store key", b"manager"
# made once with the key above
VECTOR = bytes.fromhex(
    "043d9184d00e3ca18a95e8abbdcc51d108cc94efd924a47331f63b51158f1e809131168b1a7f56f46f27301a398c426814b05a1c03349783"
    "8f0b8d73f032c780fb4b76b12085b7b362e0e7fd902a9211a2050d15450e480dea96cc470fbaf050da0867becd08fb2b5987ea91a1b93155"
)


def test_what_was_wrapped_long_ago_still_opens() -> None:
    assert ecies.unwrap(RECIPIENT, VECTOR, PLACE, "the vector") == PLAIN


def test_the_format_is_the_one_that_is_written_down() -> None:
    """The same again from primitives: ECDH, HKDF-SHA-256 (RFC 5869) by HMAC, AES-256-GCM."""
    point, nonce, sealed = VECTOR[:65], VECTOR[65:77], VECTOR[77:]
    private = ec.derive_private_key(0x1234567890ABCDEF, ec.SECP256R1())
    shared = private.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))
    numbers = private.public_key().public_numbers()
    own = b"\x04" + numbers.x.to_bytes(32) + numbers.y.to_bytes(32)
    extracted = hmac.digest(point + own, shared, hashlib.sha256)
    key = hmac.digest(extracted, b"vtpm-manager wrapped" + b"\x01", hashlib.sha256)
    assert AESGCM(key).decrypt(nonce, sealed, PLACE) == PLAIN


@given(plain=st.binary(max_size=200), place=st.binary(max_size=50))
def test_everything_comes_back_as_it_was(plain: bytes, place: bytes) -> None:
    wrapped = ecies.wrap(RECIPIENT.public, plain, place)
    assert len(wrapped) == len(plain) + ecies.OVERHEAD
    assert ecies.unwrap(RECIPIENT, wrapped, place, "it") == plain


def test_no_two_wrappings_are_alike() -> None:
    made = [ecies.wrap(RECIPIENT.public, PLAIN, PLACE) for _ in range(20)]
    assert len({each[:65] for each in made}) == len({each[65:] for each in made}) == 20


def test_one_changed_bit_anywhere_and_it_does_not_open() -> None:
    for changed in flipped(VECTOR):
        with pytest.raises(IntegrityError):
            ecies.unwrap(RECIPIENT, changed, PLACE, "it")


def test_it_opens_with_no_other_key_and_in_no_other_place() -> None:
    for key, place in ((SigningKey.create(), PLACE), (RECIPIENT, b"another"), (RECIPIENT, b"")):
        with pytest.raises(IntegrityError, match="another key, belongs elsewhere, or was changed"):
            ecies.unwrap(key, VECTOR, place, "it")


def test_what_is_cut_off_is_refused_at_every_length() -> None:
    for length in range(len(VECTOR)):
        with pytest.raises(IntegrityError):
            ecies.unwrap(RECIPIENT, VECTOR[:length], PLACE, "it")


@pytest.mark.parametrize(
    "point", [b"", bytes(65), b"\x04" + bytes(64), b"\x02" + VECTOR[1:33], b"\x06" + VECTOR[1:65], b"\x04" * 65]
)
def test_a_point_that_is_none_of_the_curve_is_refused(point: bytes) -> None:
    with pytest.raises(EvidenceError, match="no point of P-256"):
        VerifyKey.from_point(point)
    with pytest.raises(IntegrityError):
        ecies.unwrap(RECIPIENT, point + VECTOR[65:], PLACE, "it")
