"""TPM policies computed without a TPM (TPM 2.0 Part 3, section 23; SHA-256 throughout).

The root key is sealed under PolicyAuthorize(authority). What the authority authorises, an *approval*, is
PolicyPCR(an image's PCR values) AND PolicyNV(bit k of the revocation index is clear).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence

from manager_vm.trust.pcrs import BOUND_PCRS as BOUND_PCRS
from manager_vm.trust.pcrs import CAP as CAP
from manager_vm.trust.pcrs import CAPPED_PCR as CAPPED_PCR
from manager_vm.trust.pcrs import PCR_SIZE as PCR_SIZE
from manager_vm.trust.signing import VerifyKey

POLICY_REF = b"vtpm-manager root key"

ANCHOR_INDEX = 0x01800A00  # owner range of the registry of reserved handles
OTHER_ANCHOR_INDEX = 0x01800A02  # where a manager that comes to this TPM finds its place: one is used, one is free
ANCHOR_SIZE = 64  # bytes
ANCHOR_ATTRIBUTES = 0x02040004  # TPMA_NV: AUTHWRITE AUTHREAD NO_DA
PLACE_ATTRIBUTES = ANCHOR_ATTRIBUTES | 0x8  # and POLICYWRITE, by ``first_write``
REVOCATION_INDEX = 0x01800A01
REVOCATION_SIZE = 8  # bytes: 64 bits
REVOCATION_ATTRIBUTES = 0x02060022  # TPMA_NV: OWNERWRITE TPM_NT_BITS OWNERREAD AUTHREAD NO_DA; auth is empty
NV_WRITTEN = 0x20000000  # TPMA_NV_WRITTEN
MAX_APPROVALS = 64

_SHA256 = 0x000B
_ECC = 0x0023
_NULL = 0x0010
_P256 = 0x0003
_SIGN_WITH_AUTH = 0x00040040  # TPMA_OBJECT: sign userWithAuth
_CC_POLICY_NV = 0x149
_CC_POLICY_AUTH_VALUE = 0x16B
_CC_POLICY_NV_WRITTEN = 0x18F
_CC_POLICY_AUTHORIZE = 0x16A
_CC_POLICY_PCR = 0x17F
_EO_BITCLEAR = 0x000B


def capped(value: bytes) -> bytes:
    """What the capped PCR reads after the cap, from its value before."""
    return _sha256(value + CAP)


def pcr_selection(pcrs: Sequence[int]) -> bytes:
    """TPML_PCR_SELECTION with the SHA-256 bank (Part 2, 10.9.7)."""
    bits = sum(1 << pcr for pcr in pcrs)
    return struct.pack(">IHB", 1, _SHA256, 3) + bits.to_bytes(3, "little")


def pcr_digest(values: Mapping[int, bytes]) -> bytes:
    """Digest over the values in ascending order of their numbers."""
    return _sha256(b"".join(values[pcr] for pcr in sorted(values)))


def approved(values: Mapping[int, bytes], number: int) -> bytes:
    """The policy digest that approval ``number`` authorises: PolicyPCR, then PolicyNV."""
    selection = pcr_selection(sorted(values))
    policy = _sha256(bytes(32) + _cc(_CC_POLICY_PCR) + selection + pcr_digest(values))
    arguments = _sha256(bit(number) + struct.pack(">HH", 0, _EO_BITCLEAR))
    return _sha256(policy + _cc(_CC_POLICY_NV) + arguments + revocation_name())


def authorised_by(authority: VerifyKey) -> bytes:
    """The policy digest that the root key is sealed under: PolicyAuthorize(authority, POLICY_REF)."""
    named = _sha256(bytes(32) + _cc(_CC_POLICY_AUTHORIZE) + name(public_area(authority)))
    return _sha256(named + POLICY_REF)


def to_be_signed(policy: bytes) -> bytes:
    """What the authority signs so that a TPM accepts ``policy`` (Part 3, 23.16: aHash = H(policy || policyRef))."""
    return policy + POLICY_REF


def public_area(key: VerifyKey) -> bytes:
    """TPMT_PUBLIC of a signature key as LoadExternal takes it: P-256, SHA-256, no scheme of its own."""
    head = struct.pack(">HHIH", _ECC, _SHA256, _SIGN_WITH_AUTH, 0)
    head += struct.pack(">HHHH", _NULL, _NULL, _P256, _NULL)
    return head + b"".join(struct.pack(">H", len(part)) + part for part in key.point)


def name(public: bytes) -> bytes:
    """TPM2B_NAME's content of an object whose nameAlg is SHA-256 (Part 1, 16)."""
    return struct.pack(">H", _SHA256) + _sha256(public)


def revocation_name() -> bytes:
    """Name of the revocation index, once written: the same on every platform."""
    return nv_name(REVOCATION_INDEX, REVOCATION_ATTRIBUTES | NV_WRITTEN, REVOCATION_SIZE)


def nv_name(index: int, attributes: int, size: int, policy: bytes = b"") -> bytes:
    """Name of an NV index (TPMS_NV_PUBLIC: Part 2, 13.5)."""
    return name(struct.pack(">IHIH", index, _SHA256, attributes, len(policy)) + policy + struct.pack(">H", size))


def first_write() -> bytes:
    """The policy digest PolicyNvWritten(no), PolicyAuthValue: with the authValue, and once in the index's life."""
    unwritten = _sha256(bytes(32) + _cc(_CC_POLICY_NV_WRITTEN) + b"\0")
    return _sha256(unwritten + _cc(_CC_POLICY_AUTH_VALUE))


def place_name(index: int) -> bytes:
    """Name of a place, once written."""
    return nv_name(index, PLACE_ATTRIBUTES | NV_WRITTEN, ANCHOR_SIZE, first_write())


def anchor_names(index: int) -> tuple[bytes, bytes]:
    """Names that a written anchor at this index may have: one made by provisioning, or a place that was claimed."""
    return nv_name(index, ANCHOR_ATTRIBUTES | NV_WRITTEN, ANCHOR_SIZE), place_name(index)


def other_anchor(index: int) -> int:
    """Of the two anchor indices the one that is not ``index``."""
    return OTHER_ANCHOR_INDEX if index == ANCHOR_INDEX else ANCHOR_INDEX


def bit(number: int) -> bytes:
    """The operand that has bit ``number`` of the revocation index."""
    return (1 << number).to_bytes(REVOCATION_SIZE)


def _cc(code: int) -> bytes:
    return struct.pack(">I", code)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
