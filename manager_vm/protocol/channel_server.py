"""The manager's half of a guest's channel, sans-I/O: messages in, actions out (CHANNEL.md section 3).

One ``ChannelServer`` belongs to one vTPM and outlives channels and sessions; a resume goes on with its state in a
new one, a boot begins one at a random seq.
Whether the vTPM serves is not known here; the shell answers each ``Execute`` with exactly one of
``executed``, ``outcome_unknown`` or ``refused``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto

from manager_vm.errors import LocalProtocolError, RemoteProtocolError
from manager_vm.protocol.quote_server import QuoteServer
from manager_vm.wire import tpm
from manager_vm.wire.channel import (
    MAX_COMMAND,
    SEQ_LIMIT,
    VERSION,
    Bye,
    Command,
    Error,
    Hello,
    Message,
    NotAccepted,
    Ping,
    Pong,
    Reason,
    Response,
    Welcome,
)
from manager_vm.wire.quote import QuoteBegin, QuoteFetch, QuoteRefused

_MIN_COMMAND = 10  # bytes: a TPM command header (TPM 2.0 Part 1, 18.2)


@dataclass(frozen=True, slots=True)
class SessionState:
    """What a park keeps and a move carries: session id, last seq, the command with it, and its response if known.

    ``shut_down``: the newest command, of whatever session, was a TPM2_Shutdown that succeeded (Part 3, 9.4).
    """

    session: bytes = b""
    last_seq: int = 0
    locality: int = 0
    command: bytes = b""
    response: bytes | None = None
    shut_down: bool = False

    def __repr__(self) -> str:
        return f"SessionState(last_seq={self.last_seq})"


@dataclass(frozen=True, slots=True)
class Send:
    """Send this message to the front end."""

    message: Message


@dataclass(frozen=True, slots=True)
class Execute:
    """Run this command on the vTPM; it has passed the filter."""

    seq: int
    locality: int
    command: bytes


@dataclass(frozen=True, slots=True)
class Attest:
    """Make the evidence that is asked for; ``attested`` follows, at any time."""

    question: QuoteBegin


@dataclass(frozen=True, slots=True)
class Close:
    """End the session (an Error was sent before); ``reason`` is for the log."""

    reason: str


Action = Send | Execute | Attest | Close


class Verdict(Enum):
    """How a COMMAND relates to what was seen before."""

    NEW = auto()
    REPEAT_KNOWN = auto()
    REPEAT_RUNNING = auto()
    REPEAT_UNKNOWN = auto()
    BUSY = auto()
    DIFFERENT = auto()
    OUT_OF_ORDER = auto()


def _shuts_down(command: bytes, response: bytes | None) -> bool:
    done = response is not None and tpm.response_code(response) == tpm.RC.TPM_RC_SUCCESS
    return done and tpm.command_code(command) == tpm.CC.TPM2_Shutdown


class ChannelServer:
    """The automaton. ``localities``: that the present channel may use. ``resumed``: it goes on for another one."""

    def __init__(
        self,
        state: SessionState | None = None,
        localities: frozenset[int] = frozenset({0}),
        *,
        resumed: bool = False,
    ) -> None:
        self._state = state or SessionState()
        self._resumed = resumed
        self.localities = localities
        self._greeted = False
        self._running: Command | None = None
        self._orphaned = False  # the running command belongs to a session that is over
        self._quotes = QuoteServer()

    @property
    def state(self) -> SessionState:
        """For a park or a move, which hold the vTPM's lock: a command that came meanwhile has not begun."""
        return self._state

    @property
    def last_seq(self) -> int:
        """The newest seq that was executed or consumed."""
        return self._state.last_seq

    def new_peer(self) -> None:
        """The channel has a new front end, or none: it has to say HELLO first. A running command goes on."""
        self._greeted = False

    def receive(self, message: Message) -> list[Action]:
        """What to do about a message from the front end."""
        match message:
            case Command():
                return self._command(message)
            case Ping(token):
                return [Send(Pong(token))]
            case Hello():
                return self._hello(message)
            case Bye():
                return self._bye()
            case QuoteBegin() | QuoteFetch():
                return self._quote(message)
            case _:
                return self._error(f"{type(message).__name__} travels only from the manager to a front end")

    def executed(self, response: bytes) -> list[Action]:
        """The running command was executed and answered; its response may be released."""
        return self._finish(response, response)

    def outcome_unknown(self) -> list[Action]:
        """The running command's vTPM died or was killed at the deadline: answered, never executed again."""
        return self._finish(None, tpm.error_response(tpm.RC.TPM_RC_FAILURE))

    def attested(self, question: QuoteBegin, answer: bytes | QuoteRefused) -> list[Action]:
        """The evidence that ``Attest`` asked for is made, or why there is none."""
        reply = self._quotes.answered(question, answer)
        return [Send(reply)] if reply is not None and self._greeted else []

    def refused(self, reason: Reason) -> list[Action]:
        """The vTPM does not serve now; the command was not executed and its seq is free again."""
        command, orphaned = self._take_running()
        if orphaned:  # the session that came since was told that this seq is used
            self._state = replace(self._state, last_seq=command.seq)
            return []
        return [Send(NotAccepted(command.seq, reason))] if self._greeted else []

    def _finish(self, known: bytes | None, answer: bytes) -> list[Action]:
        command, orphaned = self._take_running()
        down = _shuts_down(command.command, known)
        if orphaned:
            self._state = replace(self._state, last_seq=command.seq, shut_down=down)
            return []
        self._state = SessionState(self._state.session, command.seq, command.locality, command.command, known, down)
        return [Send(Response(command.seq, answer))] if self._greeted else []

    def _hello(self, hello: Hello) -> list[Action]:
        if hello.version < VERSION or hello.max_command < _MIN_COMMAND:
            offer = f"version {hello.version} with commands of {hello.max_command} bytes"
            return self._error(f"{offer} is not supported; this manager speaks version {VERSION}")
        resumed = hello.session == self._state.session
        if not resumed:
            self._state = SessionState(hello.session, self._state.last_seq, shut_down=self._state.shut_down)
            self._orphaned = self._running is not None
            self._quotes.forget()
        self._greeted = True
        next_seq = self._next_seq() + (1 if self._orphaned else 0)
        return [Send(Welcome(hello.session, next_seq, resumed, VERSION, MAX_COMMAND))]

    def _bye(self) -> list[Action]:
        self._greeted = False
        self._quotes.forget()
        self._state = SessionState(last_seq=self._state.last_seq, shut_down=self._state.shut_down)
        self._orphaned = self._running is not None
        return []

    def _quote(self, request: QuoteBegin | QuoteFetch) -> list[Action]:
        if not self._greeted:
            return self._error("a quote request came before HELLO")
        if isinstance(request, QuoteFetch):
            return [Send(self._quotes.fetch(request))]
        try:
            found = self._quotes.begin(request)
        except RemoteProtocolError as error:
            return self._error(str(error))
        if isinstance(found, QuoteBegin):
            return [Attest(found)]
        return [] if found is None else [Send(found)]

    def _command(self, command: Command) -> list[Action]:
        if not self._greeted and self._resumed and command.seq == self._next_seq():
            return [Send(NotAccepted(command.seq, Reason.HOLD))]  # it was said HELLO to the one before
        if not self._greeted:
            return self._error("a command came before HELLO")
        return _ON_COMMAND[self._verdict(command)](self, command)

    def _verdict(self, command: Command) -> Verdict:
        running = self._running
        if running is not None and self._orphaned:
            return Verdict.BUSY if command.seq == running.seq + 1 else Verdict.OUT_OF_ORDER
        if running is not None:
            return Verdict.REPEAT_RUNNING if command == running else Verdict.DIFFERENT
        last = self._state
        if command.seq == last.last_seq + 1:
            return Verdict.NEW
        if command.seq != last.last_seq or last.last_seq == 0:
            return Verdict.OUT_OF_ORDER
        if last.response is None and not last.command:
            return Verdict.REPEAT_UNKNOWN
        if (command.command, command.locality) != (last.command, last.locality):
            return Verdict.DIFFERENT
        return Verdict.REPEAT_KNOWN if last.response is not None else Verdict.REPEAT_UNKNOWN

    def _new(self, command: Command) -> list[Action]:
        rc = tpm.check_frame(command.command)
        if rc is None and command.locality not in self.localities:
            rc = tpm.RC.TPM_RC_LOCALITY
        self._running = command
        if rc is not None:
            return self.executed(tpm.error_response(rc))
        return [Execute(command.seq, command.locality, command.command)]

    def _repeat_known(self, command: Command) -> list[Action]:
        assert self._state.response is not None
        return [Send(Response(command.seq, self._state.response))]

    def _repeat_running(self, command: Command) -> list[Action]:
        return []

    def _repeat_unknown(self, command: Command) -> list[Action]:
        return [Send(_failure(command.seq))]

    def _busy(self, command: Command) -> list[Action]:
        return [Send(NotAccepted(command.seq, Reason.BUSY))]

    def _different(self, command: Command) -> list[Action]:
        return self._error(f"seq {command.seq} came again with other bytes, or while another command executes")

    def _out_of_order(self, command: Command) -> list[Action]:
        return self._error(f"seq {command.seq} came; {self._next_seq()} is next")

    def _take_running(self) -> tuple[Command, bool]:
        if self._running is None:
            raise LocalProtocolError("no command is executing")
        taken = self._running, self._orphaned
        self._running, self._orphaned = None, False
        return taken

    def _next_seq(self) -> int:
        """Always below SEQ_LIMIT: seq grows by one per executed command, 2^63 of them never come."""
        return min(self._state.last_seq + 1, SEQ_LIMIT - 1)

    def _error(self, text: str) -> list[Action]:
        self._greeted = False
        return [Send(Error(text)), Close(text)]


def _failure(seq: int) -> Response:
    return Response(seq, tpm.error_response(tpm.RC.TPM_RC_FAILURE))


_ON_COMMAND: dict[Verdict, Callable[[ChannelServer, Command], list[Action]]] = {
    Verdict.NEW: ChannelServer._new,
    Verdict.REPEAT_KNOWN: ChannelServer._repeat_known,
    Verdict.REPEAT_RUNNING: ChannelServer._repeat_running,
    Verdict.REPEAT_UNKNOWN: ChannelServer._repeat_unknown,
    Verdict.BUSY: ChannelServer._busy,
    Verdict.DIFFERENT: ChannelServer._different,
    Verdict.OUT_OF_ORDER: ChannelServer._out_of_order,
}
