"""Requests between programs that run hosts: framed as on the admin link (manager_vm/wire/admin.py), over UNIX sockets.

One client at a time: what is asked for here takes VMs and minutes.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import Any

from image.host import unix
from manager_vm.ctl.client import Client
from manager_vm.errors import ConfigError, HostError, RemoteProtocolError, UnreachableError, VtpmManagerError
from manager_vm.wire import admin, framing
from manager_vm.wire.admin import Progress, Reply, Request

log = logging.getLogger(__name__)

_CHUNK = 65536
_ANSWER = 300.0  # seconds: a VM boots

Tell = Callable[[str], None]
Verbs = Mapping[str, Callable[..., Any]]


def by(executor: Executor, verbs: Mapping[str, Callable[..., Any]]) -> Verbs:
    """These verbs, which tell no progress, all done by ``executor``: a child process ends with the thread that has
    started it, so one thread that stays does what starts VMs.
    """

    def performing(perform: Callable[..., Any]) -> Callable[..., Any]:
        return lambda tell, **args: executor.submit(perform, **args).result()

    return {name: performing(perform) for name, perform in verbs.items()}


class Server:
    """Answers at ``path`` from a thread until ``close``. ``verbs``: called with a way to tell progress, and arguments.

    ``left``: called when a client has hung up.
    """

    def __init__(self, path: Path, verbs: Verbs, left: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._verbs = verbs
        self._left = left
        self._listener = unix.listen(path, 1)
        self._connection: socket.socket | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name=f"requests {path.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """A request that is being performed is finished first. Idempotent."""
        self._closing = True
        for each in (self._listener, self._connection):
            if each is not None:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while not self._closing:
            with suppress(OSError):
                self._connection, _ = self._listener.accept()
                with self._connection:
                    self._talk(self._connection)
                self._left()

    def _talk(self, connection: socket.socket) -> None:
        decoder = framing.Decoder(admin.MAX_BODY)
        with suppress(OSError):
            while not self._closing and (data := connection.recv(_CHUNK)):
                try:
                    requests = [admin.from_frame(frame) for frame in decoder.feed(data)]
                except RemoteProtocolError as error:
                    log.warning("%s: %s", self._path.name, error)
                    return
                for request in requests:
                    if isinstance(request, Request):
                        connection.sendall(framing.encode(admin.to_frame(self._answer(connection, request))))

    def _answer(self, connection: socket.socket, request: Request) -> Reply:
        def tell(text: str) -> None:
            with suppress(OSError):  # who asked may have gone; the work goes on
                connection.sendall(framing.encode(admin.to_frame(Progress(request.id, text))))

        perform = self._verbs.get(request.verb)
        try:
            if perform is None:
                raise RemoteProtocolError(
                    f"{request.verb[:40]!r} is not served here; there are: {', '.join(self._verbs)}"
                )
            return Reply(request.id, perform(tell, **request.args))
        except VtpmManagerError as error:
            return Reply(request.id, error=error)
        except OSError as error:
            return Reply(request.id, error=HostError(f"{request.verb}: {error}"))
        except TypeError as error:
            return Reply(request.id, error=ConfigError(f"{request.verb}: {error}"))


class Other:
    """The program of another host, at this socket. HostError if there is none."""

    def __init__(self, path: Path) -> None:
        try:
            self._client = Client.connect(path, _ANSWER)
        except UnreachableError as error:
            raise HostError(f"cannot reach the other host: {error}") from None
        self._turn = threading.Lock()

    def ask(self, verb: str, **args: Any) -> Any:
        """The result; HostError with the other host's words."""
        try:
            with self._turn:
                return self._client.call(verb, **args)
        except UnreachableError as error:  # our connection's, or what it said of its own to a manager
            raise HostError(f"the other host, or its manager, was lost when asked to {verb}: {error}") from None
        except VtpmManagerError as error:
            raise HostError(f"the other host cannot {verb}: {error}") from None

    def close(self) -> None:
        """Hang up; idempotent."""
        self._client.close()
