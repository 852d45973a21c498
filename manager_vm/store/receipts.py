"""What moves were agreed on, kept for whoever wants to verify them later (MIGRATION.md, section 11): a file for each.

They are signed and quoted by others, so the manifest need not contain them: a receipt that was changed does not verify.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable
from pathlib import Path

from manager_vm.errors import StoreError
from manager_vm.store import atomic
from manager_vm.store.moves import KEPT

MAX_SIZE = 1 << 20  # bytes, unpacked: two platforms' evidence


class Receipts:
    """Thread-safe: moves keep and drop theirs side by side. ``directory`` is made. A move is named by its id in hex."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()  # whoever lists the directory sees no file that comes or goes
        atomic.make_directory(directory)

    def keep(self, move: str, data: bytes) -> None:
        """Durable; the oldest beyond the newest ``KEPT`` go."""
        with self._lock, atomic.store_errors(f"keep the receipt of move {move}"):
            atomic.write_file(self._directory / move, zlib.compress(data))
            files = sorted(self._directory.iterdir(), key=lambda path: path.stat().st_mtime_ns)
            for old in files[:-KEPT]:
                old.unlink()

    def read(self, move: str) -> bytes | None:
        """None where it is not kept (any more); StoreError for a damaged file."""
        packed = atomic.read_file(self._directory / move, MAX_SIZE)
        if packed is None:
            return None
        try:
            unpacking = zlib.decompressobj()
            data = unpacking.decompress(packed, MAX_SIZE)
        except zlib.error as error:
            raise StoreError(f"the receipt of move {move} is damaged on the disk: {error}") from None
        if not unpacking.eof:
            raise StoreError(f"the receipt of move {move} is damaged on the disk: it has no end")
        return data

    def drop(self, move: str) -> None:
        """Of a move that has come to nothing."""
        with self._lock, atomic.store_errors(f"remove the receipt of move {move}"):
            (self._directory / move).unlink(missing_ok=True)

    def tidy(self, known: Iterable[str]) -> None:
        """Keep those of these moves only."""
        for move in {path.name for path in self._directory.iterdir()} - set(known):
            self.drop(move)
