"""trust.envelope: what is signed, that nothing of it can be changed, and that garbage is told from a statement."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import load_der_public_key
from hypothesis import given
from hypothesis import strategies as st

from manager_vm.errors import EvidenceError
from manager_vm.trust import approval, envelope, operator
from manager_vm.trust.operator import Role
from manager_vm.trust.signing import VerifyKey
from tests.unit.statements import AUTHORITY, JSON, STRANGER, forgeries

KIND, BODY = "thing", {"b": [1, None], "a": "é"}
STATEMENT = envelope.sign(KIND, BODY, AUTHORITY)
PCRS = {pcr: bytes([pcr]) * 32 for pcr in (4, 9, 11, 12, 13)}

VERIFIERS: dict[str, Callable[[bytes, VerifyKey], Any]] = {
    approval.APPROVAL: approval.verify,
    approval.REVOCATION: approval.verify_revocation,
    operator.OPERATOR: operator.verify,
    operator.OPERATOR_REMOVAL: operator.verify_removal,
}
STATEMENTS = {
    approval.APPROVAL: approval.approve(3, "image", PCRS, AUTHORITY),
    approval.REVOCATION: approval.revoke(1 << 3, "reason", AUTHORITY),
    operator.OPERATOR: operator.enroll("alice", STRANGER.public, Role.ADMIN, AUTHORITY),
    operator.OPERATOR_REMOVAL: operator.remove(STRANGER.public, "reason", AUTHORITY),
}


def opened(statement: bytes) -> Any:
    """The outer JSON."""
    return json.loads(statement)


# -- what is signed -------------------------------------------------------------------------------------------


def test_the_signature_is_over_type_and_payload_as_dsse_says() -> None:
    whole = opened(STATEMENT)
    payload = base64.b64decode(whole["payload"])
    assert whole["payloadType"] == "application/vnd.vtpm-manager.thing+json"
    signed = b"DSSEv1 39 application/vnd.vtpm-manager.thing+json %d %s" % (len(payload), payload)
    raw = base64.b64decode(whole["signatures"][0]["sig"])
    der = utils.encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
    key = load_der_public_key(AUTHORITY.public.der)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(der, signed, ec.ECDSA(hashes.SHA256()))


def test_a_statement_comes_back_as_it_was_signed_and_names_its_signer() -> None:
    body, signer = envelope.verify(KIND, STATEMENT, [STRANGER.public, AUTHORITY.public])
    assert body == BODY and signer is AUTHORITY.public
    assert envelope.peek(KIND, STATEMENT) == BODY
    assert envelope.kind_of(STATEMENT) == KIND
    assert envelope.signers(STATEMENT) == [AUTHORITY.public.id]


def test_the_layout_of_the_outer_json_is_not_signed() -> None:
    whole = opened(STATEMENT)
    for layout in (
        json.dumps(whole),
        json.dumps(whole, indent=8),
        json.dumps({**whole, "comment": "anybody's"}),
        json.dumps({**whole, "signatures": [{"keyid": STRANGER.public.id, "sig": "!"}, *whole["signatures"]]}),
    ):
        assert envelope.verify(KIND, layout.encode(), [AUTHORITY.public])[0] == BODY


# -- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STATEMENTS)
def test_one_changed_bit_of_payload_type_signature_or_key_id_is_refused(kind: str) -> None:
    count = 0
    for part, forged in forgeries(STATEMENTS[kind]):
        count += 1
        with pytest.raises(EvidenceError):
            pytest.fail(f"accepted with a change in {part}: {VERIFIERS[kind](forged, AUTHORITY.public)}")
    assert count > 8 * (64 + 64 + 40)


@pytest.mark.parametrize("kind", STATEMENTS)
@pytest.mark.parametrize("other", STATEMENTS)
def test_a_statement_of_one_kind_is_no_other_whatever_it_claims(kind: str, other: str) -> None:
    if kind == other:
        VERIFIERS[kind](STATEMENTS[kind], AUTHORITY.public)
        return
    with pytest.raises(EvidenceError, match=f"this is no {other} "):
        VERIFIERS[other](STATEMENTS[kind], AUTHORITY.public)
    renamed = {**opened(STATEMENTS[kind]), "payloadType": f"application/vnd.vtpm-manager.{other}+json"}
    with pytest.raises(EvidenceError, match=f"this {other} is not signed by key"):
        VERIFIERS[other](json.dumps(renamed).encode(), AUTHORITY.public)


@pytest.mark.parametrize("kind", STATEMENTS)
def test_the_statement_of_another_authority_is_refused(kind: str) -> None:
    with pytest.raises(EvidenceError, match="not signed by anybody who is trusted with it here"):
        VERIFIERS[kind](STATEMENTS[kind], STRANGER.public)


def test_a_stranger_who_uses_the_authoritys_key_id_is_refused() -> None:
    whole = opened(envelope.sign(KIND, BODY, STRANGER))
    whole["signatures"][0]["keyid"] = AUTHORITY.public.id
    with pytest.raises(EvidenceError, match="changed, or forged"):
        envelope.verify(KIND, json.dumps(whole).encode(), [AUTHORITY.public])


@pytest.mark.parametrize("size", [0, 63, 65, 72])
def test_a_signature_of_another_length_is_refused(size: int) -> None:
    whole = opened(STATEMENT)
    whole["signatures"][0]["sig"] = base64.b64encode(bytes(size)).decode()
    with pytest.raises(EvidenceError, match=f"{size} bytes, not 64"):
        envelope.verify(KIND, json.dumps(whole).encode(), [AUTHORITY.public])


def test_nobody_is_trusted_where_no_key_is_given() -> None:
    with pytest.raises(EvidenceError, match="not signed by anybody"):
        envelope.verify(KIND, STATEMENT, [])


def test_an_envelope_past_the_limit_is_not_parsed() -> None:
    padded = STATEMENT + b" " * (envelope.MAX_SIZE - len(STATEMENT))
    assert envelope.peek(KIND, padded) == BODY
    for reader in (envelope.kind_of, envelope.signers, lambda data: envelope.peek(KIND, data)):
        with pytest.raises(EvidenceError, match="larger than"):
            reader(padded + b" ")


def test_a_payload_is_nested_no_deeper_than_anybody_can_print_it() -> None:
    body: Any = {}
    for _ in range(7):
        body = {"in": body}
    assert envelope.peek(KIND, envelope.sign(KIND, body, AUTHORITY)) == body
    with pytest.raises(EvidenceError, match="at most 8 levels"):
        envelope.peek(KIND, envelope.sign(KIND, {"in": body}, AUTHORITY))
    with pytest.raises(EvidenceError):
        envelope.kind_of(b'{"a":' * 10_000 + b"1" + b"}" * 10_000)


def refuses_or_reads(data: bytes) -> None:
    """Every reader gives an answer or EvidenceError."""
    for reader in (
        envelope.kind_of,
        envelope.signers,
        lambda data: envelope.peek(KIND, data),
        lambda data: envelope.verify(KIND, data, [AUTHORITY.public]),
    ):
        try:
            reader(data)
        except EvidenceError:
            continue


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_envelope_is_an_error_of_evidence(data: bytes) -> None:
    refuses_or_reads(data)
    with pytest.raises(EvidenceError):
        envelope.verify(KIND, data, [AUTHORITY.public])


@given(st.sampled_from(["payload", "payloadType", "signatures"]), JSON)
def test_a_field_of_the_envelope_that_is_anything_is_an_error_of_evidence(field: str, value: Any) -> None:
    refuses_or_reads(json.dumps({**opened(STATEMENT), field: value}).encode())


@given(st.sampled_from(["keyid", "sig"]), JSON)
def test_a_field_of_the_signature_that_is_anything_is_an_error_of_evidence(field: str, value: Any) -> None:
    whole = opened(STATEMENT)
    whole["signatures"][0][field] = value
    refuses_or_reads(json.dumps(whole).encode())


@given(st.binary(max_size=64))
def test_a_signed_payload_that_is_no_json_object_is_refused(payload: bytes) -> None:
    kind = f"application/vnd.vtpm-manager.{KIND}+json"
    signature = AUTHORITY.sign(b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload))
    signatures = [{"keyid": AUTHORITY.public.id, "sig": base64.b64encode(signature).decode()}]
    whole = {"payload": base64.b64encode(payload).decode(), "payloadType": kind, "signatures": signatures}
    data = json.dumps(whole).encode()
    if payload.strip() == b"{}":
        return
    with pytest.raises(EvidenceError, match="not a JSON object"):
        envelope.verify(KIND, data, [AUTHORITY.public])


@pytest.mark.parametrize("kind", ["", "Approval", "a" * 41, "../x", "a\n"])
def test_a_type_that_is_not_spelt_as_ours_is_no_kind(kind: str) -> None:
    whole = {**opened(STATEMENT), "payloadType": f"application/vnd.vtpm-manager.{kind}+json"}
    with pytest.raises(EvidenceError, match="no payloadType of ours"):
        envelope.kind_of(json.dumps(whole).encode())
