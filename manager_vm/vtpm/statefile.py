"""swtpm's state file: has it been written, and bringing it to the disk (swtpm never syncs)."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path

NAME = "tpm2-00.permall"


_HEADER = struct.Struct(">BBHHI")  # version, least version, size of the header, flags, length (swtpm's blobheader)


def is_whole(path: Path) -> bool:
    """Whether the file is as long as its header says; what stands in it is for swtpm to judge."""
    try:
        fd = _open(str(path))
    except OSError:
        return False
    try:
        head, size = os.read(fd, _HEADER.size), os.fstat(fd).st_size
    finally:
        os.close(fd)
    return len(head) == _HEADER.size and _HEADER.unpack(head)[4] == size


def _open(path: str) -> int:
    """Open for reading. swtpm's directory is swtpm's: what stands there may be no file, and is not waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    return fd


class StateFile:
    """The file of one run. swtpm replaces it by a rename, so its inode tells whether it was written.

    The file synced last is held open: its inode cannot be given to a newer file, however many follow at once (time
    stamps have the grain of a kernel tick, in which swtpm can write a hundred times).
    """

    def __init__(self, run_dir: Path) -> None:
        self._directory = str(run_dir)
        self._path = str(run_dir / NAME)
        self._fd = -1
        self._inode = 0  # 0: there is no file yet

    def changed(self) -> bool:
        """Whether swtpm has written permanent state since the last ``sync``."""
        try:
            return os.stat(self._path).st_ino != self._inode
        except FileNotFoundError:
            return False

    def sync(self) -> None:
        """Take the file that is there now, fsync it and its directory. OSError as it comes, also if there is none."""
        self._take()
        os.fsync(self._fd)
        directory = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _take(self) -> None:
        self.close()
        self._fd = _open(self._path)
        self._inode = os.fstat(self._fd).st_ino

    def close(self) -> None:
        """Let go of the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._inode = -1, 0
