"""trust.approval and trust.policy: what an approval binds, and policies as a TPM computes them."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import approval, envelope, pcrs, policy
from manager_vm.trust.signing import SigningKey
from tests.unit.statements import AUTHORITY, STRANGER, body_of, damaged

ZERO = bytes(32)
VALUES = {pcr: hashlib.sha256(ZERO + bytes([pcr]) * 32).digest() for pcr in (4, 9, 11)} | {12: ZERO, 13: ZERO}
APPROVAL = approval.approve(5, "release 7", VALUES, AUTHORITY)
REVOCATION = approval.revoke(1 << 5 | 1, "reason", AUTHORITY)

# -- vectors: swtpm 0.7.1, tpm2-tools 5.4; tests/integration/test_policy_digests.py computes them again ----------

FIXED = SigningKey(ec.derive_private_key(int.from_bytes(b"\x11" * 32), ec.SECP256R1()))
FIXED_NAME = "000bf449d112ea4c69d6582d8ecc81b575854245b69a9f6cf9abb240598a51f5e72b"
FIXED_POLICY = "7f499bb8f7782263876db4cc7949bd74db0e0640869d5f3d3e52672197ef13f5"
APPROVED = {
    0: "997b2e68c976b236f98843fadad3a9fc133c3df9dfb33fd22f489589248bde37",
    5: "9f7d758d77a3f3b7f5318bd2708be89b441ad4d871cc09c9f2758d3fbc986c48",
    63: "8bdd260a9363bbd4e75f457eff66ae8e2feca6a002f4ef835fb2bd69690c2b08",
}


@pytest.mark.parametrize("number", APPROVED)
def test_the_policy_of_an_approval_is_that_of_a_tpm(number: int) -> None:
    assert policy.approved(VALUES, number).hex() == APPROVED[number]
    made = approval.verify(approval.approve(number, "", VALUES, AUTHORITY), AUTHORITY.public)
    assert made.policy.hex() == APPROVED[number]


def test_the_policy_that_root_keys_are_sealed_under_is_that_of_a_tpm() -> None:
    assert policy.name(policy.public_area(FIXED.public)).hex() == FIXED_NAME
    assert policy.authorised_by(FIXED.public).hex() == FIXED_POLICY


def test_the_names_of_the_nv_indices_are_those_of_a_tpm() -> None:
    anchor = policy.nv_name(policy.ANCHOR_INDEX, policy.ANCHOR_ATTRIBUTES, policy.ANCHOR_SIZE)
    assert anchor.hex() == "000bad16c79d9c346ddfcd09ea67d33c00160304f7c3f7b7e4dae60d1adc97f2422d"
    fresh = policy.nv_name(policy.REVOCATION_INDEX, policy.REVOCATION_ATTRIBUTES, policy.REVOCATION_SIZE)
    assert fresh.hex() == "000bbc76cbe9287201f1b4e6db149b93766d8eb0c6816b9c1a1dfcced2da79b7630b"
    assert policy.revocation_name().hex() == "000b383517e14daf04ec2a72eed7b97d0320a0d6fff47b9961da8264c441d02632b9"


def test_the_capped_pcr_is_extended_once_with_the_digest_of_the_label() -> None:
    label = hashlib.sha256(b"vtpm-manager: root key unsealed").digest()
    assert pcrs.capped(VALUES[11]) == hashlib.sha256(VALUES[11] + label).digest()
    assert pcrs.CAPPED_PCR in pcrs.BOUND_PCRS


def test_each_number_and_each_pcr_makes_another_policy() -> None:
    made = {policy.approved(VALUES, number) for number in range(policy.MAX_APPROVALS)}
    made |= {policy.approved(VALUES | {pcr: b"\x01" * 32}, 0) for pcr in VALUES}
    assert len(made) == policy.MAX_APPROVALS + len(VALUES)


# -- approvals ------------------------------------------------------------------------------------------------


def test_an_approval_has_these_fields_and_a_ticket_for_the_tpm() -> None:
    body = body_of(approval.APPROVAL, APPROVAL)
    assert body.keys() == {"number", "image", "pcrs", "ticket"}
    assert (body["number"], body["image"]) == (5, "release 7")
    assert body["pcrs"] == {str(pcr): value.hex() for pcr, value in VALUES.items()}
    digest = bytes.fromhex(APPROVED[5])
    AUTHORITY.public.verify(bytes.fromhex(body["ticket"]), digest + policy.POLICY_REF, "the ticket")


def test_an_approval_comes_back_as_it_was_made() -> None:
    found = approval.verify(APPROVAL, AUTHORITY.public)
    assert (found.number, found.image, found.pcrs) == (5, "release 7", VALUES)


@pytest.mark.parametrize("number", [-1, 64, 1 << 70])
def test_a_number_without_a_bit_in_the_index_is_not_approved(number: int) -> None:
    with pytest.raises(ConfigError, match="64 bits"):
        approval.approve(number, "", VALUES, AUTHORITY)


@pytest.mark.parametrize(
    "values", [{}, VALUES | {0: ZERO}, {4: ZERO}, VALUES | {4: b""}, VALUES | {4: bytes(20)}], ids=len
)
def test_other_pcrs_than_those_that_stand_for_an_image_are_not_approved(values: dict[int, bytes]) -> None:
    with pytest.raises(ConfigError, match="4, 9, 11, 12, 13"):
        approval.approve(0, "", values, AUTHORITY)


def signed(kind: str, body: dict[str, Any]) -> bytes:
    """What the authority would sign if it were another version."""
    return envelope.sign(kind, body, AUTHORITY)


@given(damaged(body_of(approval.APPROVAL, APPROVAL)))
def test_a_malformed_approval_is_refused_or_binds_what_its_ticket_authorises(body: dict[str, Any]) -> None:
    try:
        found = approval.verify(signed(approval.APPROVAL, body), AUTHORITY.public)
    except EvidenceError:
        return
    assert (found.number, found.pcrs) == (5, VALUES) and found.image == body["image"]


@given(damaged({str(pcr): value.hex() for pcr, value in VALUES.items()}))
def test_malformed_pcrs_are_refused(values: dict[str, Any]) -> None:
    body = body_of(approval.APPROVAL, APPROVAL)
    if values != body["pcrs"]:
        with pytest.raises(EvidenceError):
            approval.verify(signed(approval.APPROVAL, {**body, "pcrs": values}), AUTHORITY.public)


@pytest.mark.parametrize("number", [True, False, -1, 64, 5.0, "5", None])
def test_a_signed_number_that_is_none_is_refused(number: object) -> None:
    body = {**body_of(approval.APPROVAL, approval.approve(1, "", VALUES, AUTHORITY)), "number": number}
    with pytest.raises(EvidenceError):
        approval.verify(signed(approval.APPROVAL, body), AUTHORITY.public)


def test_a_ticket_for_another_policy_or_of_another_key_is_refused() -> None:
    body = body_of(approval.APPROVAL, APPROVAL)
    for key, number in ((AUTHORITY, 6), (STRANGER, 5)):
        ticket = key.sign(policy.to_be_signed(policy.approved(VALUES, number))).hex()
        with pytest.raises(EvidenceError, match="the ticket of approval 5 is not signed"):
            approval.verify(signed(approval.APPROVAL, {**body, "ticket": ticket}), AUTHORITY.public)


# -- revocations ----------------------------------------------------------------------------------------------


def test_a_revocation_names_bits_of_the_index() -> None:
    assert body_of(approval.REVOCATION, REVOCATION) == {"bits": "0000000000000021", "reason": "reason"}
    bits = approval.verify_revocation(REVOCATION, AUTHORITY.public)
    assert approval.numbers(bits) == [0, 5]
    assert bits == int.from_bytes(policy.bit(0)) | int.from_bytes(policy.bit(5))


@pytest.mark.parametrize("bits", [0, -1, 1 << 64])
def test_a_revocation_of_nothing_or_of_bits_that_are_not_there_is_not_made(bits: int) -> None:
    with pytest.raises(ConfigError):
        approval.revoke(bits, "", AUTHORITY)


def test_all_bits_can_be_revoked_at_once() -> None:
    statement = approval.revoke((1 << 64) - 1, "", AUTHORITY)
    assert approval.numbers(approval.verify_revocation(statement, AUTHORITY.public)) == list(range(64))


@given(damaged(body_of(approval.REVOCATION, REVOCATION)))
def test_a_malformed_revocation_is_refused_or_still_names_bits(body: dict[str, Any]) -> None:
    try:
        bits = approval.verify_revocation(signed(approval.REVOCATION, body), AUTHORITY.public)
    except EvidenceError:
        return
    assert 0 < bits < 1 << 64 and bits == int(body["bits"], 16)
