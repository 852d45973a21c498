"""A stand-in hardware TPM that notes the code of each command: ``-m tests.bench.compare.standin DIR ...``.

DIR.commands has four bytes for each command of a VM. What the stand-in does by itself (power, shutdown) is not noted.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from image.host import hwtpm
from image.host.standin import __main__
from image.host.standin.chip import Chip

_NAMES = {
    0x11F: "NV_UndefineSpaceSpecial",
    0x120: "EvictControl",
    0x122: "NV_UndefineSpace",
    0x129: "HierarchyChangeAuth",
    0x12A: "NV_DefineSpace",
    0x131: "CreatePrimary",
    0x134: "NV_Increment",
    0x135: "NV_SetBits",
    0x136: "NV_Extend",
    0x137: "NV_Write",
    0x143: "SelfTest",
    0x144: "Startup",
    0x145: "Shutdown",
    0x147: "ActivateCredential",
    0x148: "Certify",
    0x149: "PolicyNV",
    0x14E: "NV_Read",
    0x151: "PolicySecret",
    0x153: "Create",
    0x157: "Load",
    0x158: "Quote",
    0x15D: "Sign",
    0x15E: "Unseal",
    0x161: "ContextLoad",
    0x162: "ContextSave",
    0x165: "FlushContext",
    0x167: "LoadExternal",
    0x169: "NV_ReadPublic",
    0x16A: "PolicyAuthorize",
    0x16B: "PolicyAuthValue",
    0x16C: "PolicyCommandCode",
    0x173: "ReadPublic",
    0x176: "StartAuthSession",
    0x177: "VerifySignature",
    0x17A: "GetCapability",
    0x17B: "GetRandom",
    0x17E: "PCR_Read",
    0x17F: "PolicyPCR",
    0x182: "PCR_Extend",
    0x184: "NV_Certify",
    0x18A: "TestParms",
    0x18F: "PolicyNvWritten",
    0x191: "CreateLoaded",
}  # TPM_CC (Part 2, 6.5.2)
_CODE = 4  # bytes


def main() -> int:
    """The stand-in's own command line."""
    file = os.open(_file(Path(sys.argv[1])), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    start = Chip.start

    def noted(chip: Chip, command: bytes, locality: int) -> None:
        os.write(file, command[6 : 6 + _CODE])
        start(chip, command, locality)

    Chip.start = noted  # type: ignore[method-assign,assignment]
    return __main__.main()


def commands(directory: Path) -> Counter[str]:
    """What the hardware TPM in this directory was asked so far."""
    try:
        codes = _file(directory).read_bytes()
    except FileNotFoundError:
        return Counter()
    numbers = (int.from_bytes(codes[at : at + _CODE], "big") for at in range(0, len(codes), _CODE))
    return Counter(_NAMES.get(number, f"{number:#x}") for number in numbers)


@contextmanager
def counted() -> Iterator[None]:
    """Hosts that are made in this block have such a hardware TPM."""
    before = hwtpm.PROGRAM
    hwtpm.PROGRAM = "tests.bench.compare.standin"
    try:
        yield
    finally:
        hwtpm.PROGRAM = before


def _file(directory: Path) -> Path:
    return directory.with_suffix(".commands")


if __name__ == "__main__":
    sys.exit(main())
