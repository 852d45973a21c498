"""Every mistake gets one error that names cause and remedy, with its documented exit code, and changes nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from manager_vm import packages
from tests.integration.conftest import Make
from tests.integration.harness import Manager, Refused, processes

OLD_DPKG = """Package: libtpms0
Status: install ok installed
Version: 0.9.2-3

"""


def refusal(manager: Manager, *args: str) -> tuple[int, str]:
    """(exit code, text), and nothing but one line on stderr."""
    done = manager.vtpmctl(*args)
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("vtpmctl: "), done.stderr
    return done.returncode, lines[0].removeprefix("vtpmctl: ")


@pytest.fixture
def two(manager: Manager) -> Manager:
    """vTPMs "a" (attached) and "b" (off)."""
    manager.add("a")
    manager.ctl("create", "b")
    return manager


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("show", "nobody"), 11, "there is no vTPM 'nobody'; 'list' shows those there are"),
        (("start", "nobody"), 11, "'list' shows"),
        (("attach", "nobody"), 11, "'list' shows"),
        (("destroy", "nobody", "--yes"), 11, "'list' shows"),
        (("create", "a"), 12, "there is a vTPM 'a' already; choose another name or 'destroy a' first"),
        (("create", "../x"), 3, "cannot be a vTPM's name: use 1 to 63 letters"),
        (("create", "x" * 64), 3, "use 1 to 63 letters"),
        (("start", "a"), 13, "it is running already"),
        (("start", "b"), 13, "it has no power: start its VM, or use 'start --power-on'"),
        (("stop", "b"), 13, "it is off already"),
        (("info", "b"), 13, "only a running one can be asked; 'start' it"),
        (("detach", "b"), 13, "not attached to any channel"),
        (("destroy", "a", "--yes"), 12, "'detach a' first"),
        (("destroy", "b"), 3, "confirm with --yes"),
        (("attach", "b", "tcp:1"), 3, "is no channel: use unix:PATH"),
        (("attach", "b", "unix:relative"), 3, "PATH absolute"),
        (("attach", "b", "ivshmem"), 4, "no ivshmem device"),
        (("attach", "b", "virtio-serial:none"), 4, "no virtio-serial port 'none'; add it to the VM"),
        (("attach", "b", "unix:/nonexistent/x.sock"), 8, "does its directory exist?"),
        (("attach", "a", "--boot", "0"), 3, "0 is no boot number"),
        (("boot", "a", str(1 << 63)), 3, "is no boot number"),
        (("boot", "a", str(1 << 70)), 3, "too large a number"),
        (("boot", "a", "0"), 3, "0 is no boot number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_mistake_is_refused_with_cause_remedy_and_exit_code(
    two: Manager, args: tuple[str, ...], code: int, text: str
) -> None:
    before = two.ctl("list")
    got = refusal(two, *args)
    assert got[0] == code, got
    assert text in got[1]
    assert two.ctl("list") == before


def test_a_vtpm_has_one_channel_and_a_channel_has_one_vtpm(two: Manager) -> None:
    code, text = refusal(two, "attach", "b", two.channel("a"))
    assert (code, text) == (12, f"channel {two.channel('a')} serves vTPM 'a'; 'detach a' first")
    code, text = refusal(two, "attach", "a", f"unix:{two.directory}/channels/other.sock")
    assert (code, text) == (12, f"vTPM 'a' is attached to {two.channel('a')}; 'detach a' first")
    assert two.ctl("attach", "a", two.channel("a"))["open"]  # the same pair again is no change
    assert two.guest("a").run("tpm2_getrandom", "8")


def test_a_channel_in_use_refuses_a_second_front_end(two: Manager) -> None:
    link = two.link("a")
    try:
        for mode in (("pipe", two.channel("a")), ("socket", two.channel("a"), "--port", "0")):
            done = two.frontend(*mode)
            assert done.returncode == 12, done.stderr
            assert "has a front end already; one consumer per vTPM" in done.stderr.splitlines()[-1]
            assert "Traceback" not in done.stderr
    finally:
        link.close()
    assert two.guest("a").run("tpm2_getrandom", "8")


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (("pipe", "nonsense"), 3, "is no channel: use unix:PATH"),
        (("socket", "nonsense"), 3, "is no channel: use unix:PATH"),
        (("socket", "unix:/nonexistent/x.sock", "--port", "70000"), 3, "use a number below 65535"),
        (("pipe", "unix:/nonexistent/x.sock"), 4, "is the vTPM attached there?"),
        (("other", "unix:/x"), 2, "usage:"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_front_end_that_cannot_work_says_why(make: Make, argv: tuple[str, ...], code: int, text: str) -> None:
    done = make().frontend(*argv)
    assert (done.returncode, text in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr


def test_a_second_manager_on_the_same_directory_is_refused_and_the_first_goes_on(two: Manager) -> None:
    second = Manager(two.directory)
    code, _ = second.refuse_to_start()
    assert code == 8
    assert f"another manager is using {two.state}; stop it first, two must never share one state" in two.log()
    assert len(two.ctl("list")) == 2
    assert two.guest("a").run("tpm2_getrandom", "8")


def test_a_manager_that_is_not_there_is_reported(make: Make) -> None:
    code, text = refusal(make(), "status")
    assert code == 4
    assert "start it, or name another one with -m" in text


def test_a_missing_swtpm_is_reported_before_anything_is_made(make: Make) -> None:
    manager = make({"swtpm": "/nonexistent/swtpm"})
    assert manager.refuse_to_start() == (
        14,
        "vtpm-manager: /nonexistent/swtpm is not installed; install the package 'swtpm'",
    )
    assert not manager.state.exists()


def test_a_program_that_is_no_swtpm_is_reported(make: Make) -> None:
    code, line = make({"swtpm": "/bin/true"}).refuse_to_start()
    assert code == 14
    assert "/bin/true does not work" in line and "reinstall the package 'swtpm'" in line


def test_an_unknown_key_of_the_configuration_is_named(make: Make) -> None:
    code, line = make({"swtmp": "x"}).refuse_to_start()
    assert code == 3
    assert "unknown key 'swtmp'; known are admin, authority_dir, command_deadline" in line


@pytest.fixture
def vulnerable(make: Make) -> tuple[str, ...]:
    """A command prefix under which dpkg says that an old libtpms is installed."""
    status = make().directory / "dpkg-status"
    status.write_text(OLD_DPKG)
    return "unshare", "-m", "sh", "-c", f'mount --bind {status} {packages.DPKG_STATUS} && exec "$@"', "sh"


def test_a_known_vulnerable_libtpms_is_a_warning_in_dev(make: Make, vulnerable: tuple[str, ...]) -> None:
    manager = make(prefix=vulnerable).start()
    (warning,) = manager.ctl("status")["warnings"]
    assert "libtpms0 0.9.2-3 is known to be vulnerable: CVE-2025-49133" in warning
    assert warning in manager.log()
    assert manager.ctl("create", "a")["state"] == "off"


def test_a_known_vulnerable_libtpms_is_refused_by_a_strict_manager(make: Make, vulnerable: tuple[str, ...]) -> None:
    code, line = make({"strict": True}, prefix=vulnerable).refuse_to_start()
    assert code == 3
    assert "CVE-2025-49133" in line and "install the fixed versions, or set strict = false" in line


@pytest.fixture
def small_disk(make: Make) -> Manager:
    """A running manager whose state directory is a file system of 12 MiB, with vTPM "a" attached."""
    manager = make()
    manager.state.mkdir(mode=0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m,mode=711", "vtpm-test", str(manager.state)], check=True)
    manager.start()
    manager.add("a")
    manager.guest("a").define("0x1500001")
    return manager


def fill(directory: Path, leave: int) -> Path:
    """Fill the disk but for ``leave`` bytes."""
    path = directory / "filler"
    free = os.statvfs(directory)
    path.write_bytes(bytes(max(free.f_bavail * free.f_frsize - leave, 0)))
    return path


def test_a_nearly_full_disk_refuses_new_vtpms_and_serves_the_others(small_disk: Manager) -> None:
    fill(small_disk.state, 2 << 20)
    code, text = refusal(small_disk, "create", "b")
    assert code == 8
    assert "the state disk is full; enlarge it or destroy vTPMs that are not needed" in text
    small_disk.guest("a").write("0x1500001", b"w" * 32)
    assert len(small_disk.ctl("list")) == 1


def test_a_full_disk_refuses_changes_and_is_over_when_there_is_space(small_disk: Manager) -> None:
    before = small_disk.guest("a").extend(7)
    filler = fill(small_disk.state, 0)
    for verb in (("stop", "a"), ("detach", "a")):
        code, text = refusal(small_disk, *verb)
        assert code == 8, text
        assert "the state disk is full" in text
    filler.unlink()
    small_disk.ctl("attach", "a")
    assert small_disk.guest("a").pcr(7) == before
    small_disk.ctl("stop", "a")
    small_disk.ctl("start", "a")
    assert small_disk.guest("a").pcr(7) == before
    assert len(list((small_disk.state / "blobs").iterdir())) == 1


def test_a_write_on_a_full_disk_is_never_answered_with_success_and_lost(small_disk: Manager) -> None:
    guest = small_disk.guest("a")
    guest.write("0x1500001", b"1" * 32)
    filler = fill(small_disk.state, 0)
    guest.attempt("tpm2_nvwrite", "0x1500001", "-C", "o", "-i", "-", stdin=b"2" * 32)
    filler.unlink()
    assert processes(str(small_disk.directory))
    small_disk.kill()
    small_disk.start()
    small_disk.ctl("boot", "a", "2")
    assert small_disk.guest("a").read("0x1500001") in (b"1" * 32, b"2" * 32)


def test_refused_carries_what_vtpmctl_says(two: Manager) -> None:
    with pytest.raises(Refused) as refused:
        two.ctl("show", "nobody")
    assert (refused.value.code, refused.value.name) == (11, "UnknownVtpmError")
