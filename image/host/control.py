"""Requests between two hosts that move a manager: JSON lines over the tunnel, so only its two ends can ask anything.

One connection, requests in turn: ``{"do": VERB, ...}`` -> ``{"ok": RESULT}`` or ``{"error": TEXT}``.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from image.host import unix
from manager_vm.errors import HostError, VtpmManagerError

_LINE = 1 << 20  # bytes
_ANSWER = 300.0  # seconds: a VM boots

Handle = Callable[[str, dict[str, Any]], Any]


class Asked:
    """The destination's end: ``handle(verb, args)`` for each request of the one connection at ``path``."""

    def __init__(self, path: Path, handle: Handle) -> None:
        self._handle = handle
        self._listener = unix.listen(path, 1)
        self._path = path
        self._connection: socket.socket | None = None
        self.ended = threading.Event()  # the other host is gone
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Idempotent."""
        for each in (self._listener, self._connection):
            if each is not None:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        try:
            with suppress(OSError):
                self._connection, _ = self._listener.accept()
                with self._connection.makefile("rwb") as stream:
                    while line := stream.readline(_LINE):
                        stream.write(json.dumps(self._answer(line)).encode() + b"\n")
                        stream.flush()
        finally:
            self.ended.set()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            return {"ok": self._handle(request.pop("do"), request)}
        except (VtpmManagerError, ValueError, KeyError, TypeError, OSError) as error:
            return {"error": f"{error}"}


class Asking:
    """The source's end."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_ANSWER)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise HostError(f"cannot reach the other host: {error}") from None
        self._stream = self._socket.makefile("rwb")
        self._turn = threading.Lock()

    def ask(self, verb: str, **args: Any) -> Any:
        """The result; HostError with the other host's words."""
        try:
            with self._turn:
                self._stream.write(json.dumps({"do": verb, **args}).encode() + b"\n")
                self._stream.flush()
                line = self._stream.readline(_LINE)
        except OSError as error:
            raise HostError(f"the other host was lost while it was asked to {verb}: {error}") from None
        if not line:
            raise HostError(f"the other host was lost while it was asked to {verb}")
        answer = json.loads(line)
        if "error" in answer:
            raise HostError(f"the other host cannot {verb}: {answer['error']}")
        return answer["ok"]

    def close(self) -> None:
        """Hang up; idempotent."""
        with suppress(OSError):
            self._stream.close()
        self._socket.close()
