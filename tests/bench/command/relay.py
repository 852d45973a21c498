"""The least that a process between a client and swtpm can do in Python: bytes in shared memory, an event each way.

No frames, no CRC, no sequence numbers, no reply cache, no filter, no look at the state file; a client that is trusted.
What (b) takes above this is our protocol; what this takes above (a) is the price of the process in between.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import sys
from pathlib import Path

from image.host.process import Process
from tests.bench.command.probe import Swtpm

_SIZE = 1 << 16
_ANSWER = 1 << 15  # offset of the response: 4 bytes of length, then the bytes; the command is at 0 likewise
_LIMIT = 4096


class Relay:
    """Such a process and a bare swtpm behind it."""

    def __init__(self, directory: Path) -> None:
        self.swtpm = Swtpm(str(directory))
        self._memory_fd = os.memfd_create("relay", os.MFD_CLOEXEC)
        os.ftruncate(self._memory_fd, _SIZE)
        self._memory = mmap.mmap(self._memory_fd, _SIZE)
        self._there, self._here = (os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2))
        fds = (self._memory_fd, self._there, self._here, self.swtpm.fileno())
        argv = [sys.executable, str(Path(__file__).resolve()), *map(str, fds)]
        root = Path(__file__).resolve().parents[3]
        self._process = Process("relay", ["env", f"PYTHONPATH={root}", *argv], directory / "relay.log", fds)
        self._poller = select.poll()
        self._poller.register(self._here, select.POLLIN)

    @property
    def pids(self) -> dict[str, int]:
        """Who works for a command."""
        return {"relay": self._process.pid, "swtpm": self.swtpm.pid}

    def execute(self, command: bytes) -> bytes:
        _put(self._memory, 0, command)
        os.eventfd_write(self._there, 1)
        self._poller.poll()
        os.eventfd_read(self._here)
        return _get(self._memory, _ANSWER)

    def close(self) -> None:
        self._process.close()
        self.swtpm.close()
        self._memory.close()
        for fd in (self._memory_fd, self._there, self._here):
            os.close(fd)


def _put(memory: mmap.mmap, where: int, data: bytes) -> None:
    memory[where + 4 : where + 4 + len(data)] = data
    memory[where : where + 4] = len(data).to_bytes(4, "little")


def _get(memory: mmap.mmap, where: int) -> bytes:
    size = int.from_bytes(memory[where : where + 4], "little")
    return memory[where + 4 : where + 4 + size]


def _serve(memory_fd: int, own: int, peer: int, data: int) -> None:
    memory = mmap.mmap(memory_fd, _SIZE)
    swtpm = socket.socket(fileno=data)
    poller = select.poll()
    poller.register(own, select.POLLIN)
    while True:
        poller.poll()
        os.eventfd_read(own)
        swtpm.sendall(_get(memory, 0))
        _put(memory, _ANSWER, swtpm.recv(_LIMIT))
        os.eventfd_write(peer, 1)


if __name__ == "__main__":
    _serve(*map(int, sys.argv[1:5]))
