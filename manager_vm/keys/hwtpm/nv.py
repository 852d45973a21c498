"""The two NV indices: the anchor, and the revocation bits that approvals depend on (``trust/policy``).

The anchor is trusted through its authValue, not its Name: an index that somebody undefined and made again has the same
Name, but cannot answer an HMAC session with an authValue that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from manager_vm.crypto import Key
from manager_vm.errors import HardwareTpmError, RollbackError, TakenError
from manager_vm.keys.hwtpm.auths import Authorizations, owner
from manager_vm.keys.hwtpm.connection import Connection, response_is_forged
from manager_vm.trust import policy

if TYPE_CHECKING:
    from tpm2_pytss import ESAPI, ESYS_TR

_RC_HANDLE = 0x18B  # TPM_RC_HANDLE of handle 1: no such index
_RC_NV_UNINITIALIZED = 0x14A
_RC_POLICY = 0x99D  # TPM_RC_POLICY_FAIL of session 1
_WRONG_AUTH = frozenset((0x9A2, 0x98E))  # TPM_RC_BAD_AUTH, TPM_RC_AUTH_FAIL, of session 1
_LOST = "it is never made anew: the newest state cannot be told from an older one; restore from a recovery keyslot"


def present(connection: Connection) -> set[int]:
    """NV indices that exist, from ours on."""

    def ask(tpm: ESAPI) -> set[int]:
        from tpm2_pytss.constants import TPM2_CAP

        _, data = tpm.get_capability(TPM2_CAP.HANDLES, policy.ANCHOR_INDEX, 16)
        return {int(handle) for handle in data.data.handles}

    return connection.request("list the NV indices", ask)


def define_revocation(connection: Connection) -> None:
    """Define it unless it is there, and write it: approvals hold for the Name that it has once written.

    For a TPM that nobody owns: without this index nothing unseals, so it stands before anything is sealed.
    """
    if policy.REVOCATION_INDEX not in present(connection):
        _define(connection, None, policy.REVOCATION_INDEX, policy.REVOCATION_ATTRIBUTES, policy.REVOCATION_SIZE, b"")
    revoke(connection, None, 0)
    if _name(connection, policy.REVOCATION_INDEX) != policy.revocation_name():
        raise HardwareTpmError(
            f"NV index 0x{policy.REVOCATION_INDEX:08x} of the hardware TPM is used for something else; clear the TPM"
        )


def define_anchor(connection: Connection, auths: Authorizations) -> None:
    """Define it unless it is there; it is not written yet."""
    if auths.index not in present(connection):
        secret = auths.anchor.reveal()
        _define(connection, auths, auths.index, policy.ANCHOR_ATTRIBUTES, policy.ANCHOR_SIZE, secret)


def define_place(connection: Connection, auths: Authorizations, secret: Key) -> int:
    """A place for another manager's anchor, with this authValue: the index. One of before, for whomever, is gone."""
    index = policy.other_anchor(auths.index)
    remove(connection, auths, index)
    digest = policy.first_write()
    _define(connection, auths, index, policy.PLACE_ATTRIBUTES, policy.ANCHOR_SIZE, secret.reveal(), digest)
    return index


def remove(connection: Connection, auths: Authorizations | None, index: int) -> None:
    """TPM2_NV_UndefineSpace; nothing happens if there is no such index."""
    if index not in present(connection):
        return

    def undefine(tpm: ESAPI, session: ESYS_TR) -> None:
        with owner(tpm, auths) as hierarchy:
            tpm.nv_undefine_space(tpm.tr_from_tpmpublic(index), auth_handle=hierarchy, session1=session)

    connection.protected(f"remove the NV index 0x{index:08x}", undefine)


def write_first(connection: Connection, auths: Authorizations, data: bytes) -> None:
    """Write a place, which nobody has written before: the TPM itself decides between two. TakenError for the second."""

    def write(tpm: ESAPI) -> None:
        with _index(tpm, auths.index, auths.anchor) as index, connection.session(tpm, for_policy=True) as first:
            tpm.policy_nv_written(first, False)
            tpm.policy_auth_value(first)
            tpm.nv_write(index, data, 0, auth_handle=index, session1=first)

    try:
        connection.request("claim the place in the hardware TPM", write)
    except HardwareTpmError as error:
        if error.rc == _RC_POLICY:
            raise TakenError(
                "another copy of this manager was here first, or the move was given back: this one must not serve"
            ) from None
        raise _as_rollback(error) from error


