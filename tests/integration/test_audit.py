"""The audit log of real managers: who asked for what, anchored, and verified with and without the manager."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from manager_vm.ctl.client import Client
from manager_vm.errors import EvidenceError, UnknownVtpmError
from manager_vm.trust.operator import Role
from manager_vm.trust.signing import SigningKey
from tests.integration.conftest import Make
from tests.integration.harness import Manager, Refused, environment, until
from tests.integration.test_operators import People, local_key, send, signed


def entries(manager: Manager, last: int = 1000) -> list[dict[str, Any]]:
    """The whole log."""
    found: list[dict[str, Any]] = manager.ctl("audit", "--last", str(last))
    return found


def said(manager: Manager) -> list[str]:
    """Event, and verb or vTPM, of each entry."""
    return [
        f"{each['event']} {each.get('verb') or each.get('vtpm') or ''.join(each.get('vtpms', ''))}".strip()
        for each in entries(manager)
    ]


def verified(manager: Manager) -> dict[str, Any]:
    """What the client finds out about the chain."""
    found: dict[str, Any] = manager.ctl("audit", "--verify")
    return found


def test_the_log_says_who_asked_for_what_and_what_became_of_it(manager: Manager) -> None:
    manager.add("a")
    manager.ctl("boot", "a", "2")
    with pytest.raises(Refused):
        manager.ctl("create", "a")
    manager.ctl("stop", "a")
    manager.ctl("detach", "a")
    manager.ctl("destroy", "a", "--yes")
    manager.ctl("list")
    assert said(manager) == [
        *("provisioned", "manager started", "platform enrolled"),
        *("request create", "created a", "outcome create"),
        *("attached a", "boot a", "boot a"),
        *("request create", "outcome create"),
        *("request stop", "outcome stop"),
        "detached a",
        *("request destroy", "destroyed a", "outcome destroy"),
    ]
    log = entries(manager)
    assert {each["operator"] for each in log if "operator" in each} == {"local"}
    assert {each["key"] for each in log if "key" in each} == {local_key(manager).public.id}
    outcomes = [each["outcome"] for each in log if each["event"] == "outcome"]
    assert [text.split(":")[0] for text in outcomes] == ["ok", "BusyError", "ok", "ok"]
    assert [each["n"] for each in log] == list(range(1, len(log) + 1))


def test_an_entry_is_anchored_with_the_commit_that_it_speaks_of(manager: Manager) -> None:
    manager.ctl("create", "a")
    log = entries(manager)
    assert [(each["event"], each["anchored"]) for each in log[-3:]] == [
        ("request", True),
        ("created", True),
        ("outcome", False),
    ]
    assert verified(manager) == {"first": 1, "count": 6, "digest": log[-1]["digest"], "unanchored": 1}


def test_after_a_clean_end_everything_is_anchored_and_the_chain_goes_on(manager: Manager) -> None:
    manager.ctl("create", "a")
    manager.stop()
    manager.start()
    last = entries(manager)[-1]
    assert (last["event"], last["unanchored"], last["cut"]) == ("manager started", 0, 0)
    assert verified(manager)["unanchored"] == 1
    assert manager.ctl("status")["warnings"] == []


def test_after_a_crash_unanchored_entries_are_kept_and_counted(manager: Manager) -> None:
    manager.add("a")
    for _ in range(3):
        with pytest.raises(Refused):
            manager.ctl("create", "a")
    manager.kill()
    with open(manager.state / "audit.log", "ab") as file:
        file.write(b'{"n":99,"prev')
    manager.start()
    found = [each for each in entries(manager) if each["event"] == "manager started"][-1]
    assert (found["unanchored"], found["cut"]) == (6, 13)
    assert "failed a" in said(manager)
    assert manager.ctl("status")["warnings"] == []
    verified(manager)


def cut(log: Path) -> None:
    log.write_bytes(b"\n".join(log.read_bytes().splitlines()[:2]) + b"\n")


def change(log: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b'"operator":"local"', b'"operator":"nobody"', 1))


def swap(log: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    lines[1], lines[2] = lines[2], lines[1]
    log.write_bytes(b"".join(lines))


def inflate(log: Path) -> None:
    log.write_bytes(bytes(3 << 20))


@pytest.mark.parametrize("damage", [cut, change, swap, Path.unlink, inflate], ids=lambda f: f.__name__)
def test_a_log_that_was_tampered_with_is_reported_and_keeps_no_vtpm_from_serving(manager: Manager, damage: Any) -> None:
    manager.add("a")
    before = manager.guest("a").extend(16)
    manager.stop()
    anchored = json.loads((manager.state / "audit.log").read_bytes().splitlines()[-1])["n"]
    damage(manager.state / "audit.log")
    manager.start()
    assert manager.guest("a").pcr(16) == before
    (warning,) = manager.ctl("status")["warnings"]
    assert "audit" in warning and "a new chain says so" in warning
    assert "AUDIT LOG BROKEN" in manager.log()
    log = entries(manager)
    assert (log[0]["n"], log[0]["event"]) == (anchored + 1, "chain broken")
    assert log[1]["event"] == "manager started" and log[1]["anchored"]
    verified(manager)
    manager.stop()
    manager.start()
    assert manager.ctl("status")["warnings"] == []  # the chain itself says it from now on
    assert entries(manager)[0]["event"] == "chain broken"


def test_a_copy_is_verified_without_a_manager_and_the_head_shows_what_is_missing(
    manager: Manager, tmp_path: Path
) -> None:
    manager.add("a")
    manager.ctl("stop", "a")
    head = [each for each in entries(manager) if each["anchored"]][-1]
    copy = tmp_path / "audit.log"
    shutil.copy(manager.state / "audit.log", copy)
    manager.stop()

    def verify(*args: str) -> Any:
        return manager.ctl("audit", "verify", str(copy), *args)

    assert verify()["unanchored"] is None
    assert verify("--head", head["digest"])["unanchored"] == 1
    lines = copy.read_bytes().splitlines(keepends=True)
    copy.write_bytes(b"".join(lines[: head["n"] - 1]))
    assert verify()["count"] == head["n"] - 1
    with pytest.raises(Refused, match="is not in this audit log") as refused:
        verify("--head", head["digest"])
    assert refused.value.code == 6
    copy.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    with pytest.raises(Refused, match="does not follow"):
        verify()
    with pytest.raises(Refused, match="64 hex digits"):
        verify("--head", "abc")
    with pytest.raises(Refused, match="cannot read"):
        manager.ctl("audit", "verify", str(tmp_path / "none"))


def test_auditors_read_the_log_operators_and_strangers_do_not(manager: Manager) -> None:
    people = People(manager)
    for role in Role:
        people.enrol(role, role)
    assert people.ctl("auditor", "audit") == people.ctl("admin", "audit")
    with pytest.raises(Refused, match="the role operator may not ask for 'audit'"):
        people.ctl("operator", "audit")
    with (
        Client.connect(manager.directory / "admin.sock") as client,
        pytest.raises(EvidenceError, match="must be signed"),
    ):
        client.call("audit")


def test_refused_requests_of_known_keys_are_in_the_log_and_a_flood_of_them_only_in_part(manager: Manager) -> None:
    people = People(manager)
    people.enrol("carol", Role.AUDITOR)
    with pytest.raises(Refused):
        people.ctl("carol", "create", "b")
    eve = people.key("eve")
    with Client.connect(manager.directory / "admin.sock") as client:
        message = signed(client, local_key(manager), "create", name="b")
        send(client, message)
        for _ in range(300):
            with pytest.raises(EvidenceError, match="replay"):
                send(client, message)
        stranger = signed(client, eve, "create", name="c")
        for _ in range(300):
            with pytest.raises(EvidenceError, match="not enrolled"):
                send(client, stranger)
    refused = [each for each in entries(manager) if each["event"] == "refused"]
    assert len(refused) in (20, 21)
    assert "the role auditor may not ask for 'create'" in refused[0]["outcome"]
    assert "replay" in refused[1]["outcome"] and refused[1]["key"] == local_key(manager).public.id
    assert not any(eve.public.id == each.get("key") for each in entries(manager))


def test_new_entries_are_followed_one_json_object_a_line(manager: Manager) -> None:
    argv = manager._ctl_argv(["audit", "--follow", "4"])
    with subprocess.Popen(argv, env=environment(manager.directory), stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        manager.ctl("create", "a")
        found = [json.loads(follower.stdout.readline()) for _ in range(3)]
        assert follower.poll() is None
        follower.terminate()
    assert [(each["n"], each["event"]) for each in found] == [(4, "request"), (5, "created"), (6, "outcome")]


def test_a_log_of_many_pages_and_two_files_comes_whole(manager: Manager) -> None:
    key = SigningKey.load(manager.authority / "operator.key")
    with manager.admin(key) as admin:
        for _ in range(1100):
            with pytest.raises(UnknownVtpmError):
                admin.call("stop", name="n" * 300)
    assert (manager.state / "audit.log.1").exists()
    found = verified(manager)
    assert found["first"] == 1 and found["count"] > 2200 and found["unanchored"] < 300
    assert [each["n"] for each in entries(manager, 1500)] == list(range(found["count"] - 1499, found["count"] + 1))


def test_a_swtpm_that_died_and_a_quarantine_are_in_the_log(make: Make) -> None:
    manager = make().start()
    manager.add("a")
    subprocess.run(["kill", "-KILL", str(manager.swtpm_pid("a"))], check=True)
    until(lambda: "failed a" in said(manager), what="the death is in the log")
    (file,) = (manager.state / "runs").rglob("tpm2-00.permall")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(Refused):
        manager.ctl("boot", "a", "2")
    quarantined = entries(manager)[-1]
    assert (quarantined["event"], quarantined["vtpms"], quarantined["anchored"]) == ("quarantined", ["a"], True)
    assert "damaged" in quarantined["reason"]
