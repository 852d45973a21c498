"""The secrets that the hardware TPM's objects ask for, all derived from the root key, for one TPM alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from manager_vm import crypto
from manager_vm.crypto import Key

if TYPE_CHECKING:
    from tpm2_pytss import ESAPI, ESYS_TR


@dataclass(frozen=True, slots=True)
class Authorizations:
    """authValues of the hierarchies, of the anchor's index, of the AK and of SKs."""

    owner: Key
    endorsement: Key
    lockout: Key
    anchor: Key
    ak: Key
    sk: Key


def derive(root: Key, srk: bytes) -> Authorizations:
    """For the TPM whose SRK has this Name."""
    return Authorizations(
        *(crypto.derive(root, f"vtpm-manager {each.name} auth", srk) for each in fields(Authorizations))
    )


@contextmanager
def owner(tpm: ESAPI, auths: Authorizations | None) -> Iterator[ESYS_TR]:
    """The owner hierarchy with its authorization (None: nobody has set one yet), on the TPM's thread."""
    from tpm2_pytss.constants import ESYS_TR

    tpm.tr_set_auth(ESYS_TR.OWNER, auths.owner.reveal() if auths else None)
    try:
        yield ESYS_TR.OWNER
    finally:
        tpm.tr_set_auth(ESYS_TR.OWNER, None)


@contextmanager
def endorsement(tpm: ESAPI, auths: Authorizations) -> Iterator[ESYS_TR]:
    """The endorsement hierarchy with its authorization, on the TPM's thread."""
    from tpm2_pytss.constants import ESYS_TR

    tpm.tr_set_auth(ESYS_TR.ENDORSEMENT, auths.endorsement.reveal())
    try:
        yield ESYS_TR.ENDORSEMENT
    finally:
        tpm.tr_set_auth(ESYS_TR.ENDORSEMENT, None)
