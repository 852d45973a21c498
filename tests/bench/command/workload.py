"""The four commands that are measured, as bytes, and what has to be there before them."""

from __future__ import annotations

import struct
from typing import Any

from manager_vm.wire import tpm
from tests.bench.command.probe import Work
from tests.integration import raw

GET_RANDOM, PCR_EXTEND, QUOTE, NV_WRITE = "GetRandom", "PCR_Extend", "Quote (ECC)", "NV_Write"
COMMANDS = (GET_RANDOM, PCR_EXTEND, QUOTE, NV_WRITE)
PING, LOOP, SYSTEM = "PING", "1000 loop turns", "100 system calls"

_TPM_CC_QUOTE = 0x158
_TPM_ALG_NULL = 0x0010
_FIRST_TRANSIENT = 0x80000000  # the handle of the first object that a TPM loads
_PCR = 16  # the debug PCR
_NV_INDEX = 0x01500BE0
_NV_SIZE = 32
_NV_ATTRIBUTES = 0x02040004  # AUTHWRITE, AUTHREAD, NO_DA
# TPMT_PUBLIC: ECC, SHA-256, fixedTPM|fixedParent|sensitiveDataOrigin|userWithAuth|noDA|restricted|sign, no policy;
# symmetric NULL, ECDSA with SHA-256, P-256, KDF NULL; unique empty (Part 2, 12.2.4)
_SIGNING_KEY = bytes.fromhex("0023 000b 00050472 0000 0010 0018000b 0003 0010 0000 0000")


def setup() -> list[bytes]:
    """Once for each TPM: the signing key becomes its first transient object; an NV index of 32 bytes."""
    define = tpm.nv_define_space(_NV_INDEX, _NV_ATTRIBUTES, _NV_SIZE, tpm.TPM_RH_OWNER)
    return [tpm.create_primary(tpm.TPM_RH_OWNER, _SIGNING_KEY), define]


def work(counts: dict[str, int]) -> Work:
    """Command -> how often. Two NV_Writes take turns, because a TPM skips a write of what is there: even counts."""
    return [(name, count, _commands(name)) for name, count in counts.items()]


def plan(target: str, counts: dict[str, int], *, prepare: bool = False) -> dict[str, Any]:
    """For ``probe.perform`` in another machine."""
    measured = [[name, count, [each.hex() for each in many]] for name, count, many in work(counts)]
    return {"target": target, "setup": [each.hex() for each in setup()] if prepare else [], "work": measured}


def quote(key: int) -> bytes:
    """TPM2_Quote (Part 3, 18.4) of PCR 0 to 7, SHA-256, with the key's own scheme and empty auth."""
    selection = struct.pack(">IHB", 1, tpm.TPM_ALG_SHA256, 3) + b"\xff\x00\x00"
    rest = tpm.sized(b"\x5a" * 32) + struct.pack(">H", _TPM_ALG_NULL) + selection
    return tpm.command(_TPM_CC_QUOTE, rest, handles=(key,), auths=1)


def _commands(name: str) -> list[bytes]:
    return {
        GET_RANDOM: [tpm.get_random(16)],
        PCR_EXTEND: [raw.pcr_extend(_PCR)],
        QUOTE: [quote(_FIRST_TRANSIENT)],
        NV_WRITE: [raw.nv_write(_NV_INDEX, bytes([fill]) * _NV_SIZE) for fill in (1, 2)],
        PING: [b""],
        LOOP: [b"loop"],
        SYSTEM: [b"system"],
    }[name]
