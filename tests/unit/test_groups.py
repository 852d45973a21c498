"""trust/group, server/groups, trust/rules: whose a group is, who may ask for what about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager_vm.crypto import Key
from manager_vm.errors import ConfigError, EvidenceError, StateError
from manager_vm.keys.ek_ca import EkCa
from manager_vm.protocol.lifecycle import State
from manager_vm.server import groups
from manager_vm.store import events, packing
from manager_vm.store.records import Contents, VtpmKeys, VtpmRecord
from manager_vm.trust import envelope, group, operator, roster, rules
from manager_vm.trust.group import Hierarchy
from manager_vm.trust.operator import Operator, Role
from manager_vm.trust.signing import SigningKey
from manager_vm.vtpm import changes
from tests.unit.statements import AUTHORITY, STRANGER, body_of, damaged, forgeries

TENANT, OTHER = SigningKey.create(), SigningKey.create()
ALICE, BOB = SigningKey.create(), SigningKey.create()
ACME = group.found("acme", TENANT.public, Hierarchy.SK, AUTHORITY)
BODY = body_of(group.GROUP, ACME)
CA = EkCa.create()
ADMIN = operator.enroll("alice", ALICE.public, Role.ADMIN, AUTHORITY)
TENANTS_ADMIN = operator.enroll("bob", BOB.public, Role.ADMIN, TENANT)
PLAIN = Contents(
    1,
    CA.certificate,
    CA.private_bytes(),
    authority=AUTHORITY.public.der,
    operators=roster.enrol([ADMIN], AUTHORITY.public.der, {}),
)
WITH_ACME = groups.add(PLAIN, ACME, [TENANTS_ADMIN])


def with_vtpm(contents: Contents, name: str, group_name: str) -> Contents:
    """A vTPM that is off."""
    record = VtpmRecord(f"uuid-{name}", name, State.OFF, 1, "x.blob", bytes(32), {}, {}, group=group_name)
    return changes.put(contents, record, VtpmKeys(Key(bytes(32))))


# -- the statement ---------------------------------------------------------------------------------------------------


def test_a_group_says_who_enrols_its_operators_and_what_vouches_for_its_aks() -> None:
    found = group.verify(ACME, AUTHORITY.public)
    assert (found.name, found.hierarchy, found.serial) == ("acme", Hierarchy.SK, 1)
    assert found.authority.id == TENANT.public.id


def test_a_group_with_one_bit_changed_or_by_somebody_else_is_refused() -> None:
    for part, forged in forgeries(ACME):
        with pytest.raises(EvidenceError):
            assert not group.verify(forged, AUTHORITY.public), part
    with pytest.raises(EvidenceError, match="not signed by anybody who is trusted"):
        group.verify(group.found("acme", TENANT.public, Hierarchy.SK, STRANGER), AUTHORITY.public)


@given(damaged(BODY))
def test_a_signed_group_that_lacks_a_part_or_has_another_kind_there_is_refused(body: dict[str, Any]) -> None:
    data = envelope.sign(group.GROUP, body, AUTHORITY)
    try:
        found = group.verify(data, AUTHORITY.public)
    except (EvidenceError, ConfigError):
        return
    assert operator.is_name(found.name) and found.authority.id == TENANT.public.id


def test_the_hierarchy_in_which_an_ek_signs_is_refused_with_the_rule_it_breaks() -> None:
    with pytest.raises(ConfigError, match="R9"):
        group.found("acme", TENANT.public, Hierarchy.EK, AUTHORITY)
    forced = envelope.sign(group.GROUP, {**BODY, "hierarchy": "ek"}, AUTHORITY)
    with pytest.raises(ConfigError, match=r"an? .*never signs.*R9"):
        group.verify(forced, AUTHORITY.public)


@pytest.mark.parametrize("name", ["default", "", "a b", "x" * 64, "../x", "ä"])
def test_a_group_needs_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ConfigError, match="no group's name"):
        group.found(name, TENANT.public, Hierarchy.SK, AUTHORITY)


def test_a_group_has_an_authority_of_its_own() -> None:
    with pytest.raises(ConfigError, match="an authority of its own"):
        group.found("acme", AUTHORITY.public, Hierarchy.SK, AUTHORITY)
    forced = envelope.sign(group.GROUP, {**BODY, "authority": AUTHORITY.public.der.hex()}, AUTHORITY)
    with pytest.raises(EvidenceError, match="names the platform's"):
        group.verify(forced, AUTHORITY.public)


# -- what a manager keeps --------------------------------------------------------------------------------------------


def test_each_group_has_a_ca_that_tells_nothing_of_the_others() -> None:
    beta = group.found("beta", OTHER.public, Hierarchy.SK, AUTHORITY, serial=2)
    both = groups.add(WITH_ACME, beta, [])
    found = [both.group(name) for name in (group.DEFAULT, "acme", "beta")]
    assert len({each.ca_certificate for each in found}) == len({each.ca_key for each in found}) == 3
    for each in found:
        for word in (b"acme", b"beta", b"manager", both.manager.encode()):
            assert word not in each.ca_certificate


def test_a_groups_keys_stand_in_the_sealed_part_only_and_it_is_read_back_whole() -> None:
    opened, secret = packing.pack_open(WITH_ACME), packing.pack_secret(WITH_ACME)
    assert WITH_ACME.groups["acme"].ca_key not in opened
    assert packing.unpack(opened, secret) == WITH_ACME


def test_a_group_never_changes_hands() -> None:
    taken = group.found("acme", OTHER.public, Hierarchy.SK, AUTHORITY, serial=2)
    with pytest.raises(StateError, match="never changes hands"):
        groups.add(WITH_ACME, taken, [])


def test_an_older_statement_is_refused_and_a_newer_one_changes_the_hierarchy_of_an_empty_group_only() -> None:
    newer = group.found("acme", TENANT.public, Hierarchy.AK_VAK, AUTHORITY, serial=2)
    changed = groups.add(WITH_ACME, newer, [])
    assert groups.hierarchy(changed, "acme") is Hierarchy.AK_VAK
    assert changed.groups["acme"].ca_key == WITH_ACME.groups["acme"].ca_key
    with pytest.raises(EvidenceError, match="serial 1, 2 is known"):
        groups.add(changed, ACME, [])
    with pytest.raises(StateError, match="keeps its hierarchy"):
        groups.add(with_vtpm(WITH_ACME, "a", "acme"), newer, [])
    assert groups.add(WITH_ACME, ACME, []) is WITH_ACME


def test_a_group_with_vtpms_cannot_be_removed_and_an_empty_one_can() -> None:
    with pytest.raises(StateError, match="has 1 vTPMs"):
        groups.remove(with_vtpm(WITH_ACME, "a", "acme"), "acme")
    assert groups.remove(WITH_ACME, "acme").groups == {}
    for name, text in (("default", "stays"), ("beta", "no group 'beta'")):
        with pytest.raises(ConfigError, match=text):
            groups.remove(WITH_ACME, name)


def test_a_vtpm_whose_group_was_removed_meanwhile_is_not_committed() -> None:
    with pytest.raises(ConfigError, match="no group 'acme'"):
        with_vtpm(groups.remove(WITH_ACME, "acme"), "a", "acme")


def test_a_groups_operators_are_its_own_authoritys_alone_and_need_no_admin() -> None:
    assert WITH_ACME.groups["acme"].operators.keys() == {BOB.public.id}
    with pytest.raises(EvidenceError, match="not signed by anybody who is trusted"):
        groups.enrol(WITH_ACME, "acme", operator.enroll("eve", STRANGER.public, Role.ADMIN, AUTHORITY))
    left = groups.expel(WITH_ACME, "acme", operator.remove(BOB.public, "left", TENANT))
    assert [row["operators"] for row in groups.table(left)] == [1, 0]


def test_what_happens_to_groups_is_in_the_audit_log() -> None:
    told = events.between(PLAIN, WITH_ACME)
    assert [event for event, _ in told] == ["group added", "operators changed"]
    assert all(fields["group"] == "acme" for _, fields in told)
    assert events.between(WITH_ACME, PLAIN) == [("group removed", {"group": "acme", "serial": 1})]


# -- who may ask for what --------------------------------------------------------------------------------------------

PLATFORM = {role: Operator(role, role, ALICE.public) for role in Role}
ACMES = {role: Operator(role, role, BOB.public, group="acme") for role in Role}


@pytest.mark.parametrize("verb", ["create", "start", "destroy", "release", "certify"])
def test_what_is_a_groups_only_its_operators_make_start_and_destroy(verb: str) -> None:
    for role in rules.RULES[verb].roles:
        assert rules.choose(verb, "acme", [ACMES[role]]) is ACMES[role]
    with pytest.raises(EvidenceError, match="role auditor"):
        rules.choose(verb, "acme", [ACMES[Role.AUDITOR]])
    for stranger in [*PLATFORM.values(), replace(ACMES[Role.ADMIN], group="beta")]:
        with pytest.raises(EvidenceError, match=r"is about group 'acme': it takes an operator whom its authority"):
            rules.choose(verb, "acme", [stranger])


def test_nobody_of_the_platform_has_a_groups_vtpm_quoted() -> None:
    for role in Role:
        assert rules.choose("quote", "acme", [ACMES[role]]) is ACMES[role]
        with pytest.raises(EvidenceError, match="is about group 'acme'"):
            rules.choose("quote", "acme", [PLATFORM[role]])


def test_the_platforms_admin_may_stop_a_groups_vtpm_and_nobody_else_of_the_platform() -> None:
    assert rules.choose("stop", "acme", [PLATFORM[Role.ADMIN]]) is PLATFORM[Role.ADMIN]
    for role in (Role.OPERATOR, Role.AUDITOR):
        with pytest.raises(EvidenceError, match="or an admin of the platform"):
            rules.choose("stop", "acme", [PLATFORM[role]])


@pytest.mark.parametrize("verb", sorted(verb for verb in rules.RULES if rules.is_signed(verb)))
def test_a_groups_admin_has_no_say_in_what_is_the_platforms(verb: str) -> None:
    with pytest.raises(EvidenceError, match="is an operator of group 'acme'"):
        rules.choose(verb, "", [ACMES[Role.ADMIN]])


def test_a_key_that_both_authorities_have_enrolled_acts_as_what_is_asked_for_needs() -> None:
    both = [PLATFORM[Role.ADMIN], ACMES[Role.OPERATOR]]
    assert rules.choose("create", "acme", both) is both[1]
    assert rules.choose("create", "", both) is both[0]
    assert rules.choose("stop", "acme", [both[0], ACMES[Role.AUDITOR]]) is both[0]


@given(st.sampled_from(sorted(rules.RULES)), st.sampled_from(["", "acme"]), st.sampled_from(list(Role)))
def test_the_table_of_rules_gives_nobody_what_is_another_groups(verb: str, owner: str, role: Role) -> None:
    with pytest.raises(EvidenceError):
        rules.choose(verb, owner, [Operator("x", role, BOB.public, group="beta")])


def test_a_request_is_about_the_group_of_its_vtpm_whatever_else_it_names() -> None:
    contents = with_vtpm(with_vtpm(WITH_ACME, "a", "acme"), "d", group.DEFAULT)
    assert groups.owner(contents, "destroy", {"name": "a", "group": group.DEFAULT}) == "acme"
    assert groups.owner(contents, "destroy", {"name": "d", "group": "acme"}) == ""
    assert groups.owner(contents, "destroy", {"name": "nobody", "group": "acme"}) is None
    assert groups.owner(contents, "create", {"name": "new", "group": "acme"}) == "acme"
    assert groups.owner(contents, "create", {"name": "new"}) == ""
    assert groups.owner(contents, "group_remove", {"name": "acme", "group": "acme"}) == ""
    for wrong in ("beta", ["acme"], 7):
        with pytest.raises(ConfigError, match="no group"):
            groups.owner(contents, "create", {"name": "new", "group": wrong})
