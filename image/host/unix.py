"""Listening at a UNIX socket for QEMU."""

from __future__ import annotations

import socket
from pathlib import Path

from manager_vm.errors import HostError


def listen(path: Path, backlog: int) -> socket.socket:
    """A listening stream socket at ``path``, for the owner only; what an earlier run left there is removed."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if path.is_socket():
            path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
    except OSError as error:
        listener.close()
        raise HostError(f"cannot listen at {path}: {error}; is the directory's path short enough?") from None
    listener.listen(backlog)
    return listener