def read_anchor(connection: Connection, auths: Authorizations) -> bytes:
    """Its 64 bytes; RollbackError if it is missing, unwritten, or not the one that this manager made."""

    def read(tpm: ESAPI, session: ESYS_TR) -> bytes:
        with _index(tpm, auths.index, auths.anchor) as index:
            return bytes(tpm.nv_read(index, policy.ANCHOR_SIZE, 0, auth_handle=index, session1=session))

    try:
        return connection.protected("read the anchor", read)
    except HardwareTpmError as error:
        raise _as_rollback(error) from error


def write_anchor(connection: Connection, auths: Authorizations, data: bytes) -> None:
    """Replace its 64 bytes in one NV_Write."""

    def write(tpm: ESAPI, session: ESYS_TR) -> None:
        with _index(tpm, auths.index, auths.anchor) as index:
            tpm.nv_write(index, data, 0, auth_handle=index, session1=session)

    try:
        connection.protected("write the anchor", write)
    except HardwareTpmError as error:
        raise _as_rollback(error) from error


def is_written(connection: Connection) -> bool:
    """Whether an anchor exists, at either index, and was ever written (TPMA_NV_WRITTEN)."""
    anchors = present(connection) & {policy.ANCHOR_INDEX, policy.OTHER_ANCHOR_INDEX}
    return any(_attributes(connection, index) & policy.NV_WRITTEN for index in anchors)


def revoke(connection: Connection, auths: Authorizations | None, bits: int) -> None:
    """Set revocation bits; nothing clears them again."""

    def write(tpm: ESAPI, session: ESYS_TR) -> None:
        with _index(tpm, policy.REVOCATION_INDEX, None) as index, owner(tpm, auths) as handle:
            tpm.nv_set_bits(index, bits, auth_handle=handle, session1=session)

    connection.protected("set the revocation bits", write)


def revoked(connection: Connection) -> int:
    """The revocation bits."""

    def read(tpm: ESAPI, session: ESYS_TR) -> int:
        with _index(tpm, policy.REVOCATION_INDEX, None) as index:
            data = tpm.nv_read(index, policy.REVOCATION_SIZE, 0, auth_handle=index, session1=session)
            return int.from_bytes(bytes(data))

    return connection.protected("read the revocation bits", read)


def _attributes(connection: Connection, number: int) -> int:
    def ask(tpm: ESAPI) -> int:
        with _index(tpm, number, None) as index:
            public, _ = tpm.nv_read_public(index)
            return int(public.nvPublic.attributes)

    return connection.request("look at the anchor", ask)


def _name(connection: Connection, number: int) -> bytes:
    def ask(tpm: ESAPI) -> bytes:
        with _index(tpm, number, None) as index:
            return bytes(tpm.tr_get_name(index))

    return connection.request("look at an NV index", ask)


def _define(
    connection: Connection,
    auths: Authorizations | None,
    index: int,
    attributes: int,
    size: int,
    auth: bytes,
    digest: bytes = b"",
) -> None:
    def define(tpm: ESAPI, session: ESYS_TR) -> None:
        from tpm2_pytss import TPM2B_NV_PUBLIC, TPMS_NV_PUBLIC
        from tpm2_pytss.constants import TPM2_ALG

        public = TPMS_NV_PUBLIC(
            nvIndex=index, nameAlg=TPM2_ALG.SHA256, attributes=attributes, authPolicy=digest, dataSize=size
        )
        with owner(tpm, auths) as handle:
            made = tpm.nv_define_space(auth, TPM2B_NV_PUBLIC(nvPublic=public), auth_handle=handle, session1=session)
        tpm.tr_close(made)

    connection.protected(f"define the NV index 0x{index:08x}", define)


@contextmanager
def _index(tpm: ESAPI, number: int, auth: Key | None) -> Iterator[ESYS_TR]:
    index = tpm.tr_from_tpmpublic(number)
    try:
        if auth is not None:
            tpm.tr_set_auth(index, auth.reveal())
        yield index
    finally:
        tpm.tr_close(index)


def _as_rollback(error: HardwareTpmError) -> Exception:
    if error.rc == _RC_HANDLE:
        return RollbackError(f"the anchor is missing from the hardware TPM: {_LOST}")
    if error.rc == _RC_NV_UNINITIALIZED:
        return RollbackError(f"the anchor in the hardware TPM was never written: {_LOST}")
    if error.rc in _WRONG_AUTH or response_is_forged(error):
        return RollbackError(f"the anchor in the hardware TPM is not the one that this manager made: {_LOST}")
    return error
