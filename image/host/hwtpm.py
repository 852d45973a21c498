"""The ``emulator`` hardware TPM of a simulated host: one swtpm for QEMU's tpm-emulator."""

from __future__ import annotations

import time
from pathlib import Path

from image.host.process import Process
from manager_vm.errors import HostError

_START = 5.0  # seconds


class HardwareTpm:
    """A swtpm process. QEMU connects to ``socket``; when QEMU leaves, swtpm ends (start a new one for the next VM)."""

    def __init__(self, directory: Path, log: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.socket = directory / "control.sock"
        self.socket.unlink(missing_ok=True)
        argv = [
            "swtpm",
            "socket",
            "--tpm2",
            "--tpmstate",
            f"dir={directory}",
            "--ctrl",
            f"type=unixio,path={self.socket}",
        ]
        self._process = Process("the hardware TPM (swtpm)", [*argv, "--terminate"], log)
        deadline = time.monotonic() + _START
        while not self.socket.exists():
            self._process.check()
            if time.monotonic() > deadline:
                self.close()
                raise HostError(f"swtpm does not make {self.socket} within {_START:.0f} s (log: {log})")
            time.sleep(0.01)

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """End the process; idempotent."""
        self._process.close()
        self.socket.unlink(missing_ok=True)
