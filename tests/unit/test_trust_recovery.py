"""trust.recovery: who may have keys wrapped to him, and one order for one manager, from one TPM to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager_vm.crypto import Key
from manager_vm.errors import ConfigError, EvidenceError, IntegrityError
from manager_vm.trust import envelope, recovery
from manager_vm.trust.authority import AuthorityDirectory
from manager_vm.trust.operator import Role
from manager_vm.trust.recovery import ORDER, RECIPIENT
from manager_vm.trust.recovery_register import RecoveryRegister
from manager_vm.trust.signing import SigningKey
from tests.unit.statements import AUTHORITY, STRANGER, body_of, damaged, forgeries

HOLDER, WAITING = SigningKey.create(), SigningKey.create()
MANAGER, OTHER = "ab" * 32, "cd" * 32
OLD, NEW = "000b" + "01" * 32, "000b" + "02" * 32
ROOT, STORE = Key.random(), Key.random()
NAMED = recovery.name_recipient(HOLDER.public, 3, AUTHORITY)
ORDERED = recovery.order(MANAGER, OLD, NEW, AUTHORITY, revoked=0b101, reason="its board died", serial=4)


def test_a_recipient_and_an_order_say_what_was_signed() -> None:
    found = recovery.verify_recipient(NAMED, AUTHORITY.public)
    assert (found.key.id, found.serial) == (HOLDER.public.id, 3)
    order = recovery.verify_order(ORDERED, AUTHORITY.public)
    assert (order.manager, order.old.hex(), order.new.hex()) == (MANAGER, OLD, NEW)
    assert (order.revoked, order.reason, order.serial) == (0b101, "its board died", 4)


@pytest.mark.parametrize(
    ("verify", "statement"), [(recovery.verify_recipient, NAMED), (recovery.verify_order, ORDERED)]
)
def test_a_changed_or_foreign_statement_is_refused(verify: Any, statement: bytes) -> None:
    for _, forged in forgeries(statement):
        with pytest.raises(EvidenceError):
            verify(forged, AUTHORITY.public)
    with pytest.raises(EvidenceError, match="not signed by anybody"):
        verify(statement, STRANGER.public)


def test_neither_is_taken_for_the_other() -> None:
    with pytest.raises(EvidenceError, match="this is no recovery "):
        recovery.verify_order(NAMED, AUTHORITY.public)
    with pytest.raises(EvidenceError, match="this is no recovery-recipient"):
        recovery.verify_recipient(ORDERED, AUTHORITY.public)


@given(st.data())
def test_a_statement_with_a_damaged_body_is_refused_or_as_good(data: st.DataObject) -> None:
    for kind, statement, verify in (
        (RECIPIENT, NAMED, recovery.verify_recipient),
        (ORDER, ORDERED, recovery.verify_order),
    ):
        body = data.draw(damaged(body_of(kind, statement)))
        try:
            verify(envelope.sign(kind, body, AUTHORITY), AUTHORITY.public)
        except (EvidenceError, UnicodeEncodeError):
            continue
        assert set(body) >= set(body_of(kind, statement)) - {"reason"}


@pytest.mark.parametrize(
    ("manager", "old", "new", "why"),
    [
        ("", OLD, NEW, "no manager's id"),
        (MANAGER.upper(), OLD, NEW, "no manager's id"),
        (MANAGER, "01" * 34, NEW, "no SRK's Name"),
        (MANAGER, OLD, NEW[:-2], "no SRK's Name"),
        (MANAGER, OLD, OLD, "these are the same"),
    ],
)
def test_an_order_names_a_manager_and_two_tpms(manager: str, old: str, new: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        recovery.order(manager, old, new, AUTHORITY)


def test_the_stanza_opens_with_the_recipients_key_for_its_own_manager_only() -> None:
    stanza = recovery.wrap_keys(recovery.verify_recipient(NAMED, AUTHORITY.public), ROOT, STORE, MANAGER)
    root, store = recovery.unwrap_keys(HOLDER, stanza, MANAGER)
    assert (root.reveal(), store.reveal()) == (ROOT.reveal(), STORE.reveal())
    for key, manager in ((STRANGER, MANAGER), (HOLDER, OTHER)):
        with pytest.raises(IntegrityError, match="recovery stanza"):
            recovery.unwrap_keys(key, stanza, manager)


def test_the_store_key_alone_is_handed_over_and_for_one_manager_start_and_order_only() -> None:
    stanza = recovery.wrap_keys(recovery.verify_recipient(NAMED, AUTHORITY.public), ROOT, STORE, MANAGER)
    handed = recovery.hand_over(HOLDER, stanza, MANAGER, ORDERED, WAITING.public)
    assert recovery.take_over(WAITING, handed, MANAGER, ORDERED).reveal() == STORE.reveal()
    again = recovery.order(MANAGER, OLD, NEW, AUTHORITY, serial=5)
    for key, manager, order in ((STRANGER, MANAGER, ORDERED), (WAITING, OTHER, ORDERED), (WAITING, MANAGER, again)):
        with pytest.raises(IntegrityError, match="what was handed over"):
            recovery.take_over(key, handed, manager, order)
    with pytest.raises(IntegrityError):
        recovery.take_over(WAITING, stanza, MANAGER, ORDERED)  # one message is never taken for the other


# -- the authority's register ---------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> AuthorityDirectory:
    return AuthorityDirectory.init(tmp_path / "authority")


def test_recipients_and_orders_share_growing_serials(authority: AuthorityDirectory) -> None:
    register = RecoveryRegister(authority)
    path, first = register.name_recipient(HOLDER.public)
    assert (path.name, first.serial) == ("1.json", 1)
    path, order = register.order(MANAGER, OLD, NEW, "dead")
    assert (path.name, order.serial, order.revoked) == ("2.json", 2, 0)
    assert register.name_recipient(WAITING.public)[1].serial == 3


def test_a_key_that_signs_is_no_recipient(authority: AuthorityDirectory) -> None:
    alice = SigningKey.create()
    authority.enroll_operator("alice", alice.public, Role.ADMIN)
    for key in (authority.public, alice.public):
        with pytest.raises(ConfigError, match="this key signs"):
            RecoveryRegister(authority).name_recipient(key)


def test_an_order_carries_what_was_revoked_before(authority: AuthorityDirectory) -> None:
    authority.revoke([1, 5], "old")
    assert RecoveryRegister(authority).order(MANAGER, OLD, NEW, "")[1].revoked == 1 << 1 | 1 << 5


def test_a_second_way_from_the_same_tpm_needs_insisting(authority: AuthorityDirectory) -> None:
    register, third = RecoveryRegister(authority), "000b" + "03" * 32
    register.order(MANAGER, OLD, NEW, "")
    register.order(MANAGER, OLD, NEW, "the same again")
    register.order(OTHER, OLD, third, "another manager")
    register.order(MANAGER, NEW, third, "and on from there")
    with pytest.raises(ConfigError, match="would make a second one"):
        register.order(MANAGER, OLD, third, "")
    assert register.order(MANAGER, OLD, third, "the new one died too", again=True)[1].new.hex() == third
