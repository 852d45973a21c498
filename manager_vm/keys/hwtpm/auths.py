"""The secrets that the hardware TPM's objects ask for, all derived from the root key, for one TPM alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manager_vm import crypto
from manager_vm.crypto import Key

if TYPE_CHECKING:
    from tpm2_pytss import ESAPI, ESYS_TR


@dataclass(frozen=True, slots=True)
class Authorizations:
    """authValues of the hierarchies and of the anchor's index."""

    owner: Key
    endorsement: Key
    lockout: Key
    anchor: Key


def derive(root: Key, srk: bytes) -> Authorizations:
    """For the TPM whose SRK has this Name."""
    kinds = ("owner", "endorsement", "lockout", "anchor")
    return Authorizations(*(crypto.derive(root, f"vtpm-manager {kind} auth", srk) for kind in kinds))


@contextmanager
def owner(tpm: ESAPI, auths: Authorizations | None) -> Iterator[ESYS_TR]:
    """The owner hierarchy with its authorization (None: nobody has set one yet), on the TPM's thread."""
    from tpm2_pytss.constants import ESYS_TR

    tpm.tr_set_auth(ESYS_TR.OWNER, auths.owner.reveal() if auths else None)
    try:
        yield ESYS_TR.OWNER
    finally:
        tpm.tr_set_auth(ESYS_TR.OWNER, None)
