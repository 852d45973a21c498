"""trust.request, trust.rules: a signed request holds once, soon, at one manager, and only as far as a role reaches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from manager_vm.errors import ConfigError, EvidenceError, RemoteProtocolError
from manager_vm.server import desk, reception, verbs
from manager_vm.trust import envelope, operator, request, rules
from manager_vm.trust.operator import Operator, Role
from manager_vm.trust.request import LIFETIME, MAX_NONCES, NONCE_SIZE, Nonces
from manager_vm.trust.signing import SigningKey
from manager_vm.wire import admin
from manager_vm.wire.admin import SignedRequest
from tests.unit.statements import AUTHORITY, STRANGER, flipped

KEY = SigningKey.create()
HERE, ELSEWHERE = "a" * 64, "b" * 64
NONCE = bytes(range(NONCE_SIZE))
ARGS: dict[str, Any] = {"name": "web", "power_on": True}


def enrolled(role: Role = Role.ADMIN, key: SigningKey = KEY) -> Operator:
    """An operator."""
    return operator.verify(operator.enroll("alice", key.public, role, AUTHORITY), AUTHORITY.public)


def signed(verb: str = "start", *, nonce: bytes = NONCE, manager: str = HERE, key: SigningKey = KEY) -> SignedRequest:
    """A request as a client makes it."""
    return request.sign(7, key, {"nonce": nonce, "manager": manager}, verb, ARGS)


def given(now: float = 0.0) -> Nonces:
    """What a manager remembers that has given NONCE at this time."""
    nonces = Nonces()
    nonces.give(NONCE, now)
    return nonces


def test_what_is_executed_is_what_was_signed() -> None:
    found = request.verify(signed(), [enrolled()], HERE, given(), LIFETIME)
    assert (found.operator.name, found.verb, found.args) == ("alice", "start", ARGS)


def test_a_signed_request_survives_its_frame() -> None:
    message = signed()
    assert admin.from_frame(admin.to_frame(message)) == message


def test_a_request_that_was_made_before_is_a_replay() -> None:
    nonces, message = given(), signed()
    request.verify(message, [enrolled()], HERE, nonces, 1.0)
    for now in (1.0, 2.0, 1000.0):
        with pytest.raises(EvidenceError, match="replay"):
            request.verify(message, [enrolled()], HERE, nonces, now)


def test_two_requests_cannot_share_a_challenge() -> None:
    nonces = given()
    request.verify(signed("stop"), [enrolled()], HERE, nonces, 1.0)
    with pytest.raises(EvidenceError, match="replay"):
        request.verify(signed("destroy"), [enrolled()], HERE, nonces, 1.0)


def test_a_challenge_expires_and_an_expired_one_never_comes_back() -> None:
    nonces = given(100.0)
    with pytest.raises(EvidenceError, match="expired"):
        request.verify(signed(), [enrolled()], HERE, nonces, 100.1 + LIFETIME)
    with pytest.raises(EvidenceError, match="replay"):
        request.verify(signed(), [enrolled()], HERE, nonces, 100.0)


def test_a_challenge_that_this_manager_never_gave_is_refused() -> None:
    with pytest.raises(EvidenceError, match="answers no challenge of this manager"):
        request.verify(signed(nonce=bytes(NONCE_SIZE)), [enrolled()], HERE, given(), 0.0)


def test_a_request_for_another_manager_is_refused_and_uses_up_nothing() -> None:
    nonces = given()
    with pytest.raises(EvidenceError, match="signed for manager 'bbbb"):
        request.verify(signed(manager=ELSEWHERE), [enrolled()], HERE, nonces, 0.0)
    request.verify(signed(), [enrolled()], HERE, nonces, 0.0)


def test_a_forged_request_uses_up_nothing() -> None:
    nonces, message = given(), signed()
    with pytest.raises(EvidenceError, match="not signed by key"):
        request.verify(signed(key=STRANGER), [enrolled()], HERE, nonces, 0.0)
    request.verify(message, [enrolled()], HERE, nonces, 0.0)


def test_a_change_of_any_bit_of_what_was_signed_is_refused() -> None:
    message, nonces = signed(), given()
    for changed in flipped(message.signed):
        with pytest.raises(EvidenceError, match="not signed by key"):
            request.verify(replace(message, signed=changed), [enrolled()], HERE, nonces, 0.0)
    request.verify(message, [enrolled()], HERE, nonces, 0.0)


@pytest.mark.parametrize("size", [0, 63, 65])
def test_a_signature_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(EvidenceError, match="signature has"):
        request.verify(replace(signed(), signature=bytes(size)), [enrolled()], HERE, given(), 0.0)


def test_a_signature_over_a_statement_is_none_over_a_request() -> None:
    message = signed()
    for kind in (operator.OPERATOR, "request"):
        pae = envelope._pae(kind, message.signed)
        with pytest.raises(EvidenceError, match="not signed by key"):
            request.verify(replace(message, signature=KEY.sign(pae)), [enrolled()], HERE, given(), 0.0)


def test_what_is_signed_but_says_nothing_is_refused() -> None:
    for data in (b"", b"\x80", b"\xc1", admin.pack_statement(admin.Statement(HERE, NONCE, "x", {}))[:-1]):
        signature = KEY.sign(request._pae(data))
        with pytest.raises(RemoteProtocolError):
            request.verify(SignedRequest(1, KEY.public.id, signature, data), [enrolled()], HERE, given(), 0.0)


@pytest.mark.parametrize("challenge", [None, {}, {"nonce": b"short", "manager": HERE}, {"nonce": NONCE, "manager": 1}])
def test_a_client_signs_nothing_for_a_challenge_that_is_none(challenge: object) -> None:
    with pytest.raises(RemoteProtocolError, match="challenge"):
        request.sign(1, KEY, challenge, "stop", {})


def test_only_so_many_challenges_are_remembered_and_the_newest_ones_are() -> None:
    nonces, names = Nonces(), [index.to_bytes(NONCE_SIZE) for index in range(MAX_NONCES + 1)]
    for name in names:
        nonces.give(name, 0.0)
    with pytest.raises(EvidenceError, match="answers no challenge"):
        nonces.take(names[0], 0.0)
    for name in names[1:]:
        nonces.take(name, 0.0)
    for _ in range(3 * MAX_NONCES):
        nonces.give(NONCE, 0.0)
    assert len(nonces._open) <= MAX_NONCES


# -- roles ----------------------------------------------------------------------------------------------------

READING = {"status", "list", "show", "info", "ek_cert", "groups", "challenge", "approvals", "recovery"}
NOBODYS = {"provision", "recover_offer", "recover"}  # of managers that do not serve yet
MAY = {
    Role.AUDITOR: READING
    | {"operators", "audit", "platform_show", "quote", "migrations", "receipt", "standings", "snapshots"},
    Role.OPERATOR: READING
    | {"operators", "platform_show", "quote", "create", "bind", "start", "stop", "destroy", "certify"}
    | {"migrate", "migrations", "receipt", "abort", "standing_add", "standings", "snapshots", "snapshot_drop"},
    Role.ADMIN: set(rules.RULES) - NOBODYS,
}


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("verb", rules.RULES)
def test_a_role_reaches_as_far_as_its_table_says(role: Role, verb: str) -> None:
    nonces = given()
    if verb in MAY[role]:
        assert request.verify(signed(verb), [enrolled(role)], HERE, nonces, 0.0).verb == verb
        return
    with pytest.raises(EvidenceError, match=f"the role {role} may not ask for '{verb}'"):
        request.verify(signed(verb), [enrolled(role)], HERE, nonces, 0.0)


def test_every_verb_of_the_admin_link_has_a_rule_and_every_rule_a_verb() -> None:
    assert set(rules.RULES) == {*verbs.ADMIN, *desk.OWN, *reception.SERVED}
    assert not set(verbs.ADMIN) & set(desk.OWN)


def test_a_verb_without_a_rule_is_for_admins() -> None:
    rules.demand_role("new", Role.ADMIN)
    with pytest.raises(EvidenceError):
        rules.demand_role("new", Role.OPERATOR)


def test_without_a_signature_only_reading_is_served_and_provisioning() -> None:
    for verb in rules.RULES:
        if verb in READING | NOBODYS:
            rules.demand_unsigned(verb, provisioned=True)
            rules.demand_unsigned(verb, provisioned=False)
            continue
        with pytest.raises(EvidenceError, match="must be signed by an enrolled operator"):
            rules.demand_unsigned(verb, provisioned=True)
        with pytest.raises(ConfigError, match="provision first"):
            rules.demand_unsigned(verb, provisioned=False)


def test_nothing_that_changes_a_vtpm_is_unsigned() -> None:
    assert {verb for verb, rule in rules.RULES.items() if rule.changes and not rule.signed} == {"provision", "recover"}
