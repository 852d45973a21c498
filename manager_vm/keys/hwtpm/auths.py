"""The secrets that the hardware TPM's objects ask for, derived from a key of the manager, for one TPM alone.

That key is the root key, or, for a manager that has come from another platform, the one of the receiver whose TPM
it has taken over (``keys/place``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from manager_vm import crypto
from manager_vm.crypto import Key
from manager_vm.trust import policy

if TYPE_CHECKING:
    from tpm2_pytss import ESAPI, ESYS_TR


_KINDS = ("owner", "endorsement", "lockout", "anchor", "ak", "sk")


@dataclass(slots=True)
class Authorizations:
    """authValues of the hierarchies, of the anchor's index, of the AK and of SKs; ``index``: which one is the anchor.

    Shared by all who ask something of the hardware TPM, so that a manager which wakes up over another TPM tells all of
    them at once (``become``).
    """

    owner: Key
    endorsement: Key
    lockout: Key
    anchor: Key
    ak: Key
    sk: Key
    index: int = policy.ANCHOR_INDEX

    def become(self, other: Authorizations) -> None:
        """From now on those of ``other``: the TPM under this manager is another one."""
        for each in fields(self):
            setattr(self, each.name, getattr(other, each.name))


def derive(root: Key, srk: bytes) -> Authorizations:
    """For the TPM whose SRK has this Name."""
    keys: list[Any] = [crypto.derive(root, f"vtpm-manager {kind} auth", srk) for kind in _KINDS]
    return Authorizations(*keys)


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
