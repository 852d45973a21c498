"""The audit log on the state disk: ``audit.log`` and, older, ``audit.log.1`` ... (FORMAT.md, "Audit log").

Append-only: an entry is durable when ``append`` returns. The entry that the anchored manifest names must be there, and
all before it; what stands behind it is a tail that a crash has left unanchored, and is taken up as such. A line that
a crash has cut off is removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from manager_vm.errors import IntegrityError
from manager_vm.store import atomic
from manager_vm.store.records import AuditHead
from manager_vm.wire import audit
from manager_vm.wire.audit import Chain

MAX_SIZE = 1 << 20  # bytes of one file
KEPT = 3  # older files that are kept
_BROKEN_KEPT = 3  # broken chains that are kept aside
_NAME = "audit.log"
Event = tuple[str, dict[str, Any]]


class AuditLog:
    """Thread-safe. Only ``open`` and ``restart`` make one. ``unanchored``: entries found behind the anchored one."""

    def __init__(self, directory: Path, head: AuditHead, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._head = head
        self._clock = clock
        self._lock = threading.Lock()
        self.unanchored = 0
        self.cut = 0  # bytes of a line that a crash has cut off
        with atomic.store_errors(f"open {directory / _NAME}"):
            self._fd, self._size = self._open()

    @classmethod
    def open(cls, directory: Path, anchored: AuditHead, clock: Callable[[], float] = time.time) -> AuditLog:
        """The log that leads to ``anchored``; IntegrityError if it does not (any more)."""
        chain, good, torn = _walk(directory, anchored)
        log = cls(directory, AuditHead(chain.count, chain.digest) if chain.count else AuditHead(), clock)
        log.unanchored, log.cut = chain.count - anchored.count, torn
        if torn:
            with atomic.store_errors(f"repair {directory / _NAME}"):
                os.ftruncate(log._fd, good)
                os.fsync(log._fd)
                log._size = good
        return log

    @classmethod
    def restart(
        cls, directory: Path, anchored: AuditHead, reason: str, clock: Callable[[], float] = time.time
    ) -> AuditLog:
        """A new chain behind the anchored entry, whose first line says why. What is there is put aside."""
        with atomic.store_errors(f"put the broken audit log of {directory} aside"):
            _put_aside(directory)
        log = cls(directory, anchored, clock)
        log.append((audit.BROKEN, {"reason": reason}))
        return log

    @property
    def head(self) -> AuditHead:
        """The newest durable entry."""
        return self._head

    def append(self, *events: Event) -> AuditHead:
        """Write events as the next entries; durable on return. After a StoreError none of them is there."""
        with self._lock:
            data, head = self._lines(events, self._head)
            if self._size + len(data) > MAX_SIZE and self._size:
                self._rotate()
                data, head = self._lines(events, self._head)
            self._write(data)
            self._head = head
            return head

    def read(self, after: int, limit: int) -> list[str]:
        """The entries behind number ``after``, oldest first: ``limit`` bytes at most, but one entry if there is one."""
        found: list[str] = []
        with self._lock:
            for path in _files(self._directory):
                lines = _lines_of(path, self._size if path.name == _NAME else 2 * MAX_SIZE)
                first = audit.parse(lines[0]).n if lines else 0
                for line in lines[max(after + 1 - first, 0) :]:
                    limit -= len(line)
                    if limit < 0 and found:
                        return found
                    found.append(line.decode())
        return found

    def close(self) -> None:
        """Nothing is appended any more."""
        with self._lock:
            os.close(self._fd)

    def _lines(self, events: Iterable[Event], head: AuditHead) -> tuple[bytes, AuditHead]:
        data = b""
        for event, fields in events:
            line = audit.encode(head.count + 1, head.digest, self._clock(), event, fields)
            head = AuditHead(head.count + 1, audit.digest(line))
            data += line + b"\n"
        return data, head

    def _write(self, data: bytes) -> None:
        with atomic.store_errors(f"write {self._directory / _NAME}"):
            if os.fstat(self._fd).st_size != self._size:
                os.ftruncate(self._fd, self._size)  # what an earlier failure has left
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(self._fd, view) :]
                os.fsync(self._fd)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self._size)
                raise
        self._size += len(data)

    def _rotate(self) -> None:
        """Begin a new file. After a failure the next attempt goes on where this one ended."""
        newest = self._directory / _NAME
        if newest.exists() and newest.stat().st_size:
            self._make_room()
        with atomic.store_errors(f"rotate {newest}"):
            old, (self._fd, self._size) = self._fd, self._open()
            os.close(old)

    def _make_room(self) -> None:
        """Each file becomes an older one. Before the oldest one is dropped an entry says so."""
        files = _files(self._directory)
        dropped, kept = files[:-KEPT], files[-KEPT:]
        if dropped:
            first = audit.parse(_lines_of(kept[0])[0]).n
            data, head = self._lines([(audit.DROPPED, {"first": first})], self._head)
            self._write(data)
            self._head = head
        with atomic.store_errors(f"rotate {self._directory / _NAME}"):
            for path in dropped:
                path.unlink()
            for number, path in zip(range(len(kept), 0, -1), kept, strict=True):
                if path.name != f"{_NAME}.{number}":
                    os.rename(path, self._directory / f"{_NAME}.{number}")

    def _open(self) -> tuple[int, int]:
        path = self._directory / _NAME
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            atomic.sync_directory(self._directory)
            return fd, os.fstat(fd).st_size
        except OSError:
            os.close(fd)
            raise


def _walk(directory: Path, anchored: AuditHead) -> tuple[Chain, int, int]:
    """(the chain, good bytes of the newest file, bytes behind them). IntegrityError unless it leads to ``anchored``."""
    chain, seen, good, torn = Chain(), anchored.count == 0, 0, 0
    for path in _files(directory):
        data = atomic.read_file(path, 2 * MAX_SIZE) or b""
        good = 0
        for line in data.splitlines(keepends=True):
            try:
                _demand_whole(line)
                chain.add(line[:-1])
            except IntegrityError:
                if not seen or path.name != _NAME:
                    raise
                break  # the end of the unanchored tail: what a crash has left
            good += len(line)
            seen = seen or (chain.count, chain.digest) == (anchored.count, anchored.digest)
        torn = len(data) - good
    chain.end()
    if not seen:
        raise IntegrityError(_what_is_wrong(chain, anchored))
    return chain, good, torn


def _demand_whole(line: bytes) -> None:
    if not line.endswith(b"\n"):
        raise IntegrityError("the last line of the audit log is cut off")


def _what_is_wrong(chain: Chain, anchored: AuditHead) -> str:
    if chain.count < anchored.count:
        return f"the audit log ends with entry {chain.count}, and entry {anchored.count} is anchored: it was cut"
    return f"entry {anchored.count} of the audit log is not the anchored one: the log was changed"


def _put_aside(directory: Path) -> None:
    files = _files(directory)
    if not files:
        return
    for number in range(_BROKEN_KEPT, 0, -1):
        path = directory / f"audit.broken.{number}"
        if path.exists() and number == _BROKEN_KEPT:
            shutil.rmtree(path)
        elif path.exists():
            os.rename(path, directory / f"audit.broken.{number + 1}")
    target = directory / "audit.broken.1"
    target.mkdir(mode=0o700)
    for path in files:
        os.rename(path, target / path.name)
    atomic.sync_directory(target)
    atomic.sync_directory(directory)


def _files(directory: Path) -> list[Path]:
    """The log's files, oldest first."""
    numbers = sorted((int(path.suffix[1:]) for path in directory.glob(f"{_NAME}.[1-9]")), reverse=True)
    found = [directory / f"{_NAME}.{number}" for number in numbers]
    return [*found, directory / _NAME] if (directory / _NAME).exists() else found


def _lines_of(path: Path, size: int = 2 * MAX_SIZE) -> list[bytes]:
    return (atomic.read_file(path, 2 * MAX_SIZE) or b"")[:size].splitlines()
