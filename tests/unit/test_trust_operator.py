"""trust.operator: what an enrolment and a removal say, and that nobody but the authority says it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import envelope, operator
from manager_vm.trust.operator import Role
from manager_vm.trust.signing import SigningKey
from tests.unit.statements import AUTHORITY, JSON, STRANGER, body_of, damaged, flipped, forgeries

ALICE = SigningKey.create().public
ENROLMENT = operator.enroll("alice", ALICE, Role.OPERATOR, AUTHORITY, serial=7, description="night shift")
REMOVAL = operator.remove(ALICE, "left", AUTHORITY)


@pytest.mark.parametrize("role", Role)
def test_an_enrolment_gives_a_name_its_role_and_its_key(role: Role) -> None:
    found = operator.verify(operator.enroll("alice", ALICE, role, AUTHORITY), AUTHORITY.public)
    assert (found.name, found.role, found.key.der, found.serial) == ("alice", role, ALICE.der, 1)


def test_an_enrolment_has_these_fields_and_no_others() -> None:
    assert body_of(operator.OPERATOR, ENROLMENT) == {
        "name": "alice",
        "role": "operator",
        "key": ALICE.der.hex(),
        "serial": 7,
        "description": "night shift",
    }
    assert body_of(operator.OPERATOR_REMOVAL, REMOVAL) == {"key": ALICE.id, "reason": "left"}


def test_a_removal_names_the_key_by_its_id() -> None:
    assert operator.verify_removal(REMOVAL, AUTHORITY.public) == ALICE.id
    assert operator.verify_removal(operator.remove(ALICE.id, "", AUTHORITY), AUTHORITY.public) == ALICE.id


@pytest.mark.parametrize("name", ["", "a" * 64, "a b", "a/b", "../a", "a\n", "é", "a\0"])
def test_a_name_that_could_be_mistaken_is_not_enrolled(name: str) -> None:
    with pytest.raises(ConfigError, match="no operator's name"):
        operator.enroll(name, ALICE, Role.ADMIN, AUTHORITY)


@pytest.mark.parametrize("serial", [0, -1, 1 << 63])
def test_a_serial_out_of_range_is_not_enrolled(serial: int) -> None:
    with pytest.raises(ConfigError, match="serial"):
        operator.enroll("alice", ALICE, Role.ADMIN, AUTHORITY, serial=serial)


@pytest.mark.parametrize(
    "id_",
    ["", "alice", ALICE.id.upper(), ALICE.id[:16], ALICE.id + "\n"],
    ids=["nothing", "a name", "capitals", "a part", "a line"],
)
def test_what_is_no_key_id_cannot_be_removed(id_: str) -> None:
    with pytest.raises(ConfigError, match="no key id"):
        operator.remove(id_, "", AUTHORITY)


def test_the_signature_of_another_authority_is_refused() -> None:
    for check, statement in ((operator.verify, ENROLMENT), (operator.verify_removal, REMOVAL)):
        with pytest.raises(EvidenceError, match="not signed by anybody who is trusted"):
            check(statement, STRANGER.public)


def test_one_changed_bit_anywhere_is_refused() -> None:
    for check, statement in ((operator.verify, ENROLMENT), (operator.verify_removal, REMOVAL)):
        for part, forged in forgeries(statement):
            with pytest.raises(EvidenceError):
                pytest.fail(f"accepted with a change in {part}: {check(forged, AUTHORITY.public)}")


def test_an_enrolment_is_no_removal_and_a_removal_no_enrolment() -> None:
    with pytest.raises(EvidenceError, match="this is no operator "):
        operator.verify(REMOVAL, AUTHORITY.public)
    with pytest.raises(EvidenceError, match="this is no operator-removal"):
        operator.verify_removal(ENROLMENT, AUTHORITY.public)


@given(damaged(body_of(operator.OPERATOR, ENROLMENT)))
def test_a_malformed_enrolment_is_refused_or_still_says_who_and_what(body: dict[str, Any]) -> None:
    try:
        found = operator.verify(envelope.sign(operator.OPERATOR, body, AUTHORITY), AUTHORITY.public)
    except EvidenceError:
        return
    assert operator.is_name(found.name) and found.role in Role and 0 < found.serial <= operator.MAX_SERIAL
    assert (found.name, found.role) == (body["name"], body["role"])


@given(damaged(body_of(operator.OPERATOR_REMOVAL, REMOVAL)))
def test_a_malformed_removal_is_refused_or_still_names_a_key(body: dict[str, Any]) -> None:
    try:
        found = operator.verify_removal(envelope.sign(operator.OPERATOR_REMOVAL, body, AUTHORITY), AUTHORITY.public)
    except EvidenceError:
        return
    assert found == body["key"] and len(found) == 64


@pytest.mark.parametrize("serial", [True, 0, -1, 1 << 63, 1.0, "1", None])
def test_a_signed_serial_that_is_no_positive_integer_is_refused(serial: object) -> None:
    body = {**body_of(operator.OPERATOR, ENROLMENT), "serial": serial}
    with pytest.raises(EvidenceError):
        operator.verify(envelope.sign(operator.OPERATOR, body, AUTHORITY), AUTHORITY.public)


@given(st.binary(max_size=120).map(bytes.hex) | JSON)
def test_a_key_that_is_none_is_refused(key: object) -> None:
    body = {**body_of(operator.OPERATOR, ENROLMENT), "key": key}
    with pytest.raises(EvidenceError):
        operator.verify(envelope.sign(operator.OPERATOR, body, AUTHORITY), AUTHORITY.public)


def test_a_key_with_one_changed_bit_is_refused_or_another_form_of_itself() -> None:
    body = body_of(operator.OPERATOR, ENROLMENT)
    for der in flipped(ALICE.der):
        statement = envelope.sign(operator.OPERATOR, {**body, "key": der.hex()}, AUTHORITY)
        try:
            assert operator.verify(statement, AUTHORITY.public).key.der == ALICE.der  # "hybrid" points (X9.62)
        except EvidenceError:
            continue
