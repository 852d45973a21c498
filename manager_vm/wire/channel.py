"""Messages of a guest's channel (CHANNEL.md, "Messages"): frozen dataclasses and their frames.

``to_frame`` and ``from_frame`` are inverse to each other. ``from_frame`` checks every length and value:
what it returns is well-formed; whether it is allowed now is the automaton's business (protocol/channel).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from manager_vm.errors import RemoteProtocolError
from manager_vm.wire import quote
from manager_vm.wire.framing import Frame
from manager_vm.wire.quote import QuoteBegin, QuoteFetch, QuotePart, QuoteRefused

VERSION = 1
MAX_COMMAND = 4096  # bytes; TPM_PT_MAX_COMMAND_SIZE and TPM_PT_MAX_RESPONSE_SIZE of libtpms
MAX_TEXT = 512
_MIN_RESPONSE = 10  # bytes: a response header (TPM 2.0 Part 1, 18.9)
MAX_BODY = MAX_COMMAND
RING_MEMORY = 128 << 10  # bytes of memory that two ends share (CHANNEL.md section 5)
SESSION_SIZE = 16
SEQ_LIMIT = 1 << 63  # exclusive

_HELLO = struct.Struct("<16sI")
_WELCOME = struct.Struct("<16sII")


class Type(IntEnum):
    """Frame types. 1-17: every channel. The others are reserved here so that no number is used twice."""

    HELLO = 1
    WELCOME = 2
    COMMAND = 3
    RESPONSE = 4
    NOT_ACCEPTED = 5
    PING = 6
    PONG = 7
    BYE = 8
    ERROR = 9
    QUOTE_REQUEST = 16  # linked (deep) quote (wire/quote)
    QUOTE_REPLY = 17
    INIT = 32  # reserved: multiplexed host link, seq = boot number
    INIT_ACK = 33  # reserved
    GET_STATEBLOB = 34  # reserved: multiplexed host link, park and ticket
    SET_STATEBLOB = 35  # reserved
    STATEBLOB = 36  # reserved
    REQUEST = 48  # admin and host link (wire/admin)
    REPLY = 49
    PROGRESS = 50


class WelcomeFlag(IntFlag):
    """RESUMED: the manager still knows this session: seq numbers and the reply cache continue.

    QUOTES: it knows QUOTE_REQUEST.
    """

    RESUMED = 1
    QUOTES = 2


class Reason(IntEnum):
    """Why a command was not accepted. All are final for that try: the seq is used again."""

    STARTING = 1
    QUIESCED = 2
    PARKED = 3
    NO_BOOT = 4
    QUARANTINED = 5
    BUSY = 6
    MOVED = 7
    HOLD = 8


@dataclass(frozen=True, slots=True)
class Hello:
    """Front end -> manager: a (new or known) session of 16 random bytes; ``outstanding`` = seq without answer, or 0."""

    session: bytes
    outstanding: int = 0
    version: int = VERSION
    max_command: int = MAX_COMMAND


@dataclass(frozen=True, slots=True)
class Welcome:
    """Manager -> front end: the session is open; ``next_seq`` is the seq of the next new command."""

    session: bytes
    next_seq: int
    resumed: bool
    version: int = VERSION
    max_command: int = MAX_COMMAND
    quotes: bool = True


@dataclass(frozen=True, slots=True)
class Command:
    """Front end -> manager: one TPM command, 10 to 4096 bytes, to be run at ``locality``."""

    seq: int
    locality: int
    command: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """Manager -> front end: the one answer to Command(seq)."""

    seq: int
    response: bytes


@dataclass(frozen=True, slots=True)
class NotAccepted:
    """Manager -> front end: Command(seq) was not and will not be executed; use the seq again."""

    seq: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Ping:
    """Front end -> manager: are you there? Answered at once by Pong with the same token."""

    token: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Manager -> front end: answer to Ping."""

    token: int


@dataclass(frozen=True, slots=True)
class Bye:
    """Front end -> manager: this session has ended; its reply cache may go."""


@dataclass(frozen=True, slots=True)
class Error:
    """Manager -> front end: you broke the rules; the session is closed. ``text`` says which rule."""

    text: str


_Quote = QuoteBegin | QuoteFetch | QuotePart | QuoteRefused
Message = Hello | Welcome | Command | Response | NotAccepted | Ping | Pong | Bye | Error | _Quote


