"""What a manager can prove of its moves to others (MIGRATION.md, section 11)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from manager_vm.errors import StateError, StoreError
from manager_vm.protocol.agreement import Agreed
from manager_vm.store.manifest import Manifest
from manager_vm.store.receipts import Receipts
from manager_vm.trust import receipt
from manager_vm.wire import migration


class Proofs:
    """``directory``: of the receipts; those of moves that the manifest does not know are removed."""

    def __init__(self, manifest: Manifest, directory: Path) -> None:
        self._manifest = manifest
        self._receipts = Receipts(directory)
        self._receipts.tidy(manifest.contents.moves)

    @contextmanager
    def kept(self, agreed: Agreed) -> Iterator[None]:
        """What was agreed on is kept, durable, for the block and, if that leads to a move, from then on."""
        move = agreed.offer.move.hex()
        self._receipts.keep(move, receipt.pack((agreed.offer, agreed.accept, agreed.confirm)))
        try:
            yield
        finally:
            if move not in self._manifest.contents.moves:
                with suppress(StoreError):  # removed at the next start otherwise
                    self._receipts.drop(move)

    def of(self, named: str) -> bytes:
        """Of a move by its id, or of the newest one of a vTPM by its name; StateError where there is none."""
        moves = self._manifest.contents.moves
        move = next((each for each in reversed(moves.values()) if named in (each.id, each.name)), None)
        agreed = None if move is None else self._receipts.read(move.id)
        if move is None or agreed is None:
            raise StateError(f"no receipt of a move {named[:64]!r} is kept; 'migrations --json' shows all moves")
        words = [migration.parse_handover(each) for each in (move.sent, move.received) if each]
        return agreed + receipt.pack(words)
