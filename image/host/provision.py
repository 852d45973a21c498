"""A simulated host's authority: it provisions the manager, approves its image, and has the operator's key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from image.host.links import Links
from manager_vm.errors import HostError
from manager_vm.trust import local

_PATIENCE = 120.0  # seconds for a manager to take possession of its hardware TPM


def provision(links: Links, authority: Path, image: Path, status: dict[str, Any]) -> None:
    """Have the key that drives the manager; one that has no authority yet gets ours, which approves its image."""
    found = local.open_or_make(authority)
    links.key = found.operator
    if not status["authority"]:
        order = {"operators": [found.enrolment], "approvals": [approve(authority, image)]}
        links.admin("provision", timeout=_PATIENCE, authority=found.public.der, **order)


def approve(authority: Path, image: Path) -> bytes:
    """The approval of an image by the authority in this directory."""
    try:
        root_hash = json.loads((image / "image.json").read_text())["root_hash"]
        pcrs = json.loads((image / "pcrs.json").read_text())["pcrs"]
    except (OSError, ValueError, KeyError) as error:
        raise HostError(f"{image} does not say what it measures to ({error}); run ./build.sh image") from None
    values = {int(pcr): bytes.fromhex(value) for pcr, value in pcrs.items()}
    return local.open_or_make(authority).approve(f"root hash {root_hash[:16]}", values)
