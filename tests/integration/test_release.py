"""The way out of quarantine: what is whole goes on as it was, what is lost is lost in the open."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from manager_vm.errors import QuarantinedError, StateError
from manager_vm.trust.operator import Role
from tests.integration.harness import Manager, Refused, until
from tests.integration.test_audit import entries
from tests.integration.test_operators import People

INDEX = "0x1500001"
OLD, NEW = b"old".ljust(32, b"."), b"new".ljust(32, b".")
ZERO = "00" * 32


def run_file(manager: Manager) -> Path:
    """swtpm's state file of the only run there is."""
    (found,) = (manager.state / "runs").rglob("tpm2-00.permall")
    return found


def blob_file(manager: Manager) -> Path:
    """The only blob there is."""
    (found,) = (manager.state / "blobs").iterdir()
    return found


def damage(path: Path) -> bytes:
    """What stood there."""
    before = path.read_bytes()
    with open(path, "r+b") as file:
        file.truncate(100)
    return before


def restore(path: Path, content: bytes) -> None:
    """Put it back, in place: owner and mode stay."""
    with open(path, "r+b") as file:
        file.write(content)


def quarantined(manager: Manager, *verb: str) -> None:
    """The vTPM goes into quarantine by this verb, which finds the damage."""
    with pytest.raises(Refused) as refused:
        manager.ctl(*verb)
    assert refused.value.code == 6
    assert manager.show("a")["state"] == "quarantined"


def stays(manager: Manager, match: str, *options: str) -> None:
    """A release is refused and changes nothing."""
    until(lambda: not manager.show("a")["live"], what="the guest's last sign of life is old")
    before = manager.show("a")
    files = sorted(manager.state.glob("[br][lu][on][bs]/**/*"))
    with pytest.raises(Refused, match=match) as refused:
        manager.ctl("release", "a", *options)
    assert refused.value.code == QuarantinedError.exit_code
    assert manager.show("a") == before
    assert sorted(manager.state.glob("[br][lu][on][bs]/**/*")) == files


@pytest.fixture
def damaged_run(manager: Manager) -> tuple[Manager, bytes]:
    """A quarantined vTPM with a damaged run file (and what that was). OLD is in its anchored blob, NEW in that run."""
    manager.add("a")
    guest = manager.guest("a")
    guest.define(INDEX)
    guest.write(INDEX, OLD)
    guest.extend(16)
    manager.ctl("stop", "a")
    manager.ctl("start", "a")
    guest.write(INDEX, NEW)
    os.kill(manager.swtpm_pid("a"), signal.SIGKILL)
    until(lambda: manager.show("a")["state"] == "failed", what="the death is recorded")
    before = damage(run_file(manager))
    quarantined(manager, "boot", "a", "2")
    return manager, before


@pytest.fixture
def damaged_blob(manager: Manager) -> tuple[Manager, bytes, str]:
    """A quarantined vTPM that was parked and whose blob is damaged (and what it was), and its PCR 16."""
    manager.add("a")
    pcr = manager.guest("a").extend(16)
    manager.ctl("stop", "a")
    before = damage(blob_file(manager))
    quarantined(manager, "start", "a")
    return manager, before, pcr


def test_a_run_file_that_was_put_back_is_verified_and_nothing_is_lost(damaged_run: tuple[Manager, bytes]) -> None:
    manager, before = damaged_run
    stays(manager, "stays quarantined: the state file of the last run is damaged.*--discard-run")
    restore(run_file(manager), before)
    shown = manager.ctl("release", "a")
    assert (shown["state"], "released, its state is whole" in shown["released"]) == ("failed", True)
    assert "state file of the last run is damaged" in shown["released"]
    with pytest.raises(Refused, match="reset the guest"):
        manager.ctl("start", "a")
    manager.ctl("boot", "a", "3")
    assert manager.guest("a").read(INDEX) == NEW
    assert manager.guest("a").pcr(16) == ZERO


