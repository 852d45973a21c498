"""Which PCRs of the hardware TPM stand for an image, and what its manager makes of one. Standard library only."""

from __future__ import annotations

import hashlib

BOUND_PCRS = (4, 9, 11, 12, 13)  # what an approval binds to; see image/measure.py for who extends them
CAPPED_PCR = 11
CAP = hashlib.sha256(b"vtpm-manager: root key unsealed").digest()  # extended into CAPPED_PCR after unsealing
PCR_SIZE = 32
# what systemd-pcrphase extends into PCR 11 before the manager starts, and no firmware logs; the initrd has no systemd,
# so neither enter-initrd nor leave-initrd
PHASES = ("sysinit", "ready")


def capped(value: bytes) -> bytes:
    """CAPPED_PCR once its manager has unsealed, from the value before (TPM2_PCR_Extend: Part 1, 17.3)."""
    return hashlib.sha256(value + CAP).digest()


def serving(values: dict[int, bytes]) -> dict[int, bytes]:
    """What a manager that serves shows, from the values before it has unsealed."""
    return {**values, CAPPED_PCR: capped(values[CAPPED_PCR])}


def after_phases(value: bytes) -> bytes:
    """PCR 11 when the manager starts, from what the firmware's event log says of it."""
    for phase in PHASES:
        value = hashlib.sha256(value + hashlib.sha256(phase.encode()).digest()).digest()
    return value
