"""Taking a hardware TPM into possession. Each step can be repeated.

Order matters: the root key is sealed and on the disk before the first authorization is changed, since all are
derived from it; a crash at any point is mended by doing it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from manager_vm.crypto import Key
from manager_vm.errors import HardwareTpmError
from manager_vm.keys.hwtpm import nv
from manager_vm.keys.hwtpm.attest import AK_HANDLE
from manager_vm.keys.hwtpm.auths import Authorizations, owner
from manager_vm.keys.hwtpm.connection import SRK_ATTRIBUTES, SRK_HANDLE, SRK_TEMPLATE, Connection, flushed, srk_name
from manager_vm.trust import policy

if TYPE_CHECKING:
    from tpm2_pytss import ESAPI, ESYS_TR

_SET_BITS = {"owner": 1, "endorsement": 2, "lockout": 4}  # TPMA_PERMANENT (Part 2, 8.6)


def demand_unowned(connection: Connection) -> None:
    """HardwareTpmError if somebody has set an authorization of this TPM already."""
    if is_owned(connection):
        raise HardwareTpmError(
            "this hardware TPM belongs to another manager (its authorizations are set): use the state disk that "
            "belongs to it, or clear the TPM (TPM2_Clear) to start anew"
        )


def is_owned(connection: Connection) -> bool:
    """Whether somebody has set an authorization of this TPM already."""
    return bool(_permanent(connection) & sum(_SET_BITS.values()))


def future_srk(connection: Connection) -> bytes:
    """Name of the SRK that this TPM has, or would have if it were made: it follows from the owner's seed."""
    return srk_name(connection) or connection.request("compute the SRK", lambda tpm: _make_srk(tpm, keep=False))


def find_or_make_srk(connection: Connection) -> bytes:
    """The SRK's Name; sessions are salted to it from now on."""
    name = srk_name(connection) or connection.request("make the SRK", _make_srk)
    connection.pin(name)
    return name


def take(connection: Connection, auths: Authorizations) -> None:
    """Set the authorizations that are not set yet, define the anchor's index."""
    found = _permanent(connection)
    for kind, bit in reversed(_SET_BITS.items()):
        if not found & bit:
            _change_auth(connection, kind, getattr(auths, kind), None)
    nv.define_anchor(connection, auths)


def leave(connection: Connection, auths: Authorizations) -> None:
    """Give the TPM up: no AK, no authorizations, no anchor. The anchor goes last: until then this can be repeated."""
    found = _permanent(connection)
    for kind, bit in _SET_BITS.items():
        if found & bit and kind != "owner":
            _change_auth(connection, kind, None, getattr(auths, kind))
    current = auths if found & _SET_BITS["owner"] else None
    _evict_ak(connection, current)
    nv.remove(connection, current, policy.other_anchor(auths.index))
    if current is not None:
        _change_auth(connection, "owner", None, auths.owner)
    nv.remove(connection, None, auths.index)


def _permanent(connection: Connection) -> int:
    """TPMA_PERMANENT."""

    def ask(tpm: ESAPI) -> int:
        from tpm2_pytss.constants import TPM2_CAP, TPM2_PT

        _, data = tpm.get_capability(TPM2_CAP.TPM_PROPERTIES, TPM2_PT.PERMANENT, 1)
        return int(data.data.tpmProperties[0].value)

    return connection.request("ask which authorizations are set", ask)


def _make_srk(tpm: ESAPI, *, keep: bool = True) -> bytes:
    from tpm2_pytss import TPM2B_PUBLIC
    from tpm2_pytss.constants import ESYS_TR, TPMA_OBJECT

    template = TPM2B_PUBLIC.parse(SRK_TEMPLATE, objectAttributes=TPMA_OBJECT.parse(SRK_ATTRIBUTES))
    handle, public, _, _, _ = tpm.create_primary(None, template, ESYS_TR.OWNER)
    with flushed(tpm, handle):
        if keep:
            tpm.tr_close(tpm.evict_control(ESYS_TR.OWNER, handle, SRK_HANDLE))
    return policy.name(public.publicArea.marshal())


def _change_auth(connection: Connection, kind: str, new: Key | None, old: Key | None) -> None:
    def change(tpm: ESAPI, session: ESYS_TR) -> None:
        from tpm2_pytss.constants import ESYS_TR

        handle = {"owner": ESYS_TR.OWNER, "endorsement": ESYS_TR.ENDORSEMENT, "lockout": ESYS_TR.LOCKOUT}[kind]
        tpm.tr_set_auth(handle, old.reveal() if old else None)
        try:
            tpm.hierarchy_change_auth(handle, new.reveal() if new else b"", session1=session)
        finally:
            tpm.tr_set_auth(handle, None)

    connection.protected(f"set the {kind} authorization", change)


def _evict_ak(connection: Connection, auths: Authorizations | None) -> None:
    def evict(tpm: ESAPI, session: ESYS_TR) -> None:
        from tpm2_pytss.constants import TPM2_CAP

        _, data = tpm.get_capability(TPM2_CAP.HANDLES, AK_HANDLE, 1)
        if AK_HANDLE in [int(handle) for handle in data.data.handles]:
            with owner(tpm, auths) as hierarchy:
                tpm.evict_control(hierarchy, tpm.tr_from_tpmpublic(AK_HANDLE), AK_HANDLE, session1=session)

    connection.protected("remove the AK", evict)
