"""A local client on a stream socket: TPM commands come, answers go, one at a time.

Nothing here blocks, and no more than one command is taken before its answer has left: a client that does not read
holds up itself only.
"""

from __future__ import annotations

import select
import socket
from contextlib import suppress

from manager_vm.wire import tpm

MOST = 200  # clients at once; the next one waits in the listener's queue


class Client:
    """Owns the connection. ``close`` frees it."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._in = bytearray()
        self._out = bytearray()
        self._ended = False  # nothing more comes; answers may still be wanted
        self.held = False  # what it asked for last takes time; it is not polled meanwhile

    def fileno(self) -> int:
        """For poll."""
        return self.connection.fileno()

    @property
    def events(self) -> int:
        """What to poll for."""
        if self._out:
            return select.POLLOUT
        return 0 if self._ended or self.has_command else select.POLLIN

    @property
    def has_command(self) -> bool:
        """Whether ``command`` would give one."""
        return not self._out and not self.held and self._size() is not None

    @property
    def done(self) -> bool:
        """Whether the client is gone, or has all it asked for."""
        return self._ended and not self.held and not self._out and not self.has_command

    def transfer(self) -> None:
        """Send what is to be sent, else take what has come."""
        try:
            if self._out:
                del self._out[: self.connection.send(self._out)]
            elif not self._ended and not self.has_command:
                data = self.connection.recv(tpm.MAX_COMMAND)
                self._in += data
                self._ended = not data
        except BlockingIOError:
            pass
        except OSError:
            self._give_up()

    def command(self) -> bytes:
        """The next whole command; only if there is one. What cannot be one is passed on: the filter answers it."""
        size = self._size() or 0
        command = bytes(self._in[:size])
        del self._in[:size]
        return command

    def answer(self, response: bytes) -> None:
        """Send a response, now or when there is room."""
        self._out += response
        self.transfer()

    def close(self) -> None:
        """End the connection."""
        with suppress(OSError):
            self.connection.close()

    def _size(self) -> int | None:
        """Bytes of the next command, None while it is not complete."""
        if len(self._in) < tpm.HEADER_SIZE:
            return None
        size = int.from_bytes(self._in[2:6], "big")
        if not tpm.HEADER_SIZE <= size <= tpm.MAX_COMMAND:
            return len(self._in)
        return size if len(self._in) >= size else None

    def _give_up(self) -> None:
        self._ended = True
        self._in.clear()
        self._out.clear()
