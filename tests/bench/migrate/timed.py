"""A manager that notes when it waits for the disk and for its hardware TPM: ``-m tests.bench.migrate.timed DIR ...``.

DIR/times has a line for each wait: "disk" or "tpm", and the monotonic seconds between which it lay. A wait for the TPM
is a whole request: its commands, and what tpm2-tss does to protect them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from manager_vm import __main__
from manager_vm.keys.hwtpm.connection import Connection

Wait = tuple[str, float, float]


def main() -> int:
    """The manager's own command line, behind the directory."""
    directory, *words = sys.argv[1:]
    file = os.open(Path(directory) / "times", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def noted(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began = time.monotonic()
            try:
                return function(*args)
            finally:
                os.write(file, f"{kind} {began} {time.monotonic()}\n".encode())

        return call

    os.fsync = noted("disk", os.fsync)
    os.fdatasync = noted("disk", os.fdatasync)
    Connection.request = noted("tpm", Connection.request)  # type: ignore[method-assign]
    return __main__.main(words)


class Waits:
    """What the managers on these directories have noted."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._files = [open(each / "times") for each in directories]  # noqa: SIM115
        self._known: list[list[Wait]] = [[] for _ in directories]

    def within(self, kinds: tuple[str, ...], start: float, end: float, *, of: int | None = None) -> float:
        """Seconds from ``start`` to ``end`` in which one of them waited so, or manager ``of``: two at once count once.

        What lay before ``start`` is forgotten.
        """
        for number, (file, known) in enumerate(zip(self._files, self._known, strict=True)):
            new = [line.split() for line in file]
            fresh = [(kind, float(began), float(ended)) for kind, began, ended in new]
            self._known[number] = [each for each in (*known, *fresh) if each[2] > start]
        chosen = self._known if of is None else [self._known[of]]
        spans = sorted(
            (max(began, start), min(ended, end)) for each in chosen for kind, began, ended in each if kind in kinds
        )
        total, reached = 0.0, start
        for began, ended in spans:
            if ended > max(began, reached):
                total += ended - max(began, reached)
                reached = ended
        return total

    def close(self) -> None:
        """Of the files."""
        for each in self._files:
            each.close()


if __name__ == "__main__":
    sys.exit(main())
