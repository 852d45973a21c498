"""trust.standing: a VM takes its vTPM along between these platforms, by the authority of its group."""

from __future__ import annotations

import pytest

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import envelope, order, standing
from manager_vm.trust.signing import VerifyKey
from manager_vm.trust.standing import STANDING
from tests.unit.statements import AUTHORITY, STRANGER, body_of, forgeries

VM = "0d2c1a4e-5b7f-4c1d-9a3e-1f2b3c4d5e6f"
GIVEN = standing.give(VM, ["rack2", "rack1"], 3, AUTHORITY, group="blue")


def authority(group: str) -> VerifyKey:
    if group != "blue":
        raise EvidenceError(f"no group {group!r} here")
    return AUTHORITY.public


def test_a_standing_order_says_what_was_signed() -> None:
    found = standing.verify(GIVEN, authority)
    assert (found.vm, found.group, found.platforms, found.serial) == (VM, "blue", ("rack1", "rack2"), 3)
    assert found.digest == envelope.digest(STANDING, GIVEN)
    assert standing.verify(standing.give(VM, [], 4, AUTHORITY, group="blue"), authority).platforms == ()


def test_it_is_told_apart_from_other_statements() -> None:
    other = order.give(VM, 1, "a", "b", AUTHORITY)
    assert standing.is_standing(GIVEN) and not standing.is_standing(other) and not standing.is_standing(b"{}")
    with pytest.raises(EvidenceError):
        standing.verify(other, authority)


def test_a_changed_or_foreign_one_is_refused() -> None:
    for _, forged in forgeries(GIVEN):
        with pytest.raises(EvidenceError):
            standing.verify(forged, authority)
    with pytest.raises(EvidenceError, match="not signed by anybody"):
        standing.verify(standing.give(VM, ["a", "b"], 3, STRANGER, group="blue"), authority)
    with pytest.raises(EvidenceError, match="no group 'red'"):
        standing.verify(standing.give(VM, ["a", "b"], 3, AUTHORITY, group="red"), authority)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vm", "a"),
        ("vm", VM.upper()),
        ("serial", 0),
        ("serial", True),
        ("platforms", "rack1"),
        ("platforms", ["a b"]),
        ("platforms", [1]),
        ("platforms", [f"p{n}" for n in range(standing.MAX_PLATFORMS + 1)]),
        ("issued", 5),
    ],
)
def test_one_that_nobody_could_follow_is_refused(field: str, value: object) -> None:
    signed = envelope.sign(STANDING, {**body_of(STANDING, GIVEN), field: value}, AUTHORITY)
    with pytest.raises(EvidenceError):
        standing.verify(signed, authority)


@pytest.mark.parametrize(
    ("vm", "platforms", "serial"),
    [("x", ["a", "b"], 1), (VM, ["a"], 1), (VM, ["a", "a"], 1), (VM, ["a", "b c"], 1), (VM, ["a", "b"], 0)],
)
def test_one_that_nobody_could_follow_is_not_given(vm: str, platforms: list[str], serial: int) -> None:
    with pytest.raises(ConfigError):
        standing.give(vm, platforms, serial, AUTHORITY)
