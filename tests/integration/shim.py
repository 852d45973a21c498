"""The shim of ``guest_frontend qemu`` as a child process, and a bare swtpm to compare it with."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.fake_qemu import FakeQemu
from tests.integration.harness import ROOT, Manager, environment, until

_PATIENCE = 15.0  # seconds


class Shim:
    """One shim for vTPM ``name`` of ``manager``. ``vm``: UUID of its VM, if that is said."""

    def __init__(self, manager: Manager, name: str = "a", vm: str = "") -> None:
        self.path = manager.directory / f"qemu-{name}"
        self._log = manager.directory / f"qemu-{name}.log"
        self._argv = [sys.executable, "-m", "guest_frontend", "qemu", f"unix:{manager.directory}/shims.sock"]
        self._argv += ["--socket", str(self.path), "--vtpm", name, "--host-link", str(manager.directory / "host.sock")]
        self._argv += ["--vm", vm] if vm else []
        self._directory = manager.directory

    def start(self) -> Shim:
        """Start it and wait until it listens."""
        before = self.log().count("QEMU finds")
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._argv, cwd=ROOT, env=environment(self._directory), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until(lambda: self.log().count("QEMU finds") > before or not self.running, _PATIENCE, "the shim listens")
        assert self._process.poll() is None, self.log()
        return self

    def stop(self) -> None:
        """An orderly end; it takes its socket along."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(_PATIENCE) == 0, self.log()
        assert not self.path.exists()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def log(self) -> str:
        """All that it has said."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def processor_time(self) -> int:
        """Clock ticks that it has used (proc(5), stat)."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def qemu(self) -> FakeQemu:
        """A QEMU at it."""
        return FakeQemu(self.path)


@contextmanager
def shimmed(manager: Manager, name: str = "a", vm: str = "") -> Iterator[Shim]:
    """A shim that is ended at the end, and must not have ended before."""
    shim = Shim(manager, name, vm).start()
    try:
        yield shim
        assert shim.running, shim.log()
        shim.stop()
    finally:
        if shim.running:
            shim.kill()


@contextmanager
def bare_swtpm(directory: Path) -> Iterator[Path]:
    """The control socket of a swtpm as QEMU would have it without us."""
    path = directory / "bare.ctrl"
    state = directory / "bare"
    state.mkdir()
    argv = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={path}"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(path.exists, what="swtpm listens")
        yield path
    finally:
        process.kill()
        process.wait()
        path.unlink(missing_ok=True)


def connect(path: Path) -> socket.socket:
    """A control connection on which nothing has been said."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.settimeout(_PATIENCE)
    control.connect(str(path))
    return control
