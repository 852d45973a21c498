"""The anchor: which manifest is the one true (digest, 32 bytes), and what opens its key table (erase secret, 32).

Both stand in one NV index of the hardware TPM: whoever rolls the state disk back does not roll it back.
"""

from __future__ import annotations

from manager_vm.crypto import Key
from manager_vm.keys.hwtpm import nv
from manager_vm.keys.hwtpm.connection import Connection

DIGEST_SIZE = 32  # bytes, SHA-256


class NvAnchor:
    """The anchor of the TPM behind ``connection``; ``auth`` is its authValue, which only the root key gives."""

    def __init__(self, connection: Connection, auth: Key) -> None:
        self._connection = connection
        self._auth = auth

    def read(self) -> tuple[bytes, Key]:
        """(digest, erase secret); RollbackError if the index is missing, unwritten or made by somebody else."""
        data = nv.read_anchor(self._connection, self._auth)
        return data[:DIGEST_SIZE], Key(data[DIGEST_SIZE:])

    def write(self, digest: bytes, secret: Key) -> None:
        """Replace both values in one NV_Write."""
        nv.write_anchor(self._connection, self._auth, digest + secret.reveal())
