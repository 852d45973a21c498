"""trust.roster: the newest statement about a key counts, a removal for ever, and an admin is always left."""

from __future__ import annotations

import pytest

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import operator, roster
from manager_vm.trust.operator import Role
from manager_vm.trust.signing import SigningKey
from tests.unit.statements import AUTHORITY, STRANGER

DER = AUTHORITY.public.der
ALICE, BOB, OTHER = (SigningKey.create().public for _ in range(3))
ADMIN = operator.enroll("alice", ALICE, Role.ADMIN, AUTHORITY)
SECOND = operator.enroll("bob", BOB, Role.OPERATOR, AUTHORITY)
BOTH = roster.enrol([SECOND, ADMIN], DER, {})


def names(statements: roster.Statements) -> dict[str, str]:
    """Who is enrolled, and as what."""
    return {each.name: str(each.role) for each in roster.operators(DER, statements)}


def test_an_enrolled_key_is_found_with_its_role() -> None:
    assert names(BOTH) == {"alice": "admin", "bob": "operator"}
    assert roster.find(BOB.id, DER, BOTH).name == "bob"


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(EvidenceError, match="not enrolled at this manager"):
        roster.find(OTHER.id, DER, BOTH)


def test_another_authority_enrols_and_removes_nobody() -> None:
    with pytest.raises(EvidenceError, match="not signed by anybody who is trusted"):
        roster.enrol([operator.enroll("eve", OTHER, Role.ADMIN, STRANGER)], DER, BOTH)
    with pytest.raises(EvidenceError, match="not signed by anybody who is trusted"):
        roster.remove(operator.remove(BOB, "", STRANGER), DER, BOTH)


def test_a_removed_operator_is_refused_by_name_and_never_comes_back() -> None:
    left = roster.remove(operator.remove(BOB, "left", AUTHORITY), DER, BOTH)
    assert names(left) == {"alice": "admin"}
    with pytest.raises(EvidenceError, match="was removed"):
        roster.find(BOB.id, DER, left)
    for again in (SECOND, operator.enroll("bob", BOB, Role.OPERATOR, AUTHORITY, serial=9)):
        with pytest.raises(EvidenceError, match="was removed; a new enrolment needs a new key"):
            roster.enrol([again], DER, left)
    assert names(roster.enrol([operator.enroll("bob", OTHER, Role.AUDITOR, AUTHORITY)], DER, left))["bob"] == "auditor"


def test_a_removal_of_somebody_who_is_not_enrolled_yet_holds_too() -> None:
    left = roster.remove(operator.remove(OTHER, "lost", AUTHORITY), DER, BOTH)
    with pytest.raises(EvidenceError, match="was removed"):
        roster.enrol([operator.enroll("carol", OTHER, Role.OPERATOR, AUTHORITY)], DER, left)
    assert roster.remove(operator.remove(OTHER, "again", AUTHORITY), DER, left) == left


def test_a_newer_enrolment_of_a_name_replaces_its_key_and_its_role() -> None:
    newer = roster.enrol([operator.enroll("bob", OTHER, Role.AUDITOR, AUTHORITY, serial=2)], DER, BOTH)
    assert names(newer) == {"alice": "admin", "bob": "auditor"}
    with pytest.raises(EvidenceError, match="not enrolled"):
        roster.find(BOB.id, DER, newer)
    with pytest.raises(EvidenceError, match="it is older"):
        roster.enrol([SECOND], DER, newer)


def test_the_same_enrolment_again_changes_nothing() -> None:
    assert roster.enrol([SECOND], DER, BOTH) == BOTH


def test_a_key_has_one_name() -> None:
    with pytest.raises(EvidenceError, match="enrolled as 'bob' already"):
        roster.enrol([operator.enroll("robert", BOB, Role.OPERATOR, AUTHORITY)], DER, BOTH)


def test_the_last_admin_can_only_be_replaced() -> None:
    with pytest.raises(ConfigError, match="no admin would be left"):
        roster.remove(operator.remove(ALICE, "", AUTHORITY), DER, BOTH)
    with pytest.raises(ConfigError, match="no admin would be left"):
        roster.enrol([operator.enroll("alice", ALICE, Role.AUDITOR, AUTHORITY, serial=2)], DER, BOTH)
    with pytest.raises(ConfigError, match="no admin would be left"):
        roster.enrol([SECOND], DER, {})
    two = roster.enrol([operator.enroll("carol", OTHER, Role.ADMIN, AUTHORITY)], DER, BOTH)
    assert "alice" not in names(roster.remove(operator.remove(ALICE, "", AUTHORITY), DER, two))


def test_there_is_room_for_so_many_statements_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "MAX_STATEMENTS", 2)
    with pytest.raises(ConfigError, match="at most 2 statements"):
        roster.remove(operator.remove(OTHER, "", AUTHORITY), DER, BOTH)
