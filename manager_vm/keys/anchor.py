"""The anchor: which manifest is the one true (digest, 32 bytes), and what opens its key table (erase secret, 32).

Whoever rolls the state disk back does not roll the anchor back with it. ``FileAnchor`` keeps both values in a
file of its own: it finds crashes and mixed-up files, and proves nothing against a host that restores both.
The border (``read``, ``write``) is that of an anchor in the hardware TPM's NV storage.
"""

from __future__ import annotations

from pathlib import Path

from manager_vm.crypto import KEY_SIZE, Key
from manager_vm.errors import RollbackError
from manager_vm.store import atomic

DIGEST_SIZE = 32  # bytes, SHA-256
_SIZE = DIGEST_SIZE + KEY_SIZE


class FileAnchor:
    """An anchor in a 64-byte file: digest || erase secret."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def exists(self) -> bool:
        """False only before the first write ever."""
        return self._path.exists()

    def read(self) -> tuple[bytes, Key]:
        """(digest, erase secret); RollbackError if the anchor is missing or cut short: it is never made anew.

        What is read is on the disk: a write whose outcome was not known counts as done only then.
        """
        with atomic.store_errors(f"sync {self._path.parent}"):
            atomic.sync_directory(self._path.parent)
        data = atomic.read_file(self._path, _SIZE)
        if data is None or len(data) != _SIZE:
            raise RollbackError(
                f"the anchor {self._path} is missing or damaged: nothing says which state is the newest; "
                "restore it together with the state disk it belongs to"
            )
        return data[:DIGEST_SIZE], Key(data[DIGEST_SIZE:])

    def write(self, digest: bytes, secret: Key) -> None:
        """Replace both values in one step; durable when this returns."""
        atomic.write_file(self._path, digest + secret.reveal())
