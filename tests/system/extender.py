"""Runs in a guest: extends PCR 10 as the kernel's IMA does, through /dev/tpm0 and without a TSS that tries again.

A line per extend in /tmp/log: the digest's number, and "ok", an errno's name, or the TPM_RC. Ends when there is a
file /tmp/stop.
"""

import errno
import os
import struct
import time

_COMMAND = struct.Struct(">HIIIIIHBHIH32s")
_SIZE = _COMMAND.size


def extend(device: int, number: int) -> str:
    """TPM2_PCR_Extend (Part 3, 22.2), SHA-256 bank, empty password."""
    digest = number.to_bytes(32, "big")
    os.write(device, _COMMAND.pack(0x8002, _SIZE, 0x182, 10, 9, 0x40000009, 0, 0, 0, 1, 0x000B, digest))
    rc = int.from_bytes(os.read(device, 4096)[6:10], "big")
    return hex(rc) if rc else "ok"


def main() -> None:
    number = 0
    device = os.open("/dev/tpm0", os.O_RDWR)
    with open("/tmp/log", "w", buffering=1) as log:
        while not os.path.exists("/tmp/stop"):
            number += 1
            try:
                outcome = extend(device, number)
            except OSError as error:
                outcome = errno.errorcode.get(error.errno or 0, "?")
            print(number, outcome, file=log)
            time.sleep(0.1)
    with open("/tmp/end", "w"):
        pass


main()