def to_frame(message: Message) -> Frame:
    """The frame of a message."""
    match message:
        case Command(seq, locality, command):
            return Frame(Type.COMMAND, locality, seq, command)
        case Response(seq, response):
            return Frame(Type.RESPONSE, 0, seq, response)
        case Hello(session, outstanding, version, max_command):
            return Frame(Type.HELLO, version, outstanding, _HELLO.pack(session, max_command))
        case Welcome(session, next_seq, resumed, version, max_command, quotes):
            flags = WelcomeFlag.RESUMED * resumed | WelcomeFlag.QUOTES * quotes
            return Frame(Type.WELCOME, version, next_seq, _WELCOME.pack(session, flags, max_command))
        case NotAccepted(seq, reason):
            return Frame(Type.NOT_ACCEPTED, reason, seq)
        case Ping(token):
            return Frame(Type.PING, 0, token)
        case Pong(token):
            return Frame(Type.PONG, 0, token)
        case Bye():
            return Frame(Type.BYE)
        case Error(text):
            return Frame(Type.ERROR, 0, 0, text.encode()[:MAX_TEXT])
        case QuoteBegin() | QuoteFetch():
            arg, body = quote.to_body(message)
            return Frame(Type.QUOTE_REQUEST, arg, message.token, body)
        case QuotePart() | QuoteRefused():
            arg, body = quote.to_body(message)
            return Frame(Type.QUOTE_REPLY, arg, message.token, body)


def from_frame(frame: Frame) -> Message:
    """The message of a frame; RemoteProtocolError if it is none of a guest's channel."""
    parse = _PARSERS.get(frame.type)
    if parse is None or frame.name:
        raise RemoteProtocolError(f"a frame of type {frame.type} does not belong on a guest's channel")
    return parse(frame)


def _hello(frame: Frame) -> Hello:
    _exact(frame, _HELLO.size)
    session, max_command = _HELLO.unpack(frame.body)
    return Hello(session, _seq(frame), frame.arg, max_command)


def _welcome(frame: Frame) -> Welcome:
    _exact(frame, _WELCOME.size)
    session, flags, max_command = _WELCOME.unpack(frame.body)
    resumed, quotes = bool(flags & WelcomeFlag.RESUMED), bool(flags & WelcomeFlag.QUOTES)
    return Welcome(session, _seq(frame), resumed, frame.arg, max_command, quotes)


def _command(frame: Frame) -> Command:
    if len(frame.body) > MAX_COMMAND:
        raise RemoteProtocolError(f"a TPM command of {len(frame.body)} bytes; at most {MAX_COMMAND} are allowed")
    return Command(_seq(frame), frame.arg, frame.body)


def _response(frame: Frame) -> Response:
    if not _MIN_RESPONSE <= len(frame.body) <= MAX_COMMAND:
        raise RemoteProtocolError(f"a TPM response of {len(frame.body)} bytes is none")
    return Response(_seq(frame), frame.body)


def _not_accepted(frame: Frame) -> NotAccepted:
    _exact(frame, 0)
    try:
        return NotAccepted(_seq(frame), Reason(frame.arg))
    except ValueError:
        raise RemoteProtocolError(f"unknown reason {frame.arg} in NotAccepted") from None


def _ping(frame: Frame) -> Ping:
    _exact(frame, 0)
    return Ping(frame.seq)


def _pong(frame: Frame) -> Pong:
    _exact(frame, 0)
    return Pong(frame.seq)


def _bye(frame: Frame) -> Bye:
    _exact(frame, 0)
    return Bye()


def _error(frame: Frame) -> Error:
    return Error(frame.body[:MAX_TEXT].decode(errors="replace"))


def _quote_request(frame: Frame) -> Message:
    return quote.request(_seq(frame), frame.arg, frame.body)


def _quote_reply(frame: Frame) -> Message:
    return quote.reply(_seq(frame), frame.arg, frame.body)


def _exact(frame: Frame, size: int) -> None:
    if len(frame.body) != size:
        raise RemoteProtocolError(f"a frame of type {frame.type} has {len(frame.body)} bytes instead of {size}")


def _seq(frame: Frame) -> int:
    if frame.seq >= SEQ_LIMIT:
        raise RemoteProtocolError(f"seq {frame.seq:#x} is out of range (below 2^63)")
    return frame.seq


_PARSERS: dict[int, Callable[[Frame], Message]] = {
    Type.HELLO: _hello,
    Type.WELCOME: _welcome,
    Type.COMMAND: _command,
    Type.RESPONSE: _response,
    Type.NOT_ACCEPTED: _not_accepted,
    Type.PING: _ping,
    Type.PONG: _pong,
    Type.BYE: _bye,
    Type.ERROR: _error,
    Type.QUOTE_REQUEST: _quote_request,
    Type.QUOTE_REPLY: _quote_reply,
}
