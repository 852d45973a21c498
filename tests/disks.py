"""A disk that fails, stops or loses power at a chosen step: what crash tests of the store stand on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_OPEN, _WRITE, _FSYNC, _RENAME = os.open, os.write, os.fsync, os.rename


class Crash(BaseException):
    """The manager is gone; nothing may catch this."""


class Disk:
    """Counts the steps (create, write, fsync, rename) that change ``directory``; step ``fatal`` does not happen.

    ``how``: "crash" = the process ends there; "power" = it ends and whatever was not synced is lost; "error" =
    that step alone fails with EIO.
    """

    def __init__(self, directory: Path, fatal: int = -1, how: str = "crash") -> None:
        self.steps = 0
        self._directory = directory
        self._fatal = fatal
        self._how = how
        self._unsynced: set[int] = set()  # inodes
        self._undo: list[Callable[[], object]] = []  # changes of the directory that are not synced, newest last

    @contextmanager
    def inserted(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Stand between the program and the files within this block; a crash ends the block quietly."""
        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, "open", self._open)
                patch.setattr(os, "write", self._write)
                patch.setattr(os, "fsync", self._fsync)
                patch.setattr(os, "rename", self._rename)
                yield
        except Crash:
            if self._how == "power":
                self._lose()

    def _step(self) -> None:
        self.steps += 1
        if self.steps - 1 == self._fatal:
            raise OSError(errno.EIO, "the disk failed") if self._how == "error" else Crash

    def _open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        creates = flags & os.O_CREAT and not path.exists()
        if flags & os.O_CREAT:
            self._step()
        fd = _OPEN(path, flags, mode)
        if creates:
            self._undo.append(lambda: path.unlink(missing_ok=True))
        if flags & os.O_TRUNC:
            self._unsynced.add(os.fstat(fd).st_ino)
        return fd

    def _write(self, fd: int, data: bytes) -> int:
        self._step()
        self._unsynced.add(os.fstat(fd).st_ino)
        return _WRITE(fd, data)

    def _fsync(self, fd: int) -> None:
        self._step()
        _FSYNC(fd)
        status = os.fstat(fd)
        self._unsynced.discard(status.st_ino)
        if status.st_ino == self._directory.stat().st_ino:
            self._undo.clear()

    def _rename(self, source: Path, target: Path) -> None:
        self._step()
        before = target.read_bytes() if target.exists() else None
        _RENAME(source, target)
        self._undo.append(lambda: _put_back(source, target, before))

    def _lose(self) -> None:
        for path in self._directory.iterdir():
            if path.stat().st_ino in self._unsynced:
                os.truncate(path, path.stat().st_size // 2)
        for undo in reversed(self._undo):
            undo()


def _put_back(source: Path, target: Path, before: bytes | None) -> None:
    os.rename(target, source)
    if before is not None:
        target.write_bytes(before)
