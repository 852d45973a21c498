"""A TCP connection between two managers: messages of a move in, messages out, with limits on time and size."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

from manager_vm.crypto import Key
from manager_vm.errors import ConfigError, MigrationError, RefusedError, RemoteProtocolError
from manager_vm.protocol import agreement
from manager_vm.protocol.agreement import Agreed, Conversation
from manager_vm.protocol.session import Session
from manager_vm.wire import framing, migration
from manager_vm.wire.migration import MAX_BODY, Cause, Handover, Inner, Outer, Record, Refuse

Message = TypeVar("Message", bound=Inner)

_CHUNK = 65536
_SEND = 20.0  # seconds for one message
_CONNECT = 5.0
_EVERYWHERE = ("0.0.0.0", "::")


class PeerLink:
    """Owns the socket. Every failure of the network is a MigrationError with its cause."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        with suppress(OSError):  # it is gone already: the first message says so
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._decoder = framing.Decoder(max(MAX_BODY.values()), by_type=MAX_BODY)
        self._messages: list[Outer] = []

    @classmethod
    def connect(cls, address: str) -> PeerLink:
        """To "host:port"; ConfigError for what is none, MigrationError (peer-lost) if nobody is there."""
        try:
            return cls(socket.create_connection(parse_address(address), _CONNECT))
        except OSError as error:
            raise MigrationError(f"no manager answers at {address} ({error})", Cause.PEER_LOST.word) from None

    @property
    def local_host(self) -> str:
        """Our own address in this connection."""
        with suppress(OSError):
            return plain(self._socket.getsockname()[0])
        return ""

    def send(self, message: Outer) -> None:
        """One message."""
        self._socket.settimeout(_SEND)
        try:
            self._socket.sendall(framing.encode(migration.to_frame(message)))
        except OSError as error:
            raise MigrationError(f"the connection to the other side was lost ({error})", Cause.PEER_LOST.word) from None

    def receive(self, timeout: float) -> Outer:
        """The next message; MigrationError (timeout, peer-lost), RemoteProtocolError."""
        deadline = time.monotonic() + timeout
        while not self._messages:
            self._messages += [migration.from_frame(frame) for frame in self._decoder.feed(self._read(deadline))]
        return self._messages.pop(0)

    def converse(self, conversation: Conversation, timeout: float) -> Agreed:
        """Lead a conversation to its end; at most ``timeout`` seconds for each message of the other side."""
        try:
            message = next(conversation)
            while True:
                self.send(message)
                message = conversation.send(self.receive(timeout))
        except StopIteration as end:
            agreed: Agreed = end.value
        if agreed.session.at_source:
            self.send(agreed.confirm)
        return agreed

    def refuse(self, move: bytes, error: Exception) -> None:
        """Say why it ends here, if the other side still listens and has not said so itself."""
        if not isinstance(error, RefusedError):
            with suppress(MigrationError):
                self.send(refusal(move, error))

    def cut(self) -> None:
        """From another thread: whoever waits for the other side waits no more."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()

    def __enter__(self) -> PeerLink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise MigrationError("the other side does not answer", Cause.TIMEOUT.word)
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(_CHUNK)
        except TimeoutError:
            raise MigrationError("the other side does not answer", Cause.TIMEOUT.word) from None
        except OSError as error:
            raise MigrationError(f"the connection to the other side was lost ({error})", Cause.PEER_LOST.word) from None
        if not data:
            raise MigrationError("the other side ended the connection", Cause.PEER_LOST.word)
        return data


class Talk:
    """The encrypted part of a move over a link: each message in its turn."""

    def __init__(self, link: PeerLink, session: Session) -> None:
        self._link = link
        self._session = session
        self._heard = False  # a record of the other side was authentic

    def export(self, label: str) -> Key:
        """A key for something else that only both sides of this conversation know."""
        return self._session.export(label)

    def say(self, message: Inner) -> None:
        """One message."""
        self._link.send(self._session.seal(message))

    def refuse(self, move: bytes, error: Exception) -> None:
        """Say why it ends here, if the other side still listens and has not said so itself."""
        if not isinstance(error, RefusedError):
            with suppress(MigrationError):
                self.say(refusal(move, error))

    def expect(self, kind: type[Message], timeout: float) -> Message:
        """The next message, which is of this kind; MigrationError where the other side refuses or fails."""
        return self.expect_any((kind,), timeout)

    def expect_any(self, kinds: tuple[type[Message], ...], timeout: float) -> Message:
        """The same for one of several kinds."""
        message = self._next(timeout)
        if isinstance(message, kinds):
            return message
        if isinstance(message, Refuse):
            raise agreement.refused(message)
        raise RemoteProtocolError(f"the other end sent {type(message).__name__}, where {kinds[0].__name__} was due")

    def _next(self, timeout: float) -> Inner:
        outer = self._link.receive(timeout)
        if isinstance(outer, Record):
            message = self._session.open(outer)
            self._heard = True
            return message
        if isinstance(outer, Handover) or (isinstance(outer, Refuse) and not self._heard):
            return outer  # signed; or of a side that has no keys yet, for it believes ours not
        if isinstance(outer, Refuse):
            raise MigrationError("somebody ended it in clear, where both sides have keys", Cause.PEER_LOST.word)
        raise RemoteProtocolError(f"the other end sent {type(outer).__name__} in clear")


def cause_of(error: Exception) -> Cause:
    """What the other side is told of an error of ours."""
    if isinstance(error, MigrationError) and error.cause:
        return Cause[error.cause.upper().replace("-", "_")]
    return Cause.TAMPERED if isinstance(error, RemoteProtocolError) else Cause.FAULT


def refusal(move: bytes, error: Exception) -> Refuse:
    """REFUSE: of a fault of ours only that there is one."""
    cause = cause_of(error)
    text = "its log says more" if cause is Cause.FAULT else str(error)
    return Refuse(move, cause, text.encode()[: migration.MAX_TEXT].decode(errors="ignore"))


def visible(listener: str, host: str) -> str:
    """How others reach a listener: one that listens everywhere at ``host``, "" where that is not known."""
    own, port = parse_address(listener)
    if own not in _EVERYWHERE:
        return listener
    return join(host, port) if host else ""


def join(host: str, port: int) -> str:
    """ "host:port", or "[v6]:port"."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def plain(host: str) -> str:
    """An IPv4 address as such, where a socket for both writes it as IPv6."""
    return host.removeprefix("::ffff:")


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of "host:port" or "[v6]:port"; ConfigError for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 <= int(port) < 1 << 16:
        raise ConfigError(f"{text[:80]!r} is no address of a manager: use HOST:PORT")
    return host.strip("[]"), int(port)
