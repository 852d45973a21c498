"""What the daemon tells systemd and leaves with it, against a socket that stands for systemd's."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from manager_vm import systemd
from tests.integration.harness import ROOT, environment

_KEPT = """
import os
os.environ["LISTEN_PID"] = str(os.getpid())
from manager_vm import systemd
found = systemd.kept("root-key")
print(found, systemd.kept("root-key"), [fd for fd in (3, 4) if os.path.exists(f"/proc/self/fd/{fd}")])
"""


@pytest.mark.parametrize("abstract", [False, True])
def test_a_secret_goes_to_systemd_and_comes_back_to_the_next_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"\0{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
        systemd.notify("READY=1")
        assert manager.recv(100) == b"READY=1"
        systemd.keep("root-key", b"s" * 32)
        text, descriptors, _, _ = socket.recv_fds(manager, 100, 4)
    assert (text, len(descriptors)) == (b"FDSTORE=1\nFDNAME=root-key", 1)
    other = os.open("/dev/null", os.O_RDONLY)
    try:
        assert _next_daemon([other, descriptors[0]]) == f"{b's' * 32!r} None []"
        assert _next_daemon([descriptors[0], other], names="other:root-key") == "b'' None []"
    finally:
        os.close(other)
        os.close(descriptors[0])


def _next_daemon(descriptors: list[int], names: str = "other:root-key") -> str:
    """What a process finds that systemd starts with these descriptors as 3 and 4."""

    def place() -> None:
        for number, fd in enumerate([os.dup(each) for each in descriptors], 3):
            os.dup2(fd, number)

    env = environment(ROOT, LISTEN_FDS="2", LISTEN_FDNAMES=names)
    done = subprocess.run(
        [sys.executable, "-c", _KEPT], cwd=ROOT, env=env, stdout=subprocess.PIPE, preexec_fn=place, close_fds=False
    )
    return done.stdout.decode().strip()


def test_without_systemd_nothing_is_told_and_nothing_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("LISTEN_PID", raising=False)
    systemd.notify("READY=1")
    assert systemd.kept("root-key") is None
