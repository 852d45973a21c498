"""What a QEMU says to its TPM's control socket: every made-up QEMU is only as good as its words are a real one's."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

from manager_vm.wire import swtpm as wire
from manager_vm.wire.swtpm import Cmd

_GUESTS = (Cmd.CMD_SET_LOCALITY, Cmd.CMD_GET_TPMESTABLISHED)  # what a guest's accesses lead to, whenever they come


class Spoken:
    """Between one QEMU, which finds ``path``, and ``target``. ``words``: its commands, and flags, size or blob."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path, self._target = path, target
        self.words: list[tuple[Cmd, int]] = []
        self._sockets: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        """Cut the line."""
        _cut(self._listener)
        self._cut()
        self._thread.join()
        for each in (self._listener, *self._sockets):
            each.close()
        self.path.unlink()

    def _cut(self) -> None:
        for each in self._sockets:
            _cut(each)

    def _run(self) -> None:
        with suppress(OSError):
            near, _ = self._listener.accept()
            far = socket.socket(socket.AF_UNIX)
            self._sockets = [near, far]
            far.connect(str(self._target))
            back = threading.Thread(target=self._answers, args=(far, near))
            back.start()
            try:
                self._listen(near, far)
            finally:  # also behind a word that is none: QEMU must not wait for an answer
                self._cut()
                back.join()

    def _listen(self, near: socket.socket, far: socket.socket) -> None:
        heard = bytearray()
        with suppress(OSError):
            while (found := socket.recv_fds(near, 65536, 4))[0]:
                data, fds, _, _ = found
                heard += data
                while (request := wire.take_request(heard)) is not None:
                    if request.command not in _GUESTS:
                        blob = request.command in (Cmd.CMD_GET_STATEBLOB, Cmd.CMD_SET_STATEBLOB)
                        self.words.append((request.command, int(request.kind) if blob else request.value))
                socket.send_fds(far, [data], fds)
                for fd in fds:
                    os.close(fd)

    def _answers(self, far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError):
            while data := far.recv(65536):
                near.sendall(data)
        self._cut()


def _cut(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
