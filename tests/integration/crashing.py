"""A ``dev`` manager that dies by SIGKILL at one point of a commit: ``-m tests.integration.crashing DIR POINT ARMED``.

Of the first commit, that is, that finds the file ARMED.

POINT is a step of the manifest's commit, or "before NV_Write" and "after NV_Write": around the anchor's command in
the hardware TPM, which dies with the manager as a VM's reset would leave it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from manager_vm import __main__
from manager_vm.store.manifest import Manifest, Step
from manager_vm.vtpm.standin import Standin
from manager_vm.wire import tpm

BEFORE, AFTER = "before NV_Write", "after NV_Write"
POINTS = (*Step, BEFORE, AFTER)
_NV_WRITE = 0x137


def program(directory: Path, point: str, armed: Path) -> list[str]:
    """For Python: a manager on ``directory`` that dies there."""
    return ["-m", "tests.integration.crashing", str(directory), point, str(armed)]


def main() -> int:
    directory, wanted, armed = sys.argv[1:]

    def reached(point: str) -> None:
        if point == wanted and os.path.exists(armed):
            os.kill(os.getpid(), signal.SIGKILL)

    Manifest.reached = staticmethod(reached)
    execute = Standin.execute

    def counted(self: Standin, command: bytes) -> bytes:
        write = tpm.command_code(command) == _NV_WRITE
        if write:
            reached(BEFORE)
        response = execute(self, command)
        if write:
            reached(AFTER)
        return response

    Standin.execute = counted  # type: ignore[method-assign]
    return __main__.main(["dev", directory])


if __name__ == "__main__":
    sys.exit(main())
