"""server.standing: where a VM may take its vTPM, as either manager sees it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from manager_vm.errors import EvidenceError, MigrationError, StateError
from manager_vm.server import standing as rules
from manager_vm.store.records import Contents
from manager_vm.trust import standing
from tests.unit.statements import AUTHORITY, STRANGER

VM, OTHER = "0d2c1a4e-5b7f-4c1d-9a3e-1f2b3c4d5e6f", "11111111-2222-4333-8444-555555555555"
EMPTY = Contents(1, b"certificate", b"key", authority=AUTHORITY.public.der)
SAID = {"vtpm": OTHER, "generation": "4", "park": "ab" * 16, "from": "rack1", "name": "web"}


def given(serial: int = 1, *platforms: str, vm: str = VM) -> bytes:
    return standing.give(vm, platforms or ("rack1", "rack2"), serial, AUTHORITY)


def revoked(serial: int) -> bytes:
    return standing.give(VM, (), serial, AUTHORITY)


def test_the_newest_counts_and_no_older_one_comes_back() -> None:
    contents = rules.add(rules.add(EMPTY, given(1)), given(3, "rack2", "rack3"))
    assert [row["platforms"] for row in rules.table(contents)] == [["rack2", "rack3"]]
    assert rules.add(contents, contents.standing[VM]) is contents  # said again
    for old in (given(1), given(3)):
        with pytest.raises(EvidenceError, match="serial"):
            rules.add(contents, old)


def test_only_the_groups_authority_gives_one() -> None:
    with pytest.raises(EvidenceError, match="not signed by anybody"):
        rules.add(EMPTY, standing.give(VM, ("rack1", "rack2"), 1, STRANGER))


def test_a_manager_keeps_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MOST", 1)
    contents = rules.add(EMPTY, given(1))
    with pytest.raises(StateError):
        rules.add(contents, given(1, vm=OTHER))
    rules.add(contents, given(2))


@pytest.mark.parametrize(
    ("statement", "destination", "why"),
    [(None, "rack2", "no standing order"), (given(1), "rack9", "does not name"), (revoked(2), "rack2", "revoked")],
)
def test_a_source_lets_a_vtpm_follow_only_where_the_newest_one_leads(
    statement: bytes | None, destination: str, why: str
) -> None:
    contents = EMPTY if statement is None else rules.add(EMPTY, statement)
    with pytest.raises(MigrationError, match=why) as error:
        rules.demand_allowed(contents, VM, "rack1", destination)
    assert error.value.cause == "order"


def test_a_destination_takes_what_a_good_one_and_the_offer_say_together() -> None:
    found = rules.as_order(EMPTY, given(1), SAID, "rack2")
    assert (found.vtpm, found.generation, found.source, found.destination) == (OTHER, 4, "rack1", "rack2")
    assert (found.vm, found.id) == (VM, "ab" * 16)


@pytest.mark.parametrize(
    ("contents", "statement", "said", "here"),
    [
        (rules.add(EMPTY, revoked(2)), given(1), SAID, "rack2"),
        (rules.add(EMPTY, given(2, "rack1", "rack3")), given(1), SAID, "rack2"),
        (EMPTY, revoked(1), SAID, "rack2"),
        (EMPTY, given(1), SAID, "rack1"),
        (EMPTY, given(1), SAID, "rack9"),
        (EMPTY, given(1), {**SAID, "from": "rack9"}, "rack2"),
        (EMPTY, given(1), {**SAID, "generation": "x"}, "rack2"),
        (EMPTY, given(1), {key: SAID[key] for key in SAID if key != "park"}, "rack2"),
        (replace(EMPTY, authority=STRANGER.public.der), given(1), SAID, "rack2"),
    ],
    ids=["revoked here", "newer here", "revoked", "from here", "not here", "not there", "number", "park", "stranger"],
)
def test_a_destination_refuses_what_no_good_one_allows(
    contents: Contents, statement: bytes, said: dict[str, str], here: str
) -> None:
    with pytest.raises(MigrationError) as error:
        rules.as_order(contents, statement, said, here)
    assert error.value.cause == "order"
