"""Which images may unseal here: STATE/approvals, one file per approval number, and the TPM's revocation bits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manager_vm.errors import EvidenceError, StateError
from manager_vm.keys.hwtpm import nv
from manager_vm.keys.hwtpm.auths import Authorizations
from manager_vm.keys.hwtpm.connection import Connection
from manager_vm.store import atomic
from manager_vm.trust import approval, envelope, pcrs
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


class Images:
    """What operators do about images while the manager serves. Thread-safe: every change is one file or one bit."""

    def __init__(self, directory: Path, tpm: Connection, auths: Authorizations, authority: VerifyKey) -> None:
        self._directory = directory
        self._tpm = tpm
        self._auths = auths
        self._authority = authority

    def listed(self) -> list[dict[str, Any]]:
        """Every approval here, by number, and the number of each revoked one whether it is here or not."""
        bits, known = nv.revoked(self._tpm), {each.number: each for each in self._known()}
        numbers = sorted({*known, *approval.numbers(bits)})
        return [_line(number, known.get(number), revoked=bool(bits >> number & 1)) for number in numbers]

    def is_revoked(self, number: int) -> bool:
        """Whether this approval is void here."""
        return bool(nv.revoked(self._tpm) >> number & 1)

    def approve(self, data: bytes) -> None:
        """Take an approval; EvidenceError if it is forged, or revoked already (a downgrade)."""
        new = approval.verify(data, self._authority)
        if nv.revoked(self._tpm) >> new.number & 1:
            raise EvidenceError(
                f"approval {new.number} ({new.image}) is revoked here, and stays so: have a newer image approved"
            )
        deposit(self._directory, data, self._authority)

    def revoke(self, data: bytes, *, force: bool) -> None:
        """Set the authority's revocation bits in the TPM, for ever. StateError if nothing would be left to boot."""
        bits = approval.verify_revocation(data, self._authority)
        left = [each for each in self._known() if not (nv.revoked(self._tpm) | bits) >> each.number & 1]
        if not left and not force:
            raise StateError(
                "no approval would be left here, and after its next reset this manager could not unseal its root key: "
                "'approve' the newer image first, or insist with --force"
            )
        nv.revoke(self._tpm, self._auths, bits)

    def fitting(self, values: Mapping[int, bytes]) -> bytes:
        """The newest approval, not revoked, of the image that shows these PCRs while it serves; b"" if none is."""
        bits = nv.revoked(self._tpm)
        for path in sorted(self._directory.glob("*.json"), key=lambda each: (len(each.name), each.name), reverse=True):
            data = atomic.read_file(path, envelope.MAX_SIZE) or b""
            with suppress(EvidenceError):
                found = approval.verify(data, self._authority)
                if pcrs.serving(dict(found.pcrs)) == dict(values) and not bits >> found.number & 1:
                    return data
        return b""

    def _known(self) -> list[Approval]:
        return load(self._directory, self._authority).approvals


def _line(number: int, known: Approval | None, *, revoked: bool) -> dict[str, Any]:
    state = "revoked" if revoked else "approved"
    return {"number": number, "state": state, "image": known.image if known else ""}
