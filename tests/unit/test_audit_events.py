"""store.events, protocol.limit, server.journal: what a commit does is in the log that the same commit anchors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manager_vm.crypto import Key
from manager_vm.errors import BusyError, EvidenceError, StoreError
from manager_vm.protocol.lifecycle import State
from manager_vm.protocol.limit import Limit
from manager_vm.server.journal import Journal
from manager_vm.store import events
from manager_vm.store.audit import AuditLog
from manager_vm.store.manifest import Manifest
from manager_vm.store.records import Contents, VtpmKeys, VtpmRecord
from manager_vm.trust import operator
from manager_vm.trust.operator import Role
from manager_vm.trust.signing import SigningKey
from manager_vm.wire import audit
from tests.fakes import FileAnchor
from tests.unit.statements import AUTHORITY

ROOT = Key(bytes(range(32)))
KEYS = VtpmKeys(Key(bytes(32)))
ALICE = operator.verify(operator.enroll("alice", SigningKey.create().public, Role.ADMIN, AUTHORITY), AUTHORITY.public)


def record(name: str, **more: Any) -> VtpmRecord:
    """A vTPM that is off."""
    return replace(VtpmRecord(f"uuid-{name}", name, State.OFF, 1, "x.blob", bytes(32), {}, {}), **more)


EMPTY = Contents(1, b"certificate", b"")
BEFORE = EMPTY.with_vtpm(record("a"), KEYS).with_vtpm(record("b"), KEYS)


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (BEFORE, []),
        (BEFORE.with_vtpm(record("a", state=State.RUNNING, run="r")), []),
        (BEFORE.with_vtpm(record("c")), [("created", {"vtpms": ["c"]})]),
        (BEFORE.without_vtpm("uuid-a"), [("destroyed", {"vtpms": ["a"]})]),
        (
            BEFORE.with_vtpm(record("a", channel="unix:/x", boot=2)),
            [("attached", {"vtpm": "a", "channel": "unix:/x"}), ("boot", {"vtpm": "a", "boot": 2})],
        ),
        (
            BEFORE.with_vtpm(record("a", state=State.QUARANTINED, reason="bad")),
            [("quarantined", {"vtpms": ["a"], "reason": "bad"})],
        ),
        (
            BEFORE.with_vtpm(record("a", state=State.FAILED, reason="died")).with_vtpm(
                record("b", state=State.FAILED, reason="died")
            ),
            [("failed", {"vtpms": ["a", "b"], "reason": "died"})],
        ),
        (replace(BEFORE, operators={"k": b"x"}), [("operators changed", {"keys": ["k"], "superseded": []})]),
    ],
)
def test_every_important_change_is_an_event(new: Contents, expected: list[events.Event]) -> None:
    assert events.between(BEFORE, new) == [(event, {**fields, "serial": 1}) for event, fields in expected]


def test_a_change_of_operators_is_an_event_and_so_is_a_detach() -> None:
    changed = replace(EMPTY, operators={"k": b"x"})
    assert [event for event, _ in events.between(EMPTY, changed)] == ["operators changed"]
    attached = BEFORE.with_vtpm(record("a", channel="unix:/x"))
    assert events.between(attached, BEFORE) == [("detached", {"vtpm": "a", "channel": "", "serial": 1})]


def test_a_flood_is_noted_in_part_and_the_rest_is_counted() -> None:
    limit = Limit(3, 60.0)
    assert [limit.allows(0.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert (limit.omitted(), limit.omitted()) == (2, 0)
    assert not limit.allows(59.0)
    assert limit.allows(61.0)
    assert not limit.allows(61.0)
    assert [limit.allows(10_000.0) for _ in range(5)] == [True] * 3 + [False] * 2


# -- the journal -------------------------------------------------------------------------------------------------


class Kept:
    """A manifest with its journal."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.anchor = FileAnchor(directory / "anchor")
        self.manifest = Manifest.create(directory, ROOT, self.anchor, EMPTY)
        self.journal = Journal(AuditLog.open(directory, self.manifest.contents.audit), self.manifest)

    def entries(self) -> list[dict[str, Any]]:
        """All of the log, its chain verified up to the anchored head."""
        anchored = Manifest.load(self.directory, ROOT, self.anchor).contents.audit
        lines = (self.directory / "audit.log").read_bytes().splitlines()
        audit.verify(lines, anchored.digest)
        return [json.loads(line) for line in lines]

    def events(self) -> list[str]:
        return [entry["event"] for entry in self.entries()]

    def anchored(self) -> int:
        """How many entries a new start finds anchored."""
        return Manifest.load(self.directory, ROOT, self.anchor).contents.audit.count


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_a_request_stands_before_what_it_does_and_in_the_same_commit(kept: Kept) -> None:
    with kept.journal.request(ALICE, "create", {"name": "a"}):
        assert kept.events() == ["request"]
        assert kept.anchored() == 0
        kept.manifest.commit(lambda contents: contents.with_vtpm(record("a"), KEYS))
        assert kept.anchored() == 2
    request, created, outcome = kept.entries()
    assert (request["operator"], request["verb"], request["args"]) == ("alice", "create", {"name": "a"})
    assert request["key"] == ALICE.key.id
    assert (created["event"], created["vtpms"], created["serial"]) == ("created", ["a"], 2)
    assert (outcome["request"], outcome["outcome"]) == (1, "ok")


