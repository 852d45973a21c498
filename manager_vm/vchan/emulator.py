"""One QEMU with a tpm-emulator, as whoever stands in for its swtpm sees it: a control socket, and the data socket that
comes over it (swtpm_ioctls(3), CMD_SET_DATAFD). Whole messages come out; what they mean is for others."""

from __future__ import annotations

import os
import socket

from manager_vm.errors import RemoteProtocolError
from manager_vm.wire import swtpm as wire
from manager_vm.wire import tpm

_PIECE = 65536  # bytes


class Connection:
    """Owns both sockets. ``patience``: seconds for the rest of a message, or for QEMU to take an answer.
    ``since``: when the message began of which a part is here.
    """

    def __init__(self, control: socket.socket, patience: float) -> None:
        control.settimeout(patience)
        self.patience = patience
        self.control = control
        self.data: socket.socket | None = None
        self.requests = bytearray()
        self.command = bytearray()
        self.fds: list[int] = []
        self.since: float | None = None

    def receive(self) -> bool:
        """Take what came on the control socket, descriptors too; whether QEMU is still there."""
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            piece, fds, got, _ = socket.recv_fds(self.control, _PIECE, 1, flags)
        except BlockingIOError:
            return True
        self.fds += fds
        if len(self.fds) > 1 or got & socket.MSG_CTRUNC:
            raise RemoteProtocolError("more descriptors than SET_DATAFD has")
        self.requests += piece
        return bool(piece)

    def open_data(self) -> bytes:
        """SET_DATAFD: the answer."""
        if len(self.fds) != 1 or self.data is not None:
            self.drop_fds()
            return wire.result(wire.TPM_FAIL)
        try:
            self.data = socket.socket(fileno=self.fds[0])
        except OSError:
            self.drop_fds()
            return wire.result(wire.TPM_FAIL)
        self.fds.clear()
        self.data.settimeout(self.patience)
        return wire.result()

    def take_command(self) -> bytes | None:
        """A whole TPM command from the data socket; RemoteProtocolError if its size field is beyond all bounds."""
        assert self.data is not None
        piece = self.data.recv(_PIECE, socket.MSG_DONTWAIT)
        if not piece:
            self.close_data()
            return None
        self.command += piece
        return tpm.take_command(self.command)

    def note(self, now: float) -> None:
        """Remember since when a message is not whole."""
        if not self.requests and not self.command and not self.fds:
            self.since = None
        elif self.since is None:
            self.since = now

    def late(self, now: float) -> bool:
        """Whether the rest of a message does not come."""
        return self.since is not None and now - self.since > self.patience

    def close_data(self) -> None:
        """Forget the data socket and what came from it; idempotent."""
        self.command.clear()
        if self.data is not None:
            self.data.close()
            self.data = None

    def drop_fds(self) -> None:
        """Close descriptors that came and belong to no command."""
        while self.fds:
            os.close(self.fds.pop())

    def close(self) -> None:
        """Let QEMU go."""
        self.close_data()
        self.drop_fds()
        self.control.close()