def test_a_run_that_is_discarded_falls_back_to_the_anchored_state_and_the_mark_stays(
    damaged_run: tuple[Manager, bytes],
) -> None:
    manager, _ = damaged_run
    manager.stop()
    manager.start()
    with pytest.raises(Refused, match="confirm with --yes"):
        manager.ctl("release", "a", "--discard-run")
    shown = manager.ctl("release", "a", "--discard-run", "--yes")
    assert shown["state"] == "failed" and "without its last run" in shown["reason"]
    assert list((manager.state / "runs").iterdir()) == []
    with pytest.raises(Refused, match="reset the guest"):
        manager.ctl("start", "a")  # its blob has PCRs of the time before: they never come back
    manager.ctl("boot", "a", "3")
    assert manager.guest("a").read(INDEX) == OLD
    assert manager.guest("a").pcr(16) == ZERO
    manager.ctl("stop", "a")
    manager.stop()
    manager.start()
    manager.ctl("start", "a")
    assert manager.show("a")["released"] == shown["released"]
    assert "all since the last anchored state is lost" in shown["released"]


def test_a_missing_run_is_refused_too_until_its_loss_is_accepted(damaged_run: tuple[Manager, bytes]) -> None:
    manager, _ = damaged_run
    run_file(manager).unlink()
    stays(manager, "the state file of the last run is missing")
    damage(blob_file(manager))
    stays(
        manager, "stays quarantined: the state blob .* older, or was changed.*--discard-state", "--discard-run", "--yes"
    )


def test_a_blob_that_was_put_back_is_verified_and_the_park_goes_on_where_it_was(
    damaged_blob: tuple[Manager, bytes, str],
) -> None:
    manager, before, pcr = damaged_blob
    stays(manager, "stays quarantined: the state blob .* older, or was changed.*--discard-state")
    with pytest.raises(Refused, match="no run that could be discarded") as refused:
        manager.ctl("release", "a", "--discard-run", "--yes")
    assert refused.value.code == StateError.exit_code
    restore(blob_file(manager), before)
    assert manager.ctl("release", "a")["state"] == "parked"
    manager.ctl("start", "a")
    assert manager.guest("a").pcr(16) == pcr


def test_a_lost_state_leads_to_destruction_only(damaged_blob: tuple[Manager, bytes, str]) -> None:
    manager, _, _ = damaged_blob
    assert manager.ctl("release", "a", "--discard-state", "--yes")["state"] == "failed"
    quarantined(manager, "boot", "a", "2")
    manager.ctl("release", "a", "--discard-state", "--yes")
    manager.ctl("detach", "a")
    manager.ctl("destroy", "a", "--yes")
    assert manager.ctl("list") == list((manager.state / "blobs").iterdir()) == []


def test_a_vtpm_that_was_off_is_off_again(manager: Manager) -> None:
    manager.ctl("create", "a")
    before = damage(blob_file(manager))
    quarantined(manager, "start", "a", "--power-on")
    restore(blob_file(manager), before)
    assert manager.ctl("release", "a")["state"] == "off"
    manager.ctl("attach", "a")
    assert manager.guest("a").pcr(16) == ZERO


def test_only_an_admin_releases_only_what_is_quarantined_and_the_log_says_so(
    damaged_blob: tuple[Manager, bytes, str],
) -> None:
    manager, before, _ = damaged_blob
    people = People(manager)
    people.enrol("bob", Role.OPERATOR)
    with pytest.raises(Refused, match="the role operator may not ask for 'release'"):
        people.ctl("bob", "release", "a")
    restore(blob_file(manager), before)
    manager.ctl("release", "a")
    with pytest.raises(Refused, match="it is parked"):
        manager.ctl("release", "a")
    log = entries(manager)
    (at,) = (index for index, entry in enumerate(log) if entry["event"] == "released")
    request, released, outcome = log[at - 1 : at + 2]
    assert (request["verb"], request["args"]) == (
        "release",
        {"name": "a", "discard": "", "group": "default"},
    )
    assert (released["event"], released["vtpm"], released["state"]) == ("released", "a", "parked")
    assert "its state is whole" in released["mark"] and outcome["outcome"] == "ok"
