"""The sandbox of one swtpm process, as a chain of programs that exec each other: unshare, setpriv, prlimit, swtpm.

No shell, no supervisor, no helper process stays. swtpm adds its own seccomp filter. When the manager dies, both
sockets of a swtpm close and it ends by itself, but with an unread command it would spin for ever (0.7.1): so
PR_SET_PDEATHSIG too, which follows the spawning *thread* (see ``run.Launcher.spawner``).
"""

from __future__ import annotations

from dataclasses import dataclass

_OPEN_FILES = 64
_FILE_SIZE = 8 << 20  # bytes; a state file has 30 kB


@dataclass(frozen=True, slots=True)
class Sandbox:
    """``uid``: the uid (and gid) of this vTPM alone; None where the manager is not root. ``memory_limit``: bytes."""

    uid: int | None
    memory_limit: int = 256 << 20

    def wrap(self, argv: list[str]) -> list[str]:
        """``argv`` inside the sandbox: unshare(1), setpriv(1), prlimit(1)."""
        limits = [
            "prlimit",
            f"--as={self.memory_limit}",
            f"--nofile={_OPEN_FILES}",
            f"--fsize={_FILE_SIZE}",
            "--core=0",
            "--",
        ]
        if self.uid is None:
            return ["setpriv", "--pdeathsig", "KILL", "--no-new-privs", "--", *limits, *argv]
        identity = [
            "setpriv",
            f"--reuid={self.uid}",
            f"--regid={self.uid}",
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
            "--no-new-privs",
            "--pdeathsig",
            "KILL",
            "--",
        ]
        return ["unshare", "--net", "--ipc", "--", *identity, *limits, *argv]

    def describe(self) -> str:
        """What holds this process, for the operator."""
        if self.uid is None:
            return "no new privileges, limits, seccomp; no uid and no network namespace of its own (manager not root)"
        return f"uid {self.uid}, no capabilities, no network, no new privileges, limits, seccomp"
