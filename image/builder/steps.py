"""What every step of the build needs: a log of its own, a stamp of its inputs, an error that names the remedy."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from manager_vm.errors import BuildError

EPOCH = 1_750_000_000  # seconds; every time stamp in an image is this one
_TAIL = 15  # lines of a log that an error shows
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the build keeps things, all below ``build/`` of the checkout ``source``."""

    source: Path

    @property
    def cache(self) -> Path:
        return self.source / "build" / "cache"

    @property
    def debs(self) -> Path:
        return self.cache / "debs"

    @property
    def logs(self) -> Path:
        return self.source / "build" / "log"

    @property
    def locks(self) -> Path:
        return self.source / "image" / "lock"

    def output(self, kind: str, profile: str) -> Path:
        """Where the image of this kind lies."""
        return self.source / "build" / "image" / (kind if profile == "debug" else f"{kind}-{profile}")

    def make(self) -> None:
        """Create the directories."""
        for path in (self.debs, self.logs, self.locks, self.source / "build" / "stamp"):
            path.mkdir(parents=True, exist_ok=True)


class Builder:
    """Runs steps and says so. One per build."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._start = time.monotonic()
        layout.make()

    def say(self, text: str) -> None:
        """A line with the seconds since the start."""
        print(f"[{time.monotonic() - self._start:3.0f} s] {text}", flush=True)

    def run(self, step: str, argv: list[str], remedy: str, env: dict[str, str] | None = None) -> str:
        """Run a program of ``step``, appending to the step's log; its stdout. BuildError shows the log's end."""
        log = self.layout.logs / f"{step.replace(' ', '-')}.log"
        with open(log, "ab") as file:
            file.write(f"\n$ {' '.join(argv)}\n".encode())
            file.flush()
            environment = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH), "LC_ALL": "C.UTF-8", **(env or {})}
            try:
                done = subprocess.run(
                    argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file, env=environment
                )
            except FileNotFoundError:
                raise BuildError(f"step '{step}': {argv[0]} is not installed\nremedy: run ./build.sh as root") from None
            file.write(done.stdout)
        if done.returncode:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL:])
            what = f"step '{step}': {argv[0]} ended with {done.returncode}; the end of its log {log}:\n{tail}"
            raise BuildError(f"{what}\nremedy: {remedy}")
        return done.stdout.decode(errors="replace")

    def is_fresh(self, step: str, key: str, *outputs: Path) -> bool:
        """Whether ``step`` has been done with the inputs that ``key`` stands for, and its outputs are there."""
        stamp = self._stamp(step)
        return stamp.exists() and stamp.read_text() == key and all(path.exists() for path in outputs)

    def done(self, step: str, key: str) -> None:
        """Remember that ``step`` was done with these inputs."""
        self._stamp(step).write_text(key)

    def begin(self, step: str) -> None:
        """Say what is done now; its log starts anew, and until ``done`` it counts as not done."""
        self.say(step)
        self._stamp(step).unlink(missing_ok=True)
        (self.layout.logs / f"{step.replace(' ', '-')}.log").unlink(missing_ok=True)

    def _stamp(self, step: str) -> Path:
        return self.layout.source / "build" / "stamp" / step.replace(" ", "-")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def key_of(parts: Iterable[str]) -> str:
    """One key for many inputs."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def key_of_files(paths: Iterable[Path], below: Path) -> str:
    """A key that changes with name, mode or content of any file (symbolic links: their targets)."""
    parts = []
    for path in sorted(paths):
        if path.is_symlink():
            parts.append(f"{path.relative_to(below)} -> {os.readlink(path)}")
        elif path.is_file():
            parts.append(f"{path.relative_to(below)} {path.stat().st_mode & 0o111:o} {sha256_of(path)}")
    return key_of(parts)
