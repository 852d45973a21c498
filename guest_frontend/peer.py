"""Which process is behind a TCP connection of this machine (proc(5): /proc/net/tcp, /proc/PID/fd)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def owner(connection: socket.socket, likely: Iterable[int] = ()) -> int | None:
    """Process id of the other end; None if it has gone, or is not ours to look at. ``likely`` ones are tried first."""
    try:
        inode = _inode(connection)
    except OSError:  # it has just been reset
        return None
    if inode is None:
        return None
    others = sorted((int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()), reverse=True)
    return next((pid for pid in (*likely, *others) if _has(pid, f"socket:[{inode}]")), None)


def _inode(connection: socket.socket) -> str | None:
    """The inode of the other end's socket."""
    near, far = _spelt(connection.getsockname()), _spelt(connection.getpeername())
    for line in (_PROC / "net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if (fields[1], fields[2]) == (far, near):
            return fields[9]
    return None


def _spelt(address: tuple[str, int]) -> str:
    """As /proc/net/tcp spells an IPv4 address and port."""
    return f"{int.from_bytes(socket.inet_aton(address[0]), 'little'):08X}:{address[1]:04X}"


def _has(pid: int, target: str) -> bool:
    with suppress(OSError), os.scandir(_PROC / str(pid) / "fd") as entries:
        for entry in entries:
            with suppress(OSError):
                if os.readlink(entry.path) == target:
                    return True
    return False
