"""What holds a swtpm, as the kernel tells it."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from manager_vm.vtpm import statefile
from tests.integration.harness import Manager

_LIMITS = {"Max open files": "64", "Max core file size": "0", "Max address space": str(256 << 20)}


@pytest.fixture
def three(manager: Manager) -> Manager:
    """vTPMs "a", "b" and "c" run."""
    manager.add("a", "b", "c")
    return manager


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}


def run_directory(manager: Manager, name: str) -> Path:
    """Where this vTPM's swtpm keeps its file."""
    line = Path(f"/proc/{manager.swtpm_pid(name)}/cmdline").read_bytes().decode()
    return Path(line.split("dir=")[1].split(",")[0])


def as_uid(uid: int, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a program as this vTPM's user."""
    wrapped = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all", "--", *argv)
    return subprocess.run(wrapped, capture_output=True, text=True, errors="replace")


def test_every_swtpm_has_a_uid_of_its_own_and_no_privilege(three: Manager) -> None:
    uids = set()
    for name in ("a", "b", "c"):
        found = status(three.swtpm_pid(name))
        assert found["Name"] == "swtpm"
        uid = {*found["Uid"].split(), *found["Gid"].split()}
        assert uid == {str(three.show(name)["uid"])}
        uids |= uid
        assert (found["Groups"], found["NoNewPrivs"], found["Seccomp"]) == ("", "1", "2")
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(found[kind], 16) == 0, kind
    assert len(uids) == 3
    assert "0" not in uids


def test_every_swtpm_has_a_network_and_ipc_namespace_of_its_own(three: Manager) -> None:
    for kind in ("net", "ipc"):
        spaces = {os.readlink(f"/proc/{three.swtpm_pid(name)}/ns/{kind}") for name in ("a", "b", "c")}
        assert len(spaces) == 3
        assert os.readlink(f"/proc/self/ns/{kind}") not in spaces
    routes = Path(f"/proc/{three.swtpm_pid('a')}/net/dev").read_text()
    assert [line.split(":")[0].strip() for line in routes.splitlines()[2:]] == ["lo"]


def test_every_swtpm_has_limits_and_only_its_own_descriptors(three: Manager) -> None:
    for name in ("a", "b", "c"):
        proc = Path(f"/proc/{three.swtpm_pid(name)}")
        limits = (proc / "limits").read_text()
        for limit, value in _LIMITS.items():
            (line,) = (line for line in limits.splitlines() if line.startswith(limit))
            assert line.removeprefix(limit).split()[:2] == [value, value]
        targets = [os.readlink(entry) for entry in (proc / "fd").iterdir()]
        log = str(three.directory / "manager.log")
        allowed = (
            f"{run_directory(three, name)}/",
            "socket:",
            "/dev/null",
            log,
            "pipe:",
        )  # a pipe to itself, for signals
        assert [target for target in targets if not target.startswith(allowed)] == []
        assert sum(target.startswith("socket:") for target in targets) == 2


def test_no_vtpm_can_read_the_state_of_another_or_of_the_manager(three: Manager) -> None:
    own, other = run_directory(three, "a"), run_directory(three, "b")
    uid = three.show("a")["uid"]
    assert as_uid(uid, "cat", str(own / statefile.NAME)).returncode == 0  # its own it can read: the check can fail
    forbidden = [other, other / statefile.NAME, three.state / "runs", three.state / "blobs"]
    forbidden += [three.state / name for name in ("keyslot", "manifest", "audit.log")]
    forbidden += list((three.state / "blobs").iterdir())
    for path in forbidden:
        assert path.exists()
        done = as_uid(uid, "cat" if path.is_file() else "ls", str(path))
        assert done.returncode != 0, path
        assert "Permission denied" in done.stderr
    for path in (three.directory / "admin.sock", three.directory / "host.sock"):
        connect = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
        assert "PermissionError" in as_uid(uid, "/usr/bin/python3", "-c", connect).stderr


def test_no_vtpm_can_touch_the_process_of_another(three: Manager) -> None:
    uid, victim = three.show("a")["uid"], three.swtpm_pid("b")
    assert as_uid(uid, "kill", "-0", str(three.swtpm_pid("a"))).returncode == 0
    assert as_uid(uid, "kill", "-0", str(victim)).returncode != 0
    assert as_uid(uid, "ls", f"/proc/{victim}/fd").returncode != 0


def test_directories_and_files_of_a_run_are_private(three: Manager) -> None:
    for name in ("a", "b", "c"):
        path, uid = run_directory(three, name), three.show(name)["uid"]
        for entry, mode in ((path, 0o700), (path / statefile.NAME, 0o600)):
            found = entry.stat()
            assert (found.st_uid, stat.S_IMODE(found.st_mode) & 0o077) == (uid, 0), entry
            assert stat.S_IMODE(found.st_mode) & mode


def test_no_key_is_on_a_command_line_or_in_an_environment(three: Manager) -> None:
    for pid in (three.pid, *three.swtpms()):
        assert b"key=" not in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"--key", b"")
    environ = Path(f"/proc/{three.swtpm_pid('a')}/environ").read_bytes()
    assert environ.startswith(b"PATH=") and environ.count(b"=") == 1


def test_a_state_file_does_not_show_what_the_guest_stored(three: Manager) -> None:
    secret = b"a-secret-of-32-bytes-in-an-index"
    guest = three.guest("a")
    guest.define("0x1500001")
    guest.write("0x1500001", secret)
    assert secret not in (run_directory(three, "a") / statefile.NAME).read_bytes()
    three.ctl("stop", "a")
    assert [path for path in three.state.rglob("*") if path.is_file() and secret in path.read_bytes()] == []
