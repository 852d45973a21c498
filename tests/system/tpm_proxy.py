"""A proxy between QEMU and a swtpm that answers one TPM command in the swtpm's place."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from manager_vm.wire import tpm
from manager_vm.wire.swtpm import Cmd

Interfere = Callable[[bytes], bytes | None]  # an answer in the swtpm's place, None: ask it


class TpmProxy:
    """Serves one QEMU at ``path``; ``close`` ends it. ``commands``: all that QEMU has sent, in order."""

    def __init__(self, path: Path, swtpm: Path, interfere: Interfere) -> None:
        self.commands: list[bytes] = []
        self._swtpm = swtpm
        self._interfere = interfere
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _run(self) -> None:
        with suppress(OSError):
            near, _ = self._listener.accept()
            with near, socket.socket(socket.AF_UNIX) as far:
                far.connect(str(self._swtpm))
                self._serve(near, far)

    def _serve(self, near: socket.socket, far: socket.socket) -> None:
        """Control bytes go as they are; the data socket is ours."""
        data: dict[socket.socket, Callable[[], None]] = {}
        while True:
            ready, _, _ = select.select([near, far, *data], [], [])
            for each in ready:
                if each in data:
                    data[each]()
                elif each is far:
                    near.sendall(far.recv(4096))
                else:
                    message, fds, _, _ = socket.recv_fds(near, 4096, 1)
                    if not message:
                        return
                    if fds:
                        assert int.from_bytes(message[:4], "big") == Cmd.CMD_SET_DATAFD
                        data = self._data(socket.socket(fileno=fds[0]), far, message)
                    else:
                        far.sendall(message)

    def _data(self, qemu: socket.socket, far: socket.socket, message: bytes) -> dict[socket.socket, Callable[[], None]]:
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(far, [message], [theirs.fileno()])

        def command() -> None:
            asked = qemu.recv(8192)
            if not asked:
                raise OSError("QEMU has gone")
            self.commands.append(asked)
            answer = self._interfere(asked)
            if answer is not None:
                qemu.sendall(answer)
            else:
                ours.sendall(asked)

        return {qemu: command, ours: lambda: qemu.sendall(ours.recv(8192))}


def retry_once(wanted: Callable[[bytes], bool], number: int) -> Interfere:
    """TPM_RC_RETRY for the ``number``-th command (from 1) that is wanted; nothing is executed for that."""
    seen = 0

    def interfere(command: bytes) -> bytes | None:
        nonlocal seen
        seen += wanted(command)
        return tpm.error_response(tpm.RC.TPM_RC_RETRY) if wanted(command) and seen == number else None

    return interfere
