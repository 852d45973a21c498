"""Fakes with behaviour, for unit tests that use no TPM."""

from __future__ import annotations

from pathlib import Path

from manager_vm.crypto import KEY_SIZE, Key
from manager_vm.errors import RollbackError
from manager_vm.store import atomic

DIGEST_SIZE = 32


class FileAnchor:
    """An anchor in a file (digest || erase secret), with the crashes and power losses of one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> tuple[bytes, Key]:
        """(digest, erase secret), which are on the disk then; RollbackError if the file is missing or cut short."""
        with atomic.store_errors(f"sync {self._path.parent}"):
            atomic.sync_directory(self._path.parent)
        data = atomic.read_file(self._path, DIGEST_SIZE + KEY_SIZE)
        if data is None or len(data) != DIGEST_SIZE + KEY_SIZE:
            raise RollbackError(f"the anchor {self._path} is missing or damaged")
        return data[:DIGEST_SIZE], Key(data[DIGEST_SIZE:])

    def write(self, digest: bytes, secret: Key) -> None:
        """Replace both values in one step; durable when this returns."""
        atomic.write_file(self._path, digest + secret.reveal())
