"""trust.order: one vTPM, one generation, from one platform to another, by the authority of its group."""

from __future__ import annotations

import pytest

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import envelope, order
from manager_vm.trust.order import ORDER
from manager_vm.trust.signing import VerifyKey
from tests.unit.statements import AUTHORITY, STRANGER, body_of, forgeries

VTPM = "0d2c1a4e-5b7f-4c1d-9a3e-1f2b3c4d5e6f"
GIVEN = order.give(VTPM, 3, "rack1", "rack2", AUTHORITY, group="blue")


def authority(group: str) -> VerifyKey:
    if group != "blue":
        raise EvidenceError(f"no group {group!r} here")
    return AUTHORITY.public


def test_an_order_says_what_was_signed() -> None:
    found = order.verify(GIVEN, authority)
    assert (found.vtpm, found.generation, found.group) == (VTPM, 3, "blue")
    assert (found.source, found.destination) == ("rack1", "rack2")
    assert len(found.id) == 32 and found.digest == envelope.digest(ORDER, GIVEN)


def test_no_two_orders_are_the_same() -> None:
    again = order.give(VTPM, 3, "rack1", "rack2", AUTHORITY, group="blue")
    assert order.verify(again, authority).id != order.verify(GIVEN, authority).id


def test_a_changed_or_foreign_order_is_refused() -> None:
    for _, forged in forgeries(GIVEN):
        with pytest.raises(EvidenceError):
            order.verify(forged, authority)
    foreign = order.give(VTPM, 3, "rack1", "rack2", STRANGER, group="blue")
    with pytest.raises(EvidenceError, match="not signed by anybody"):
        order.verify(foreign, authority)


def test_the_authority_of_one_group_orders_nothing_in_another() -> None:
    with pytest.raises(EvidenceError, match="no group 'red'"):
        order.verify(order.give(VTPM, 3, "rack1", "rack2", AUTHORITY, group="red"), authority)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vtpm", "a"),
        ("vtpm", VTPM.upper()),
        ("generation", 0),
        ("generation", True),
        ("generation", "3"),
        ("source", "rack2"),
        ("destination", "a b"),
        ("id", "00"),
        ("issued", 5),
    ],
)
def test_an_order_that_nobody_could_follow_is_refused(field: str, value: object) -> None:
    signed = envelope.sign(ORDER, {**body_of(ORDER, GIVEN), field: value}, AUTHORITY)
    with pytest.raises(EvidenceError):
        order.verify(signed, authority)


@pytest.mark.parametrize(
    "given",
    [
        ("x", 1, "a", "b"),
        (VTPM, 0, "a", "b"),
        (VTPM, 1, "a", "a"),
        (VTPM, 1, "", "b"),
    ],
)
def test_none_such_is_given(given: tuple[str, int, str, str]) -> None:
    with pytest.raises(ConfigError):
        order.give(*given, AUTHORITY)
