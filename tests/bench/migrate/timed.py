"""A ``dev`` manager that notes when it waits for the disk and for its hardware TPM: ``-m ....timed DIR``.

DIR/times has a line for each wait: "disk" or "tpm", and the monotonic seconds between which it lay. A wait for the TPM
is a whole request: its commands, and what tpm2-tss does to protect them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from manager_vm import __main__
from manager_vm.keys.hwtpm.connection import Connection

Wait = tuple[str, float, float]


def main() -> int:
    """``dev`` on the directory."""
    (directory,) = sys.argv[1:]
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
    return __main__.main(["dev", directory])


def read(directory: Path) -> Iterator[Wait]:
    """All waits so far."""
    for line in (directory / "times").read_text().splitlines():
        kind, began, ended = line.split()
        yield kind, float(began), float(ended)


def within(waits: Iterable[Wait], kinds: tuple[str, ...], start: float, end: float) -> float:
    """Seconds between ``start`` and ``end`` in which somebody waited so; those who waited at once count once."""
    spans = sorted((max(began, start), min(ended, end)) for kind, began, ended in waits if kind in kinds)
    total, reached = 0.0, start
    for began, ended in spans:
        if ended > max(began, reached):
            total += ended - max(began, reached)
            reached = ended
    return total


if __name__ == "__main__":
    sys.exit(main())
