"""Approvals of images and their revocation, as the authority signs them.

An approval carries two signatures of the authority: that of the statement, and the one that a TPM takes as
TPM2_PolicyAuthorize's ticket over the image's policy. So the TPM itself enforces what the statement says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.trust import envelope, policy
from manager_vm.trust.signing import SigningKey, VerifyKey

APPROVAL = "approval"
REVOCATION = "revocation"
_MAX_TEXT = 200


@dataclass(frozen=True, slots=True)
class Approval:
    """Image ``image`` (a description for people) may unseal while its PCRs are ``pcrs``. Made by ``verify`` only.

    ``number``: its bit in the revocation index, 0 to 63. ``ticket``: the authority's signature for the TPM, 64 bytes.
    """

    number: int
    image: str
    pcrs: Mapping[int, bytes]
    ticket: bytes

    @property
    def policy(self) -> bytes:
        """The policy digest that is authorised."""
        return policy.approved(self.pcrs, self.number)


def approve(number: int, image: str, pcrs: Mapping[int, bytes], authority: SigningKey) -> bytes:
    """A signed approval."""
    if not 0 <= number < policy.MAX_APPROVALS:
        raise ConfigError(f"approval number {number}: a revocation index has {policy.MAX_APPROVALS} bits, all are used")
    if tuple(sorted(pcrs)) != policy.BOUND_PCRS or any(len(value) != policy.PCR_SIZE for value in pcrs.values()):
        raise ConfigError(f"an approval binds the SHA-256 PCRs {', '.join(map(str, policy.BOUND_PCRS))}, no others")
    body = {
        "number": number,
        "image": image[:_MAX_TEXT],
        "pcrs": {str(pcr): pcrs[pcr].hex() for pcr in sorted(pcrs)},
        "ticket": authority.sign(policy.to_be_signed(policy.approved(pcrs, number))).hex(),
    }
    return envelope.sign(APPROVAL, body, authority)


def verify(data: bytes, authority: VerifyKey) -> Approval:
    """The approval that ``authority`` signed; EvidenceError otherwise."""
    body, _ = envelope.verify(APPROVAL, data, [authority])
    approval = _parse(body)
    authority.verify(approval.ticket, policy.to_be_signed(approval.policy), f"the ticket of approval {approval.number}")
    return approval


def revoke(bits: int, reason: str, authority: SigningKey) -> bytes:
    """A signed revocation of all approvals whose bit is set in ``bits``."""
    if not 0 < bits < 1 << policy.MAX_APPROVALS:
        raise ConfigError("a revocation names at least one approval, by its number from 0 to 63")
    return envelope.sign(REVOCATION, {"bits": f"{bits:016x}", "reason": reason[:_MAX_TEXT]}, authority)


def verify_revocation(data: bytes, authority: VerifyKey) -> int:
    """The bits to set; EvidenceError unless ``authority`` signed them."""
    body, _ = envelope.verify(REVOCATION, data, [authority])
    try:
        bits = int(body["bits"], 16)
    except (KeyError, TypeError, ValueError):
        bits = 0
    if not 0 < bits < 1 << policy.MAX_APPROVALS:
        raise EvidenceError("this revocation names no approvals: it was made by another version")
    return bits


def numbers(bits: int) -> list[int]:
    """The approvals whose bits are set, in ascending order."""
    return [number for number in range(policy.MAX_APPROVALS) if bits >> number & 1]


def _parse(body: dict[str, Any]) -> Approval:
    try:
        pcrs = {int(pcr): bytes.fromhex(value) for pcr, value in body["pcrs"].items()}
        found = Approval(body["number"], body["image"], pcrs, bytes.fromhex(body["ticket"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvidenceError(f"this approval lacks a part ({error}): it was made by another version") from None
    good = type(found.number) is int and 0 <= found.number < policy.MAX_APPROVALS and isinstance(found.image, str)
    if not good or tuple(sorted(pcrs)) != policy.BOUND_PCRS or any(len(v) != policy.PCR_SIZE for v in pcrs.values()):
        raise EvidenceError("this approval does not bind what an approval must bind: it was made by another version")
    return found
