"""STATE/approvals: what the authority has approved, one file per approval number."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from manager_vm.errors import EvidenceError
from manager_vm.store import atomic
from manager_vm.trust import approval, envelope
from manager_vm.trust.approval import Approval
from manager_vm.trust.signing import VerifyKey

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """Verified approvals, and what is wrong with files that hold none."""

    approvals: list[Approval]
    complaints: list[str]


def load(directory: Path, authority: VerifyKey) -> Found:
    """Every file of the directory, verified. A forged one is named, and keeps no other from being used."""
    found, complaints = [], []
    for path in sorted(directory.glob("*.json")):
        data = atomic.read_file(path, envelope.MAX_SIZE)
        try:
            found.append(approval.verify(data or b"", authority))
        except EvidenceError as error:
            log.error("%s: %s", path.name, error)
            complaints.append(f"{path.name}: {error}")
    return Found(found, complaints)


def deposit(directory: Path, data: bytes, authority: VerifyKey) -> Approval:
    """Keep an approval for the boots to come; EvidenceError unless the authority signed it."""
    new = approval.verify(data, authority)
    atomic.make_directory(directory)
    atomic.write_file(directory / f"{new.number}.json", data)
    return new
