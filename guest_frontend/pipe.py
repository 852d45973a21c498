"""``pipe``: raw TPM commands on stdin, responses on stdout (for the TCTI ``cmd:``)."""

from __future__ import annotations

import os
import select
import socket

from guest_frontend import broker

_CHUNK = 65536


def run(channel: str) -> None:
    """Shuttle bytes between stdin/stdout and the channel's broker until stdin ends and all is answered.

    stdin is read only when what it said before has left, so that a batch of any length finds room for its answers.
    """
    with broker.connect(channel) as connection:
        unsent, ended = b"", False
        while True:
            poller = select.poll()
            poller.register(connection.fileno(), select.POLLIN | (select.POLLOUT if unsent else 0))
            if not unsent and not ended:
                poller.register(0, select.POLLIN)
            for fd, event in poller.poll():
                if fd == 0:
                    unsent = os.read(0, _CHUNK)
                    ended = not unsent
                    if ended:  # the answers to what was sent are still to come
                        connection.shutdown(socket.SHUT_WR)
                    continue
                if event & select.POLLOUT:
                    unsent = unsent[connection.send(unsent, socket.MSG_DONTWAIT) :]
                if event & ~select.POLLOUT:
                    answer = connection.recv(_CHUNK)
                    if not answer:
                        return
                    _write(answer)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]
