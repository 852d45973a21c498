"""A raw disk over a stream: only what is not a hole. Records: offset (u64), length (u64), bytes; length 0 ends it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from manager_vm.errors import HostError

_RECORD = struct.Struct(">QQ")
_CHUNK = 1 << 20


def make(path: Path, size: int) -> None:
    """A new file of ``size`` zero bytes, none of which take room."""
    with open(path, "xb") as file:
        os.truncate(file.fileno(), size)


def send(path: Path, fd: int) -> int:
    """Send the file; how many bytes of it were sent."""
    sent = 0
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        at = 0
        while at < size:
            begin = _seek(file.fileno(), at, os.SEEK_DATA, size)
            end = _seek(file.fileno(), begin, os.SEEK_HOLE, size) if begin < size else size
            for offset in range(begin, end, _CHUNK):
                data = os.pread(file.fileno(), min(_CHUNK, end - offset), offset)
                write(fd, _RECORD.pack(offset, len(data)) + data)
                sent += len(data)
            at = end
    write(fd, _RECORD.pack(size, 0))
    return sent


def receive(fd: int, path: Path) -> None:
    """Write what comes into the file, which has its size already. HostError unless it is whole."""
    with open(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        while True:
            offset, length = _RECORD.unpack(_exactly(fd, _RECORD.size))
            if length == 0 and offset == size:
                return
            if not 0 < length <= _CHUNK or offset + length > size:
                raise HostError("a disk came that is larger than was said")
            os.pwrite(file.fileno(), _exactly(fd, length), offset)


def write(fd: int, data: bytes) -> None:
    """All of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _seek(fd: int, at: int, whence: int, size: int) -> int:
    try:
        return os.lseek(fd, at, whence)
    except OSError:  # ENXIO: nothing but a hole behind it
        return size


def _exactly(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = os.read(fd, size - len(data))
        if not part:
            raise HostError("a disk came that is not whole")
        data += part
    return bytes(data)