def test_a_request_that_fails_has_its_error_as_outcome(kept: Kept) -> None:
    with pytest.raises(BusyError), kept.journal.request(ALICE, "create", {"name": "a"}):
        raise BusyError("the name is taken")
    with pytest.raises(KeyError), kept.journal.request(ALICE, "create", {"name": "a"}):
        raise KeyError("a defect")
    assert [entry.get("outcome") for entry in kept.entries()] == [
        None,
        "BusyError: the name is taken",
        None,
        "ended by a defect; see the manager's log",
    ]


def test_a_request_that_cannot_be_noted_is_not_performed(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: AuditLog, *events: object) -> None:
        raise StoreError("the state disk is full")

    monkeypatch.setattr(AuditLog, "append", full)
    performed = []
    with pytest.raises(StoreError, match="full"), kept.journal.request(ALICE, "stop", {}):
        performed.append("stop")
    assert performed == []
    kept.manifest.commit(lambda contents: contents.with_vtpm(record("a"), KEYS))  # but a guest's vTPM goes on


def test_arguments_are_short_and_bytes_are_their_digest(kept: Kept) -> None:
    args = {
        "statement": b"secret",
        "name": "x" * 1000,
        "list": [1] * 1000,
        "on": True,
        **{f"a{n}": n for n in range(99)},
    }
    with kept.journal.request(ALICE, "operator_add", args):
        pass
    line = json.dumps(kept.entries()[0]["args"])
    assert "secret" not in line and len(line) < 2500
    assert kept.entries()[0]["args"]["statement"].startswith("sha256:")


def test_refusals_are_noted_until_they_are_a_flood(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("manager_vm.server.journal.time.monotonic", lambda: now)
    for _ in range(1000):
        kept.journal.refused(ALICE.key.id, EvidenceError("it is a replay"))
    assert kept.events() == ["refused"] * 20
    now += 60.0
    kept.journal.refused(ALICE.key.id, EvidenceError("it is a replay"))
    last = kept.entries()[-1]
    assert (last["omitted"], last["outcome"]) == (980, "EvidenceError: it is a replay")


def test_entries_without_a_commit_are_anchored_from_time_to_time_and_at_a_clean_end(kept: Kept) -> None:
    kept.journal.start("1", broken=False)
    assert kept.anchored() == 0
    for _ in range(128):
        with kept.journal.request(ALICE, "stop", {}):
            pass
    assert kept.anchored() == 256
    kept.journal.note("something")
    kept.journal.close()
    assert kept.anchored() == len(kept.entries()) == 260
    assert kept.events()[-1] == "manager ended"


def test_a_start_says_what_it_has_found_unanchored(kept: Kept) -> None:
    for _ in range(3):
        kept.journal.note("something")
    with open(kept.directory / "audit.log", "ab") as file:
        file.write(b'{"n":4,')
    again = Journal(AuditLog.open(kept.directory, kept.manifest.contents.audit), kept.manifest)
    again.start("2", broken=False)
    last = kept.entries()[-1]
    assert (last["event"], last["unanchored"], last["cut"], last["version"]) == ("manager started", 3, 7, "2")


def test_a_commit_that_fails_leaves_its_events_with_a_serial_that_is_used_again(kept: Kept) -> None:
    (kept.directory / "manifest.pending").mkdir()
    with pytest.raises(StoreError):
        kept.manifest.commit(lambda contents: contents.with_vtpm(record("a"), KEYS))
    (kept.directory / "manifest.pending").rmdir()
    kept.manifest.commit(lambda contents: contents.with_vtpm(record("b"), KEYS))
    assert [(entry["vtpms"], entry["serial"]) for entry in kept.entries()] == [(["a"], 2), (["b"], 2)]
    assert kept.anchored() == 2
