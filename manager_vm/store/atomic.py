"""Files that are there whole or not at all, and stay there after a power loss. OSError becomes StoreError here."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from manager_vm.errors import StoreError

_REMEDIES = {
    errno.ENOSPC: "the state disk is full; enlarge it or destroy vTPMs that are not needed",
    errno.EROFS: "the state disk is read-only; check it (fsck) and mount it writable",
    errno.EACCES: "no permission; the manager must own its state directory",
    errno.EIO: "the disk reports an I/O error; replace it and restore a copy",
}


@contextlib.contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn an OSError of the block into a StoreError that names ``what``, the cause and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the state disk")
        raise StoreError(f"cannot {what}: {os.strerror(error.errno or 0)}; {remedy}") from error


def write_file(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` (mode 0600); durable on return, after a crash it is the old or the new file."""
    temporary = path.with_name(path.name + ".tmp")
    with store_errors(f"write {path}"):
        write_pending(temporary, data)
        os.rename(temporary, path)
        sync_directory(path.parent)


def write_pending(path: Path, data: bytes) -> None:
    """Write and fsync ``path`` itself (not atomic); on failure the half-written file is removed."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def read_file(path: Path, limit: int) -> bytes | None:
    """The file's bytes, None if it does not exist; StoreError past ``limit`` bytes (nothing of ours is that large)."""
    with store_errors(f"read {path}"):
        try:
            with open(path, "rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            return None
    if len(data) > limit:
        raise StoreError(
            f"{path} is larger than {limit} bytes: it is not a file of this manager; restore the state disk"
        )
    return data


def sync_directory(path: Path) -> None:
    """Make renames and removals in ``path`` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path, uid: int | None = None) -> None:
    """A private directory (0700), owned by ``uid`` if given."""
    with store_errors(f"create {path}"):
        path.mkdir(mode=0o700, exist_ok=True)
        if uid is not None:
            os.chown(path, uid, uid)


def remove_temporaries(directory: Path) -> None:
    """Remove what a ``write_file`` that a crash cut short has left. Only while nobody writes in ``directory``."""
    with store_errors(f"clean up {directory}"):
        for path in directory.glob("*.tmp"):
            path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a directory and all in it; nothing happens if it is gone already."""
    with store_errors(f"remove {path}"):
        shutil.rmtree(path, ignore_errors=False) if path.is_dir() else path.unlink(missing_ok=True)


def demand_space(path: Path, size: int) -> None:
    """StoreError unless ``size`` bytes are free on the disk of ``path``."""
    with store_errors(f"look at the disk of {path}"):
        free = os.statvfs(path)
    if free.f_bavail * free.f_frsize < size:
        raise StoreError(f"fewer than {size >> 20} MiB are free on the disk of {path}; {_REMEDIES[errno.ENOSPC]}")


def lock_directory(path: Path) -> int:
    """Take the directory for this process; StoreError if another manager has it. Returns the lock's descriptor."""
    with store_errors(f"lock {path}"):
        fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StoreError(f"another manager is using {path}; stop it first, two must never share one state") from None
    return fd
