"""A ``dev`` manager that dies by SIGKILL at one point of a commit: ``-m tests.integration.crashing DIR POINT ARMED N``.

Of the N-th commit, that is, that finds the file ARMED.

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


def program(directory: Path, point: str, armed: Path, number: int = 1) -> list[str]:
    """For Python: a manager on ``directory`` that dies there."""
    return ["-m", "tests.integration.crashing", str(directory), point, str(armed), str(number)]


def main() -> int:
    directory, wanted, armed, number = sys.argv[1:]
    left = int(number)

    def reached(point: str) -> None:
        nonlocal left
        if point == wanted and os.path.exists(armed):
            left -= 1
            if left == 0:
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
