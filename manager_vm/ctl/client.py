"""A client of the admin link or the host link.

Between a host and a manager VM lies a QEMU character device: one client at a time, and bytes of an earlier
client's reply may come first. So request ids start at random, foreign ids are ignored, garbled bytes skipped.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from manager_vm.errors import ConfigError, RemoteProtocolError, UnreachableError, VtpmManagerError
from manager_vm.trust import local, request, rules
from manager_vm.trust.signing import SigningKey
from manager_vm.wire import admin, framing

OnProgress = Callable[[admin.Progress], None]

DEFAULT_TIMEOUT = 180.0  # seconds for one request; creating a vTPM under emulation takes a few
_PROBE = 0.5  # seconds before the manager is asked again whether it is there; then twice as long
_CHUNK = 65536


class Client:
    """One connection. ``timeout``: seconds for the reply to one request. ``key``: signs what an operator must sign."""

    def __init__(self, connection: socket.socket, path: Path, timeout: float, key: SigningKey | None = None) -> None:
        self._socket = connection
        self._path = path
        self._timeout = timeout
        self._key = key
        self._decoder = framing.Decoder(admin.MAX_BODY, resync=True)
        self._next_id = int.from_bytes(os.urandom(7), "little")

    @classmethod
    def connect(cls, path: Path, timeout: float = DEFAULT_TIMEOUT, key: SigningKey | None = None) -> Client:
        """Connect to the UNIX socket; UnreachableError says what to start."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            raise UnreachableError(
                f"no manager answers at {path} ({error.strerror or error}); start it, or name another one with -m"
            ) from None
        return cls(connection, path, timeout, key)

    def call(self, verb: str, on_progress: OnProgress | None = None, **args: Any) -> Any:
        """The result of one request; the manager's error is raised as the class it has there."""
        if self._key is None or not rules.is_signed(verb):
            return self._exchange(admin.Request(self._new_id(), verb, args), on_progress)
        challenge = self._exchange(admin.Request(self._new_id(), "challenge"), None)
        return self._exchange(request.sign(self._new_id(), self._key, challenge, verb, args), on_progress)

    def reach(self) -> None:
        """Until the manager answers on this connection. A VM that was stopped wakes up to all that has come and gone
        meanwhile, and the request of somebody who has just come may be lost among that. UnreachableError after the
        client's timeout.
        """
        deadline, pause = time.monotonic() + self._timeout, _PROBE
        while not self._is_answered(pause):
            pause *= 2
            if time.monotonic() > deadline:
                raise UnreachableError(f"the manager at {self._path} does not answer; is it still starting?")

    def _is_answered(self, wait: float) -> bool:
        """Whether the manager answers a request that changes nothing, whatever it says."""
        message = admin.Request(self._new_id(), "status")
        try:
            self._socket.sendall(framing.encode(admin.to_frame(message)))
            self._reply(message.id, None, time.monotonic() + wait)
        except TimeoutError:
            return False
        except UnreachableError:
            raise
        except OSError as error:
            raise UnreachableError(f"the manager at {self._path} cannot be reached: {error}") from None
        except VtpmManagerError:
            pass
        return True

    def _new_id(self) -> int:
        self._next_id = (self._next_id + 1) & (1 << 62) - 1
        return self._next_id

    def _exchange(self, message: admin.Request | admin.SignedRequest, on_progress: OnProgress | None) -> Any:
        try:
            self._socket.sendall(framing.encode(admin.to_frame(message)))
            return self._reply(message.id, on_progress, time.monotonic() + self._timeout)
        except OSError as error:
            raise UnreachableError(
                f"the manager at {self._path} does not answer ({error}); is it still starting?"
            ) from None

    def _reply(self, id_: int, on_progress: OnProgress | None, deadline: float) -> Any:
        while True:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            data = self._socket.recv(_CHUNK)
            if not data:
                raise UnreachableError(f"the manager at {self._path} closed the connection; look at its log")
            for message in self._messages(data):
                if message.id == id_ and isinstance(message, admin.Reply):
                    if message.error is not None:
                        raise message.error
                    return message.ok
                if message.id == id_ and isinstance(message, admin.Progress) and on_progress:
                    on_progress(message)

    def _messages(self, data: bytes) -> list[admin.AdminMessage]:
        messages: list[admin.AdminMessage] = []
        for frame in self._decoder.feed(data):
            try:
                messages.append(admin.from_frame(frame))
            except RemoteProtocolError:
                continue  # a frame that is not for us; ours answers an id that only we know
        return messages

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def sockets(where: str) -> tuple[Path, Path]:
    """(admin socket, host link socket) of ``-m WHERE``: a directory, a socket, or ``unix:PATH``."""
    path = Path(where.removeprefix("unix:"))
    if not where:
        raise ConfigError("no manager was named; use -m DIR or set VTPM_MANAGER")
    try:
        is_directory = path.is_dir()
    except OSError as error:
        raise UnreachableError(f"cannot look into {path}: {error.strerror}; run as the manager's user") from None
    if is_directory:
        return path / "admin.sock", path / "host.sock"
    return path, path.with_name("host.sock")


def operator_key(named: str, admin_socket: Path) -> SigningKey | None:
    """The key to sign with: the file ``named``, or that of the manager's own machine; None if there is neither."""
    path = Path(named) if named else local.operator_key(admin_socket.absolute().parent)
    return SigningKey.load(path) if path is not None else None
