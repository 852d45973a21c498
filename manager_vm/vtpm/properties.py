"""What a running vTPM says of itself and its keys (TPM2_GetCapability, TPM2_ReadPublic; Part 2, 6.13 and 10.14)."""

from __future__ import annotations

import struct
from typing import Any

from manager_vm.errors import ConfigError, StateError
from manager_vm.vtpm.manufacture import demand
from manager_vm.vtpm.vtpm import Vtpm
from manager_vm.wire import tpm
from manager_vm.wire.tpm import Tpm

_FIXED = 0x100  # PT_FIXED, first of the group
_VARIABLE = 0x200  # PT_VAR
_COUNT = 64
_BANKS = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}


def read(vtpm: Vtpm) -> dict[str, Any]:
    """Manufacturer, firmware, dictionary-attack counters, PCR banks; the caller holds the vTPM."""
    run = vtpm.run
    if run is None:
        raise StateError(f"vTPM {vtpm.name!r} is {vtpm.state}: only a running one can be asked; 'start' it")
    fixed, variable = _properties(run, _FIXED), _properties(run, _VARIABLE)
    return {
        "manufacturer": fixed.get(0x105, 0).to_bytes(4, "big").decode("ascii", "replace").rstrip("\0"),
        "firmware": f"{fixed.get(0x10B, 0):08x}.{fixed.get(0x10C, 0):08x}",
        "revision": fixed.get(0x102, 0) / 100,
        "lockout_counter": variable.get(0x20E, 0),
        "max_auth_fail": variable.get(0x20F, 0),
        "lockout_interval_s": variable.get(0x210, 0),
        "lockout_recovery_s": variable.get(0x211, 0),
        "in_lockout": bool(variable.get(0x200, 0) & 1 << 9),
        "loaded_sessions": variable.get(0x203, 0),
        "active_sessions": variable.get(0x205, 0),
        "persistent_objects": variable.get(0x208, 0),
        "nv_indices": variable.get(0x202, 0),
        "pcr_banks": _banks(run),
    }


def read_public(vtpm: Vtpm, handle: int) -> bytes:
    """TPMT_PUBLIC of a key in the running vTPM (TPM2_ReadPublic); the caller holds the vTPM."""
    if vtpm.run is None:
        raise StateError(f"vTPM {vtpm.name!r} is {vtpm.state}: only a running one can be asked; 'start' it")
    rc, body = tpm.parse_response(vtpm.run.execute(tpm.read_public(handle)))
    if rc != tpm.RC.TPM_RC_SUCCESS:
        raise ConfigError(f"vTPM {vtpm.name!r} has no key at handle {handle:#010x} (TPM_RC {rc:#x})")
    return body[2 : 2 + int.from_bytes(body[:2])]


def _properties(device: Tpm, first: int) -> dict[int, int]:
    body = demand(device, tpm.get_capability(tpm.TPM_CAP_TPM_PROPERTIES, first, _COUNT))
    count = int.from_bytes(body[5:9], "big")
    return dict(struct.iter_unpack(">II", body[9 : 9 + 8 * count]))


def _banks(device: Tpm) -> list[str]:
    body = demand(device, tpm.get_capability(tpm.TPM_CAP_PCRS, 0, 1))
    count, rest, banks = int.from_bytes(body[5:9], "big"), body[9:], []
    for _ in range(count):
        algorithm, size = struct.unpack_from(">HB", rest)
        if any(rest[3 : 3 + size]):
            banks.append(_BANKS.get(algorithm, f"{algorithm:#06x}"))
        rest = rest[3 + size :]
    return banks
