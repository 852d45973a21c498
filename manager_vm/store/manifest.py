"""The anchored manifest: one file that says all, and the rule which copy of it is true (FORMAT.md, "Commit").

commit = write ``manifest.pending``, fsync, write the anchor, rename to ``manifest``. The copy whose digest is
in the anchor is true, so any crash leaves exactly one. Each commit draws a new erase secret, so that older copies
of the file can no longer be opened. Commits that wait for each other share one anchor write.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import NoReturn, Protocol

from manager_vm import crypto
from manager_vm.crypto import Key
from manager_vm.errors import RollbackError, StateError, StoreError, VtpmManagerError
from manager_vm.protocol import relocation
from manager_vm.protocol.relocation import Receiving
from manager_vm.store import atomic, sealed
from manager_vm.store.records import Contents

log = logging.getLogger(__name__)

MAX_SIZE = 64 << 20  # bytes; a vTPM takes about 4 kB

Change = Callable[[Contents], Contents]


class Anchor(Protocol):
    """Where the digest of the true manifest and its erase secret stand (keys/anchor)."""

    def read(self) -> tuple[bytes, Key]:
        """(digest, erase secret); RollbackError if missing."""

    def write(self, digest: bytes, secret: Key) -> None:
        """Replace both in one durable step."""


class _Commit:
    """One queued change and how it ended."""

    def __init__(self, change: Change, *, moves: bool) -> None:
        self.change = change
        self.moves = moves
        self.error: VtpmManagerError | None = None
        self.done = False


class Step(StrEnum):
    """Between these a crash leaves different things behind."""

    SEALED = "sealed"  # nothing is on the disk yet
    WRITTEN = "written"
    ANCHORED = "anchored"
    RENAMED = "renamed"


class Manifest:
    """The verified manifest. Only ``load`` and ``create`` make one. Thread-safe.

    ``reached`` is called between the steps of a commit: whoever enumerates crashes puts one there.
    """

    reached: Callable[[Step], None] = staticmethod(lambda step: None)

    def __init__(self, directory: Path, root: Key, anchor: Anchor, contents: Contents) -> None:
        self._directory = directory
        self._root = root
        self._anchor = anchor
        self._contents = contents
        self.digest = b""  # of the newest copy that is anchored
        self._queue: list[_Commit] = []
        self._turn = threading.Condition()
        self._writing = False
        self._rename_due = False  # the anchored copy is still called manifest.pending
        self.before_commit: Callable[[Contents, Contents], Contents] | None = None  # (old, new) -> what is committed

    @classmethod
    def create(cls, directory: Path, root: Key, anchor: Anchor, contents: Contents) -> Manifest:
        """Write the first manifest of a new state disk."""
        manifest = cls(directory, root, anchor, contents)
        manifest._write(contents)
        return manifest

    @classmethod
    def load(cls, directory: Path, root: Key, anchor: Anchor) -> Manifest:
        """Find, verify and open the one true manifest; RollbackError if neither copy is the anchored one."""
        digest, secret = anchor.read()
        true_file = _find(directory, digest)
        data = atomic.read_file(true_file, MAX_SIZE) or b""
        contents = sealed.open_with(data, sealed.store_key(root, secret))
        if true_file.name == "manifest.pending":
            with atomic.store_errors(f"finish the last commit in {directory}"):
                os.rename(true_file, directory / "manifest")
                atomic.sync_directory(directory)
        (directory / "manifest.pending").unlink(missing_ok=True)
        manifest = cls(directory, root, anchor, contents)
        manifest.digest = digest
        return manifest

    @property
    def contents(self) -> Contents:
        """The newest committed contents (immutable)."""
        return self._contents

    def commit(self, change: Change, *, moves: bool = False) -> Contents:
        """Apply ``change`` and make it durable; changes queued meanwhile share one anchor write.

        After success the change is anchored. After an error raised by ``change``, or a StoreError, it did not happen:
        where the outcome of the anchor's write is not known, the anchor is read back and decides; where that fails too,
        the process ends. StateError where the manager itself moves, or keeps a place for another one: nothing changes
        then but that (``moves``).
        """
        mine = _Commit(change, moves=moves)
        with self._turn:
            self._queue.append(mine)
            while self._writing and not mine.done:
                self._turn.wait()
            if not mine.done:
                self._lead()
        if mine.error is not None:
            raise mine.error
        return self._contents

    def claim(self, place: Anchor, anchor: Anchor, change: Change) -> Contents:
        """Commit with the first write of ``place``; ``anchor`` is the same index from then on, whatever comes of it.

        TakenError if somebody has written it already. Nobody else commits meanwhile: a manager that moves does not.
        """
        self._anchor = place
        try:
            return self.commit(change, moves=True)
        finally:
            self._anchor = anchor

    def anchored(self) -> tuple[bytes, Key]:
        """(digest, erase secret) as the anchor says: what opens this manifest at another platform."""
        return self._anchor.read()

    def _lead(self) -> None:
        """Write all queued changes at once. Called and left with the condition held."""
        batch, self._queue = self._queue, []
        self._writing = True
        failure: VtpmManagerError | None = StoreError("another change broke off this commit; try again")
        try:
            failure = self._try_write(_apply(batch, self._contents))
        finally:
            self._writing = False
            for commit in batch:
                commit.error = commit.error or failure
                commit.done = True
            self._turn.notify_all()

    def _try_write(self, contents: Contents) -> VtpmManagerError | None:
        """Write without holding the condition, so that others can queue meanwhile."""
        if contents is self._contents:
            return None
        self._turn.release()
        try:
            if self.before_commit is not None:
                contents = self.before_commit(self._contents, contents)
            self._write(contents)
        except VtpmManagerError as error:
            return error
        finally:
            self._turn.acquire()
        self._contents = contents
        return None

    def _write(self, contents: Contents) -> None:
        secret = Key.random()
        data = sealed.seal(contents, self._root, secret)
        digest, pending = crypto.digest(data), self._directory / "manifest.pending"
        self._rename_pending()
        self.reached(Step.SEALED)
        with atomic.store_errors(f"write {pending}"):
            atomic.write_pending(pending, data)
            atomic.sync_directory(self._directory)
        self.reached(Step.WRITTEN)
        try:
            self._anchor.write(digest, secret)
        except VtpmManagerError as error:
            if not self._is_anchored(digest, error):
                raise
        self.digest, self._rename_due = digest, True
        self.reached(Step.ANCHORED)
        with contextlib.suppress(StoreError):  # anchored: the commit holds; the next one renames first
            self._rename_pending()
        self.reached(Step.RENAMED)

    def _is_anchored(self, digest: bytes, error: VtpmManagerError) -> bool:
        """The outcome of the anchor's write is not known: read it back, it decides.

        If it cannot be read either, nothing here may go on: the disk may say one thing and this process do another.
        """
        try:
            return self._anchor.read()[0] == digest
        except VtpmManagerError as again:
            _end_process(f"the outcome of a commit is not known ({error}; {again}): only a new start can tell")

    def _rename_pending(self) -> None:
        if not self._rename_due:
            return
        with atomic.store_errors(f"rename the manifest in {self._directory}"):
            with contextlib.suppress(FileNotFoundError):  # renamed before, but the directory's sync failed
                os.rename(self._directory / "manifest.pending", self._directory / "manifest")
            atomic.sync_directory(self._directory)
        self._rename_due = False


def _end_process(why: str) -> NoReturn:
    """No handler, no clean-up: what they did could be wrong. A supervisor starts the manager again."""
    log.critical("%s", why)
    os._exit(os.EX_IOERR)


def _apply(batch: list[_Commit], old: Contents) -> Contents:
    """``old`` after all changes that do not refuse; with the next serial if it differs."""
    new = old
    for commit in batch:
        try:
            changed = commit.change(new)
            if changed is not new and not commit.moves:
                _demand_stays(new)
            new = changed
        except VtpmManagerError as error:
            commit.error = error
    return old if new is old else replace(new, serial=old.serial + 1)


def _demand_stays(contents: Contents) -> None:
    """StateError for the manifest of a manager that has left, or that keeps a place for another one."""
    leaving, expected = contents.departure, contents.expected
    state = leaving.state if leaving else Receiving.PREPARED if expected else None
    if relocation.commits(state):
        return
    if leaving is not None:
        raise StateError(f"this manager has left for platform {leaving.peer}: nothing is changed here any more")
    raise StateError("this manager keeps its place for another one that comes; 'relocate --abort' gives that up")


def _find(directory: Path, digest: bytes) -> Path:
    seen = False
    for name in ("manifest", "manifest.pending"):
        data = atomic.read_file(directory / name, MAX_SIZE)
        seen = seen or data is not None
        if data is not None and crypto.digest(data) == digest:
            return directory / name
    if not seen:
        raise RollbackError(f"{directory} has no manifest although the anchor names one; restore the newest state disk")
    raise RollbackError(
        f"the manifest in {directory} is not the anchored one: it is older, or was changed; "
        "restore the newest state disk"
    )
