"""What was answered survives; what is old is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from manager_vm.vtpm import statefile
from manager_vm.wire import tpm
from tests.integration import raw
from tests.integration.harness import Manager, Refused, until

INDEX = 0x1500001


@pytest.fixture
def written(manager: Manager) -> Manager:
    """vTPM "a" has an NV index that holds "old"."""
    manager.add("a")
    manager.guest("a").define(hex(INDEX))
    manager.guest("a").write(hex(INDEX), b"old" + bytes(29))
    return manager


def run_file(manager: Manager) -> Path:
    """The state file of the current run; there is one vTPM."""
    (path,) = (manager.state / "runs").rglob(statefile.NAME)
    return path


def test_an_answered_write_survives_the_death_of_everything(written: Manager) -> None:
    for number in range(1, 11):
        link = written.link("a")
        value = number.to_bytes(32, "big")
        assert raw.rc(link.execute(raw.nv_write(INDEX, value))) == 0
        written.kill()
        link.close()
        written.start()
        written.ctl("boot", "a", str(1 + number))
        assert written.guest("a").read(hex(INDEX)) == value


def test_a_write_is_synced_before_it_is_answered_and_a_read_is_not(written: Manager) -> None:
    link = written.link("a")
    trace = written.directory / "trace"
    watched = "trace=fsync,sendto"
    tracer = subprocess.Popen(["strace", "-f", "-y", "-e", watched, "-o", str(trace), "-p", str(written.pid)])
    try:
        until(lambda: trace.exists() and tracer.poll() is None, what="strace runs")
        time.sleep(0.3)
        link.execute(tpm.get_random(8))
        assert "fsync(" not in trace.read_text()
        assert raw.rc(link.execute(raw.nv_write(INDEX, b"n" * 32))) == 0
        synced = [line for line in trace.read_text().splitlines() if "fsync(" in line]
        assert any(statefile.NAME in line for line in synced)
        assert any(re.search(r"/runs/[0-9a-f-]+>", line) for line in synced)
    finally:
        tracer.terminate()
        tracer.wait()
        link.close()


def test_the_state_file_of_an_earlier_run_is_refused(written: Manager) -> None:
    old = written.directory / "old"
    shutil.copy2(run_file(written), old)
    written.ctl("stop", "a")
    written.ctl("start", "a")
    written.guest("a").write(hex(INDEX), b"new" + bytes(29))
    written.kill()
    target = run_file(written)
    shutil.copy2(old, target)
    shutil.chown(target, target.parent.stat().st_uid, target.parent.stat().st_gid)
    written.start()
    with pytest.raises(Refused, match="state file of the last run is damaged or not of that run") as refused:
        written.ctl("boot", "a", "2")
    assert refused.value.code == 6
    assert_quarantined(written, "not of that run")


def test_the_state_blob_of_an_earlier_park_is_refused(written: Manager) -> None:
    written.ctl("stop", "a")
    (blob,) = (written.state / "blobs").iterdir()
    old = blob.read_bytes()
    written.ctl("start", "a")
    written.guest("a").write(hex(INDEX), b"new" + bytes(29))
    written.ctl("stop", "a")
    (newer,) = (written.state / "blobs").iterdir()
    assert newer.name != blob.name
    newer.write_bytes(old)
    with pytest.raises(Refused, match="older, or was changed") as refused:
        written.ctl("start", "a")
    assert refused.value.code == 6
    assert_quarantined(written, "older, or was changed")


def test_an_older_manifest_is_refused(written: Manager) -> None:
    old = (written.state / "manifest").read_bytes()
    written.ctl("create", "b")
    written.stop()
    (written.state / "manifest").write_bytes(old)
    code, line = written.refuse_to_start()
    assert code == 6
    assert "not the anchored one: it is older, or was changed; restore the newest state disk" in line


@pytest.mark.parametrize("part", ["manifest", "keyslot"])
def test_a_missing_part_of_the_state_is_refused_and_never_made_anew(written: Manager, part: str) -> None:
    written.stop()
    (written.state / part).unlink()
    code, line = written.refuse_to_start()
    assert code == 6
    assert "restore" in line
    assert not (written.state / part).exists()


def test_another_hardware_tpm_opens_nothing_and_its_own_opens_all_again(written: Manager) -> None:
    written.stop()
    own = written.directory / "hwtpm"
    own.rename(written.directory / "kept")
    code, line = written.refuse_to_start()
    assert code == 6 and "not the one that the root key is sealed to" in line
    shutil.rmtree(own)
    (written.directory / "kept").rename(own)
    written.start()
    assert written.show("a")["state"] == "running"


def assert_quarantined(manager: Manager, reason: str) -> None:
    """No way out of quarantine that an operator could take by accident; the reason is shown."""
    shown = manager.show("a")
    assert shown["state"] == "quarantined"
    assert reason in shown["reason"]
    until(lambda: not manager.show("a")["live"], what="the guest's last sign of life is old")
    files = sorted(path.name for path in manager.state.rglob("*") if path.is_file())
    for verb in (("start", "a"), ("start", "a", "--power-on"), ("stop", "a"), ("destroy", "a", "--yes")):
        with pytest.raises(Refused, match="is quarantined; see 'show a'") as refused:
            manager.ctl(*verb)
        assert refused.value.code == 15
    with pytest.raises(Refused, match="quarantined"):
        manager.ctl("boot", "a", "9")
    assert sorted(path.name for path in manager.state.rglob("*") if path.is_file()) == files
    manager.stop()
    manager.start()
    assert manager.show("a")["state"] == "quarantined"
    assert reason in manager.show("a")["reason"]
