"""What both ends of a move agree on, and what their hardware TPMs quote (MIGRATION.md, section 6; R5)."""

from __future__ import annotations

import struct
from dataclasses import replace

from manager_vm import crypto
from manager_vm.wire import migration
from manager_vm.wire.migration import Accept, Offer

_ACCEPT, _CONFIRM = b"vtpm-manager migration accept 1\0", b"vtpm-manager migration confirm 1\0"


def first(offer: Offer, accept: Accept) -> bytes:
    """Transcript 1: all but the evidence of ACCEPT."""
    parts = (migration.body(offer), migration.body(replace(accept, evidence=b"")))
    return _transcript(1, b"".join(struct.pack(">I", len(part)) + part for part in parts))


def second(one: bytes, evidence: bytes) -> bytes:
    """Transcript 2: with the destination's evidence."""
    return _transcript(2, one + crypto.digest(evidence))


def third(two: bytes, evidence: bytes) -> bytes:
    """Transcript 3: with the source's evidence."""
    return _transcript(3, two + crypto.digest(evidence))


def destination_binding(one: bytes) -> bytes:
    """What the destination's evidence is over."""
    return crypto.digest(_ACCEPT + one)


def source_binding(two: bytes) -> bytes:
    """What the source's evidence is over."""
    return crypto.digest(_CONFIRM + two)


def _transcript(number: int, rest: bytes) -> bytes:
    return crypto.digest(f"vtpm-manager transcript {number}\0".encode() + rest)
