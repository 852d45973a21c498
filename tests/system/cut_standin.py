"""A hardware TPM that stops for ever at one point around an NV_Write, so that the VM can be cut off just there.

``CUT`` names a directory: once the file ``armed`` is there, the next NV_Write makes the file ``reached`` at the point
that ``point`` names: before the TPM has it, after it is done but unanswered, after its answer.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from image.host.standin import __main__
from image.host.standin.chip import Chip
from manager_vm.wire import tpm

BEFORE, DONE, ANSWERED = "before", "done", "answered"
_NV_WRITE = 0x137


class Cut:
    """What the chip does next, and where it stops."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writing = False
        self._written = False

    def start(self, command: bytes) -> None:
        """Called before a command reaches the TPM."""
        if self._written:
            self._stop_at(ANSWERED)
        self._writing = tpm.command_code(command) == _NV_WRITE and (self._directory / "armed").exists()
        if self._writing:
            self._stop_at(BEFORE)

    def finished(self) -> None:
        """Called when the TPM has answered, before anybody hears of it."""
        if self._writing:
            self._stop_at(DONE)
            self._written = True

    def _stop_at(self, point: str) -> None:
        if (self._directory / "point").read_text() == point:
            (self._directory / "reached").touch()
            time.sleep(3600)


def main() -> int:
    cut = Cut(Path(os.environ["CUT"]))
    start, finish = Chip.start, Chip.finish

    def cut_start(self: Chip, command: bytes, locality: int) -> None:
        cut.start(command)
        start(self, command, locality)

    def cut_finish(self: Chip) -> bytes | None:
        response = finish(self)
        if response is not None:
            cut.finished()
        return response

    Chip.start, Chip.finish = cut_start, cut_finish  # type: ignore[method-assign]
    return __main__.main()


if __name__ == "__main__":
    sys.exit(main())
