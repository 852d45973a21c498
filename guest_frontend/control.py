"""The control socket of ``device``: local programs ask there for evidence; their TPM commands go to /dev/tpmN.

RUN/tpmN.sock, for root alone. RUN is what systemd gives (RuntimeDirectory=), else /run/vtpm-frontend.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from contextlib import suppress
from pathlib import Path

from guest_frontend import asking
from guest_frontend.asking import Questions
from guest_frontend.client import Client
from guest_frontend.link import Link
from manager_vm.errors import ConfigError
from manager_vm.wire import tpm
from manager_vm.wire.tpm import RC

_RUN = "/run/vtpm-frontend"
_MOST = 16  # clients at once


def path_of(device: str) -> Path:
    """The control socket of the front end behind /dev/tpmN or /dev/tpmrmN; ConfigError for another path."""
    name = Path(device).name
    number = name.removeprefix("tpmrm").removeprefix("tpm")
    if not name.startswith("tpm") or not number.isdecimal():
        raise ConfigError(f"{device!r} is no TPM device; name /dev/tpmrmN")
    return Path(os.environ.get("RUNTIME_DIRECTORY", _RUN)) / f"tpm{number}.sock"


class Control:
    """Listens; ``close`` ends it. Poll ``register``'s descriptors, then call ``step``."""

    def __init__(self, path: Path, link: Link) -> None:
        self._path = path
        self._listener = _listen(path)
        self._questions = Questions(link)
        self._clients: dict[int, Client] = {}

    def register(self, poller: select.poll) -> None:
        """What to wait for."""
        if len(self._clients) < _MOST:
            poller.register(self._listener, select.POLLIN)
        for fd, client in self._clients.items():
            if not client.held:
                poller.register(fd, client.events)

    def step(self, ready: set[int]) -> None:
        """Serve those that are ready, and hand over what the link has."""
        if self._listener.fileno() in ready:
            with suppress(OSError):
                connection, _ = self._listener.accept()
                self._clients[connection.fileno()] = Client(connection)
        for fd in ready & self._clients.keys():
            self._clients[fd].transfer()
        for fd, client in list(self._clients.items()):
            if client.has_command:
                self._perform(client, client.command())
            if client.done:
                self._clients.pop(fd).close()
        self._questions.step()

    def close(self) -> None:
        """Stop listening, drop the clients."""
        self._listener.close()
        self._path.unlink(missing_ok=True)
        for client in self._clients.values():
            client.close()

    def _perform(self, client: Client, command: bytes) -> None:
        if asking.is_question(command):
            self._questions.ask(client, command)
        else:
            client.answer(tpm.error_response(RC.TPM_RC_COMMAND_CODE))


def connect(path: Path) -> socket.socket:
    """A connection to a front end's control socket; ConfigError if there is none."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise ConfigError(
            f"no front end listens at {path} ({error.strerror}); run as root, and is it this device's 'device'?"
        ) from None
    return connection


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    umask = os.umask(0o077)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        found = path.parent.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ConfigError(f"{path.parent} is not a private directory of this user; remove it")
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(_MOST)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen at {path}: {error.strerror}") from None
    except ConfigError:
        listener.close()
        raise
    finally:
        os.umask(umask)
    return listener
