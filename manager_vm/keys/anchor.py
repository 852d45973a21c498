"""The anchor: which manifest is the one true (digest, 32 bytes), and what opens its key table (erase secret, 32).

Both stand in one NV index of the hardware TPM: whoever rolls the state disk back does not roll it back.
"""

from __future__ import annotations

from manager_vm.crypto import Key
from manager_vm.keys.hwtpm import nv
from manager_vm.keys.hwtpm.auths import Authorizations
from manager_vm.keys.hwtpm.connection import Connection

DIGEST_SIZE = 32  # bytes, SHA-256


class NvAnchor:
    """The anchor of the TPM behind ``connection``; ``auths`` say which index it is, and its authValue."""

    def __init__(self, connection: Connection, auths: Authorizations) -> None:
        self._connection = connection
        self._auths = auths

    def read(self) -> tuple[bytes, Key]:
        """(digest, erase secret); RollbackError if the index is missing, unwritten or made by somebody else."""
        data = nv.read_anchor(self._connection, self._auths)
        return data[:DIGEST_SIZE], Key(data[DIGEST_SIZE:])

    def write(self, digest: bytes, secret: Key) -> None:
        """Replace both values in one NV_Write."""
        nv.write_anchor(self._connection, self._auths, digest + secret.reveal())


class Place:
    """An anchor that was never written: whoever writes it first has it (``Manifest.claim``), and nobody after that."""

    def __init__(self, connection: Connection, auths: Authorizations) -> None:
        self._connection = connection
        self._auths = auths

    def read(self) -> tuple[bytes, Key]:
        """As an anchor's: what the first one has written."""
        return NvAnchor(self._connection, self._auths).read()

    def write(self, digest: bytes, secret: Key) -> None:
        """TakenError if somebody was here before."""
        nv.write_first(self._connection, self._auths, digest + secret.reveal())
