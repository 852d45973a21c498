"""The server of one ivshmem-doorbell pair (QEMU, docs/specs/ivshmem-spec.rst): two VMs, one memory, two vectors each.

One server and one sealed memory for each pair, so that a guest can reach its own channel only. The server never
looks at the memory. It listens only while the pair is wanted; a third VM is turned away.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path

from image.host.unix import listen
from manager_vm.wire.channel import RING_MEMORY

VECTORS = 2
_PEERS = 2
_VERSION = 0
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class PairServer:
    """Serves ``path`` from a thread of its own until ``close``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = listen(path, _PEERS)
        self._memory = os.memfd_create("vtpm-channel", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._memory, RING_MEMORY)
        fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, _SEALS)
        self._events = [
            [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(VECTORS)] for _ in range(_PEERS)
        ]
        self._peers: dict[int, socket.socket] = {}
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name=f"pair {path.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free everything; idempotent."""
        if self._wake < 0:
            return
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._selector.close()
        for each in [self._listener, *self._peers.values()]:
            each.close()
        for fd in [self._memory, self._wake, *(fd for events in self._events for fd in events)]:
            os.close(fd)
        self._wake = -1
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == self._wake:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._leave(key.data)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        free = [number for number in range(_PEERS) if number not in self._peers]
        if not free:
            connection.close()
            return
        own = free[0]
        try:
            self._introduce(connection, own)
        except OSError:
            connection.close()
            return
        self._peers[own] = connection
        self._selector.register(connection, selectors.EVENT_READ, own)

    def _introduce(self, connection: socket.socket, own: int) -> None:
        """Version, own id, memory; then both peers' events.

        A peer's events stay the same for ever, so each side is told of the other once and never of its leaving:
        QEMU (7.2) frees a leaving peer's table and writes to it when that id returns.
        """
        _send(connection, _VERSION)
        _send(connection, own)
        _send(connection, -1, self._memory)
        for peer in (1 - own, own):
            for event in self._events[peer]:
                _send(connection, peer, event)
        self._kick(1 - own)

    def _leave(self, gone: int) -> None:
        """QEMU never sends anything: a readable connection is a closed one."""
        connection = self._peers.pop(gone)
        self._selector.unregister(connection)
        connection.close()
        self._kick(1 - gone)

    def _kick(self, peer: int) -> None:
        """Tell the VM that its peer came or left: its last vector."""
        with suppress(OSError):
            os.eventfd_write(self._events[peer][VECTORS - 1], 1)


def _send(connection: socket.socket, number: int, fd: int = -1) -> None:
    socket.send_fds(connection, [struct.pack("<q", number)], [fd] if fd >= 0 else [])
