"""One process per CHANNEL that owns it while tools use it: pipes connect, take turns, and the last one ends it.

Like ssh's ControlMaster: the first ``pipe`` starts it, nothing but an empty lock file lingers.
Two tools in a shell pipe are two clients of it, so they cannot lock each other out of the channel.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import select
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from guest_frontend import asking
from guest_frontend.asking import Questions
from guest_frontend.client import MOST, Client
from guest_frontend.link import TOOL_PATIENCE, Link
from guest_frontend.rm import ResourceManager, Space
from manager_vm.errors import BY_NAME, ConfigError, UnreachableError, VtpmManagerError

_OPEN_TIMEOUT = 5.0  # seconds until a channel that nobody serves is reported
_ATTEMPTS = 20
READY, FAILED = b"+", b"-"


def connect(channel: str) -> socket.socket:
    """A connection to the broker of ``channel``, started if there is none; VtpmManagerError says what is wrong."""
    base = _directory() / hashlib.sha256(channel.encode()).hexdigest()[:32]
    for _ in range(_ATTEMPTS):
        connection = _try_connect(base) or _start(base, channel)
        answer = _greeting(connection)
        if answer[:1] == READY:
            return connection
        connection.close()
        if answer[:1] == FAILED:
            name, _, text = answer[1:].decode(errors="replace").partition(" ")
            raise BY_NAME.get(name, UnreachableError)(text)
        # the broker was just ending: nothing was sent to it yet, so simply again
    raise UnreachableError(f"the broker for {channel} ends as soon as it starts; look at {base.parent}")


def _greeting(connection: socket.socket) -> bytes:
    """READY; FAILED, an error's class, a space, its text; or b"" if the broker is gone."""
    try:
        answer = connection.recv(1)
        while answer[:1] == FAILED and (more := connection.recv(1024)):
            answer += more
    except ConnectionResetError:
        return b""
    return answer


def _try_connect(base: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.connect(f"{base}.sock")
    except OSError:
        connection.close()
        return None
    return connection


def _start(base: Path, channel: str) -> socket.socket:
    """Start the broker, unless somebody else just did. The listener exists before anybody waits for it."""
    with _locked(base):
        connection = _try_connect(base)
        if connection is not None:
            return connection
        path = Path(f"{base}.sock")
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.bind(str(path))
        listener.listen(64)
        connection = _try_connect(base)
        if os.fork() == 0:
            _detached(base, channel, listener)
        os.wait()
        listener.close()
    if connection is None:
        raise UnreachableError(f"the broker for {channel} did not start; look at {base.parent}")
    return connection


def _detached(base: Path, channel: str, listener: socket.socket) -> None:
    """In the child: leave the client's session and descriptors, run the broker, never return."""
    code = 1
    try:
        os.setsid()
        if os.fork() > 0:
            os._exit(0)
        keep = listener.fileno()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.closerange(3, keep)
        os.closerange(keep + 1, 1024)
        serve(base, channel, listener)
        code = 0
    finally:
        os._exit(code)


def serve(base: Path, channel: str, listener: socket.socket) -> None:
    """Own ``channel`` until the last client has left."""
    try:
        with contextlib.closing(Link(channel, TOOL_PATIENCE)) as link:
            link.open(_OPEN_TIMEOUT)
            manager = ResourceManager(link)
            manager.start()
            _loop(base, listener, link, manager)
    except VtpmManagerError as error:
        _refuse(base, listener, error)


def _loop(base: Path, listener: socket.socket, link: Link, manager: ResourceManager) -> None:
    clients: dict[int, tuple[Client, Space]] = {}
    questions = Questions(link)
    while True:
        _accept(listener, clients)
        if not clients and _end(base, listener):
            return
        for fd in _poll(listener, clients, link):
            clients[fd][0].transfer()
        for fd, (client, space) in list(clients.items()):  # one command each: clients take turns
            if client.has_command:
                _perform(manager, questions, client, space)
            if client.done:
                manager.leave(space)
                clients.pop(fd)[0].close()
        link.step()
        questions.step()


def _perform(manager: ResourceManager, questions: Questions, client: Client, space: Space) -> None:
    command = client.command()
    if asking.is_question(command):
        questions.ask(client, command)
    else:
        client.answer(manager.execute(space, command))


def _poll(listener: socket.socket, clients: dict[int, tuple[Client, Space]], link: Link) -> list[int]:
    """Clients for which something can be done, once anything happens."""
    poller = select.poll()
    if len(clients) < MOST:
        poller.register(listener, select.POLLIN)
    if link.fileno() >= 0:
        poller.register(link.fileno(), select.POLLIN)
    for fd, (client, _) in clients.items():
        if not client.held:
            poller.register(fd, client.events)
    waiting = any(client.has_command for client, _ in clients.values())
    return [fd for fd, _ in poller.poll(0 if waiting else link.timeout() * 1000 + 1) if fd in clients]


def _accept(listener: socket.socket, clients: dict[int, tuple[Client, Space]]) -> None:
    listener.setblocking(False)
    while len(clients) < MOST:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        client = Client(connection)
        client.answer(READY)
        clients[client.fileno()] = client, Space()


def _end(base: Path, listener: socket.socket) -> bool:
    """Nobody is left: take the name away, unless a new client is knocking."""
    with _locked(base):
        if select.select([listener], [], [], 0)[0]:
            return False
        Path(f"{base}.sock").unlink(missing_ok=True)
        listener.close()
    return True


def _refuse(base: Path, listener: socket.socket, error: VtpmManagerError) -> None:
    with _locked(base):
        Path(f"{base}.sock").unlink(missing_ok=True)
    listener.setblocking(False)
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            connection.sendall(FAILED + f"{type(error).__name__} {error}".encode())
            connection.close()


@contextlib.contextmanager
def _locked(base: Path) -> Iterator[None]:
    fd = os.open(f"{base}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _directory() -> Path:
    """A directory that only this user can enter."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(base) / "vtpm-frontend" if base else Path(f"/tmp/vtpm-frontend-{os.getuid()}")
    umask = os.umask(0o077)  # TPM tools run us with a umask that takes the owner's right to enter
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ConfigError(
            f"cannot make {path}: {error.strerror}; set XDG_RUNTIME_DIR to a directory of yours"
        ) from None
    finally:
        os.umask(umask)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(f"{path} is not a private directory of this user; remove it, or set XDG_RUNTIME_DIR")
    return path
