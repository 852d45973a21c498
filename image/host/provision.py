"""A simulated host's authority: it provisions the manager, approves its image, and has the operator's key."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from image.host.links import Links
from manager_vm.errors import HostError, VtpmManagerError
from manager_vm.trust import local

log = logging.getLogger(__name__)

_KEYS = 16  # signing keys for vTPMs to come: as many as the manager has slots for guests
_PATIENCE = 120.0  # seconds for a manager to take possession of its hardware TPM


def provision(links: Links, authority: Path, image: Path, status: dict[str, Any]) -> None:
    """Have the key that drives the manager; one that has no authority yet gets ours, which approves its image."""
    found = local.open_or_make(authority)
    links.key = found.operator
    if not status["authority"]:
        order = {"operators": [found.enrolment], "approvals": [approve(authority, image)]}
        links.admin("provision", timeout=_PATIENCE, authority=found.public.der, **order)


class _Candidate:
    """The manager behind these links, as somebody to be enrolled."""

    def __init__(self, links: Links) -> None:
        self._links = links

    def evidence(self, more: int) -> bytes:
        return bytes(self._links.admin("platform_evidence", more=more))

    def activate(self, data: bytes) -> bytes:
        return bytes(self._links.admin("platform_activate", statement=data))

    def install(self, data: bytes) -> None:
        self._links.admin("platform_install", statement=data)


def enrol(links: Links, authority: Path, vendor: Path) -> None:
    """Have our authority enrol the platform of a manager that serves; one that cannot be is good for all the rest."""
    try:
        if not links.admin("platform_show")["enrolled"]:
            local.open_or_make(authority).enrol(_Candidate(links), vendor, keys=_KEYS)
    except VtpmManagerError as error:
        log.warning("the manager's platform is not enrolled: %s", error)


def approve(authority: Path, image: Path) -> bytes:
    """The approval of an image by the authority in this directory."""
    try:
        root_hash = json.loads((image / "image.json").read_text())["root_hash"]
        pcrs = json.loads((image / "pcrs.json").read_text())["pcrs"]
    except (OSError, ValueError, KeyError) as error:
        raise HostError(f"{image} does not say what it measures to ({error}); run ./build.sh image") from None
    values = {int(pcr): bytes.fromhex(value) for pcr, value in pcrs.items()}
    return local.open_or_make(authority).approve(f"root hash {root_hash[:16]}", values)
