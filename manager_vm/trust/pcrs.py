"""Which PCRs of the hardware TPM stand for an image, and what its manager makes of one. Standard library only."""

from __future__ import annotations

import hashlib

BOUND_PCRS = (4, 9, 11, 12, 13)  # what an approval binds to; see image/measure.py for who extends them
CAPPED_PCR = 11
CAP = hashlib.sha256(b"vtpm-manager: root key unsealed").digest()  # extended into CAPPED_PCR after unsealing
PCR_SIZE = 32


def capped(value: bytes) -> bytes:
    """CAPPED_PCR once its manager has unsealed, from the value before (TPM2_PCR_Extend: Part 1, 17.3)."""
    return hashlib.sha256(value + CAP).digest()
