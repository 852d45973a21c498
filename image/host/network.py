"""The network between simulated hosts: a switch, and cards of manager VMs that are plugged into it.

Frames are UNIX datagrams, as QEMU's ``-netdev dgram`` sends and takes them: neither the machine's network nor a
privilege is needed, and either side may be started anew. Real hosts give the VM a tap device instead.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from manager_vm.errors import HostError

_FRAME = 65536
_HEADER = 14  # destination, source, type (IEEE 802.3)
_MAC = 6
_GROUP = 1  # of a MAC address's first byte: for several cards


class Switch:
    """Sends each frame on to the card that it is for, or to all. Serves ``path`` from a thread until ``close``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[bytes, str] = {}  # MAC address -> socket of its card
        self._closing = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(str(path))
        except OSError as error:
            self._socket.close()
            raise HostError(f"cannot make the switch {path}: {error}; is the directory's path short enough?") from None
        self._thread = threading.Thread(target=self._serve, name=f"switch {path.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Idempotent."""
        self._closing = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)  # ends the thread's wait
        self._thread.join()
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while not self._closing:
            frame, place = self._socket.recvfrom(_FRAME)
            if len(frame) >= _HEADER and place:
                self._forward(frame, place)

    def _forward(self, frame: bytes, place: str) -> None:
        to, source = frame[:_MAC], frame[_MAC : 2 * _MAC]
        if not source[0] & _GROUP:
            self._places[source] = place
        known = None if to[0] & _GROUP else self._places.get(to)
        for each in {known} if known else set(self._places.values()) - {place}:
            with suppress(OSError):  # a VM that has ended, or does not keep up: frames are lost on real cables too
                self._socket.sendto(frame, socket.MSG_DONTWAIT, each)


@dataclass(frozen=True, slots=True)
class Card:
    """A manager VM's card: QEMU's socket ``path``, the ``switch`` it is plugged into, addresses, gateway."""

    path: Path
    switch: Path
    addresses: tuple[str, ...]
    gateway: str = ""

    @property
    def mac(self) -> str:
        """Locally administered, the same for the same socket."""
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()
        return ":".join(["52", "54", *(digest[at : at + 2] for at in range(0, 8, 2))])
