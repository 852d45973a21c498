"""What the daemon tells systemd, and what systemd keeps for it (sd_notify(3), sd_pid_notify_with_fds(3)).

A descriptor in systemd's store outlives the daemon, not the VM: so a secret in an anonymous file (memfd_create(2))
reaches the daemon's successor in the same boot without touching a disk.
"""

from __future__ import annotations

import os
import socket

ROOT_KEY = "root-key"  # its name in the store
_FIRST = 3  # SD_LISTEN_FDS_START
_MAX_SECRET = 4096


def notify(text: str, *descriptors: int) -> None:
    """Send ``text`` and perhaps descriptors; nothing happens outside of systemd."""
    where = os.environ.get("NOTIFY_SOCKET")
    if not where:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect("\0" + where[1:] if where.startswith("@") else where)
        if descriptors:
            socket.send_fds(sender, [text.encode()], descriptors)
        else:
            sender.send(text.encode())


def keep(name: str, secret: bytes) -> None:
    """Leave ``secret`` with systemd under ``name``, for the next daemon of this boot."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.write(fd, secret)
        notify(f"FDSTORE=1\nFDNAME={name}", fd)
    finally:
        os.close(fd)


def forget(name: str) -> None:
    """Have systemd close what was kept under ``name``."""
    notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def kept(name: str) -> bytes | None:
    """What a daemon before this one has left under ``name``; descriptors that systemd has passed are closed."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return None
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    found = None
    for number, each in zip(range(_FIRST, _FIRST + count), names, strict=False):
        if each == name:
            found = os.pread(number, _MAX_SECRET, 0)
        os.close(number)
    return found
