"""Requests and replies of the admin link and the host link: msgpack bodies in REQUEST, REPLY, PROGRESS frames.

Both links speak this format; the daemon serves a different table of verbs on each (server/admin). The admin
link carries operators' requests (create, stop, destroy, ...). The host link carries what only the host side
knows: which channel belongs to which vTPM (attach, detach) and that a VM was reset (boot).

Request body:  {"verb": str, "args": {str: value}}      frame seq = request id, chosen by the client
           or  {"signed": bytes, "key": str, "signature": bytes}, where signed is a packed statement:
               {"manager": str, "nonce": bytes, "verb": str, "args": {str: value}}; what is executed is parsed from it
Reply body:    {"ok": value}  or  {"error": {"name": str, "text": str}}
Progress body: {"text": str, "done": int, "total": int}   any number of them before the reply
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgpack

from manager_vm.errors import BY_NAME, MigrationError, RemoteProtocolError, VtpmManagerError
from manager_vm.wire.channel import Type
from manager_vm.wire.framing import Frame

MAX_BODY = 1 << 20  # bytes; 1,000 vTPMs in one listing take about 300 kB
_MAX_ITEMS = 100_000


@dataclass(frozen=True, slots=True)
class Request:
    """A verb with its named arguments (msgpack types only)."""

    id: int
    verb: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request that an operator has signed. ``key``: the key's id; ``signed``: the bytes of a ``Statement``."""

    id: int
    key: str
    signature: bytes
    signed: bytes


@dataclass(frozen=True, slots=True)
class Statement:
    """What an operator signs: this verb, once (``nonce`` is the manager's challenge), at the manager ``manager``."""

    manager: str
    nonce: bytes
    verb: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """The end of a request: a result (msgpack types only) or an error."""

    id: int
    ok: Any = None
    error: VtpmManagerError | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of a long request; ``total`` is 0 where it is not known."""

    id: int
    text: str
    done: int = 0
    total: int = 0


AdminMessage = Request | SignedRequest | Reply | Progress


def to_frame(message: AdminMessage) -> Frame:
    """The frame of an admin message."""
    match message:
        case Request(id_, verb, args):
            return Frame(Type.REQUEST, 0, id_, msgpack.packb({"verb": verb, "args": args}))
        case SignedRequest(id_, key, signature, signed):
            return Frame(Type.REQUEST, 0, id_, msgpack.packb({"signed": signed, "key": key, "signature": signature}))
        case Reply(id_, _, VtpmManagerError() as error):
            cause = {"cause": error.cause} if isinstance(error, MigrationError) and error.cause else {}
            wire = {"name": type(error).__name__, "text": str(error), **cause}
            return Frame(Type.REPLY, 0, id_, msgpack.packb({"error": wire}))
        case Reply(id_, ok):
            return Frame(Type.REPLY, 0, id_, msgpack.packb({"ok": ok}))
        case Progress(id_, text, done, total):
            return Frame(Type.PROGRESS, 0, id_, msgpack.packb({"text": text, "done": done, "total": total}))


def from_frame(frame: Frame) -> AdminMessage:
    """The admin message of a frame; RemoteProtocolError for anything else."""
    body = _unpack(frame.body)
    match frame.type, body:
        case Type.REQUEST, {"verb": str(verb), "args": dict(args)} if all(isinstance(key, str) for key in args):
            return Request(frame.seq, verb, args)
        case Type.REQUEST, {"signed": bytes(signed), "key": str(key), "signature": bytes(signature)}:
            return SignedRequest(frame.seq, key, signature, signed)
        case Type.REPLY, {"ok": ok}:
            return Reply(frame.seq, ok)
        case Type.REPLY, {"error": {"name": str(name), "text": str(text), **more}}:
            return Reply(frame.seq, error=_error(name, text, more.get("cause")))
        case Type.PROGRESS, {"text": str(text), "done": int(done), "total": int(total)}:
            return Progress(frame.seq, text, done, total)
    raise RemoteProtocolError(f"a frame of type {frame.type} is no admin message; do both sides have the same version?")


def _error(name: str, text: str, cause: object) -> VtpmManagerError:
    kind = BY_NAME.get(name, VtpmManagerError)
    return kind(text, cause) if issubclass(kind, MigrationError) and isinstance(cause, str) else kind(text)


def pack_statement(statement: Statement) -> bytes:
    """The bytes to sign and to send."""
    return bytes(
        msgpack.packb(
            {
                "manager": statement.manager,
                "nonce": statement.nonce,
                "verb": statement.verb,
                "args": statement.args,
            }
        )
    )


def unpack_statement(signed: bytes) -> Statement:
    """The inverse; RemoteProtocolError for anything else."""
    match _unpack(signed):
        case {"manager": str(manager), "nonce": bytes(nonce), "verb": str(verb), "args": dict(args)} if all(
            isinstance(key, str) for key in args
        ):
            return Statement(manager, nonce, verb, args)
    raise RemoteProtocolError("a signed request does not say what it asks for; do both sides have the same version?")


def _unpack(body: bytes) -> Any:
    try:
        return msgpack.unpackb(body, strict_map_key=False, max_array_len=_MAX_ITEMS, max_map_len=_MAX_ITEMS)
    except (ValueError, TypeError, msgpack.UnpackException) as error:  # TypeError: a map key that is a list or a map
        raise RemoteProtocolError(f"an admin message is not valid msgpack: {error}") from None
