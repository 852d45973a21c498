"""Child processes that end with this one, whatever happens to it."""

from __future__ import annotations

import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from manager_vm.errors import ConfigError, HostError

_PATIENCE = 5.0  # seconds between asking a process to end and killing it


class Process:
    """One child. PR_SET_PDEATHSIG follows the spawning *thread*: start it in one that lives as long as the child."""

    def __init__(self, name: str, argv: list[str], log: Path, pass_fds: tuple[int, ...] = ()) -> None:
        if shutil.which(argv[0]) is None:
            raise ConfigError(f"{argv[0]} is not installed; run ./build.sh as root, or install it with apt-get")
        self.name = name
        self._log = log
        with open(log, "ab") as output:
            self._child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
                start_new_session=True,  # Ctrl-C at the terminal is for us: we end children in order
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    def running(self) -> bool:
        return self._child.poll() is None

    def check(self) -> None:
        """HostError with the end of the log if the process has ended."""
        if not self.running():
            lines = self._log.read_text(errors="replace").strip().splitlines()
            tail = "; ".join(lines[-3:]) or "it said nothing"
            raise HostError(f"{self.name} ended with status {self._child.returncode}: {tail} (log: {self._log})")

    def wait(self, timeout: float) -> bool:
        """Whether the process ended within ``timeout`` seconds."""
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout)
            return True
        return False

    def kill(self) -> None:
        """SIGKILL and reap."""
        self._child.kill()
        self._child.wait()

    def close(self) -> None:
        """Ask the process to end, kill it if it does not; idempotent."""
        if self.running():
            self._child.send_signal(signal.SIGTERM)
            if not self.wait(_PATIENCE):
                self.kill()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
