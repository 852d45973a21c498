"""Another manager, as its evidence shows it (R4): an enrolled platform, whose approved image serves, in this move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from manager_vm.errors import EvidenceError
from manager_vm.trust import approval, bundle, linked, platform
from manager_vm.trust.platform import Platform
from manager_vm.trust.signing import VerifyKey


@dataclass(frozen=True, slots=True)
class Rules:
    """Whom this manager believes. ``authority``: who enrols platforms and approves images.

    ``revoked_image`` says whether an approval, by its number, is revoked here; ``revoked_platform`` whether an AK, by
    its Name, is of a platform that no vTPM may go to, or come from.
    """

    authority: VerifyKey
    revoked_image: Callable[[int], bool]
    revoked_platform: Callable[[bytes], bool]


@dataclass(frozen=True, slots=True)
class Peer:
    """Made by ``verify`` only. ``image``: the approval's number."""

    platform: Platform
    image: int


def verify(evidence: bytes, binding: bytes, name: str, rules: Rules) -> Peer:
    """The platform called ``name``, whose hardware TPM has quoted ``binding``; EvidenceError for anything else."""
    host = bundle.parse_host(evidence)
    enrolled = platform.verify(host.statement, rules.authority)
    if enrolled.name != name:
        raise EvidenceError(f"the other side is platform {enrolled.name!r}, not {name!r}, which the order names")
    if rules.revoked_platform(enrolled.ak.name):
        raise EvidenceError(f"platform {name!r} is revoked here: no vTPM goes there or comes from there any more")
    if not host.approval:
        raise EvidenceError(f"platform {name!r} shows no approval of its image")
    for _ in linked.host_steps(host, binding, rules.authority):
        pass
    approved = approval.verify(host.approval, rules.authority)
    if rules.revoked_image(approved.number):
        raise EvidenceError(f"the image of platform {name!r} (approval {approved.number}) is revoked here")
    return Peer(enrolled, approved.number)
