"""The front end's half of a guest's channel, sans-I/O (CHANNEL.md sections 3, 4). Times are monotonic seconds, given.

At most one command is outstanding; the local client may replace one it no longer waits for (``abandon``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from manager_vm.errors import LocalProtocolError
from manager_vm.protocol.client_events import Answer, Event, Evidence, Lost, Moved, Send
from manager_vm.protocol.quote_client import Outcome, QuoteClient
from manager_vm.wire import tpm
from manager_vm.wire.channel import (
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
from manager_vm.wire.quote import QuoteBegin, QuoteFetch, QuotePart, QuoteRefused

HELLO_INTERVAL = 1.0
PING_INTERVAL = 1.0
FRESH = 0.5  # a sign of life younger than this allows to write a command without a PING first
SILENCE = 3.5  # the manager counts as gone after this
RETRY_INTERVAL = (0.002, 0.05)  # after NOT_ACCEPTED: an eighth of how long it has waited, within these
OVERDUE = 2.0  # a command without an answer for so long: greet again, the WELCOME tells whether it arrived
KERNEL_PATIENCE = 0.45  # TPM_RC_RETRY before the guest kernel's 750 ms are over


_TOO_OLD = "this manager is too old to vouch for quotes"


class State(Enum):
    """Of the connection."""

    DISCONNECTED = auto()
    GREETING = auto()
    READY = auto()


@dataclass(slots=True)
class _Pending:
    command: bytes
    locality: int
    arrived: float
    written: bool = False
    written_at: float = 0.0
    try_at: float = 0.0  # not before, after NOT_ACCEPTED
    asked: bool = False  # a PING is out before it is written
    abandoned: bool = False


class ChannelClient:
    """The automaton. ``session``: 16 random bytes. ``patience``: seconds before TPM_RC_RETRY; may change."""

    def __init__(self, session: bytes, patience: float = KERNEL_PATIENCE) -> None:
        self._session = session
        self.patience = patience
        self._pending: _Pending | None = None
        self._queued: _Pending | None = None
        self._seq = 1  # of the pending, or the next command
        self._heard = self._said = 0.0
        self._quotes = QuoteClient()
        self._has_quotes = False  # the manager's
        self.state = State.DISCONNECTED

    @property
    def asking(self) -> bool:
        """Whether a question for evidence is open."""
        return not self._quotes.idle

    @property
    def written(self) -> bool:
        """Whether the outstanding command was written: its outcome is the manager's to tell."""
        return self._pending is not None and self._pending.written

    @property
    def idle(self) -> bool:
        """Whether no command is outstanding."""
        return self._pending is None

    def connected(self, now: float) -> list[Event]:
        """A connection is there: greet."""
        self.state = State.GREETING
        self._heard = now
        return [self._hello(now)]

    def disconnected(self) -> None:
        """The connection is gone."""
        self.state = State.DISCONNECTED

    def submit(self, command: bytes, locality: int, now: float) -> list[Event]:
        """A command from the local client. One that was abandoned is waited for first."""
        new = _Pending(command, locality, now)
        if self._pending is None:
            self._pending = new
            return self._push(now)
        if not self._pending.abandoned:
            raise LocalProtocolError("a command is outstanding already")
        self._queued = new
        return []

    def abandon(self) -> None:
        """The local client does not wait for the outstanding command any more: its answer is dropped when it comes."""
        if self._pending is not None and not self._pending.written:
            self._pending = None
        elif self._pending is not None:
            self._pending.abandoned = True
        self._queued = None

    def ask(self, question: QuoteBegin, now: float) -> list[Event]:
        """A question for evidence from the local client; one at a time, commands go on meanwhile."""
        request: QuoteBegin | QuoteFetch | Outcome | None = self._quotes.ask(question, now)
        if self.state is not State.READY:
            return []
        return self._quoted(request if self._has_quotes else self._quotes.fail(_TOO_OLD), now)

    def receive(self, message: Message, now: float) -> list[Event]:
        """A message from the manager."""
        self._heard = now
        return _ON_MESSAGE.get((self.state, type(message)), ChannelClient._ignore)(self, message, now)

    def tick(self, now: float) -> list[Event]:
        """Time has passed."""
        events = self._impatience(now)
        events += self._quoted(self._quotes.tick(now, ready=self.state is State.READY), now)
        if self.state is not State.DISCONNECTED and now - self._heard >= SILENCE:
            return [*events, self._lost("the manager is silent")]
        if self.state is State.GREETING and now - self._said >= HELLO_INTERVAL:
            return [*events, self._hello(now)]
        if self.state is State.READY and self._overdue(now):
            self.state = State.GREETING
            return [*events, self._hello(now)]
        if self.state is State.READY:
            events += self._push(now)
            if now - self._said >= PING_INTERVAL:
                events.append(self._say(Ping(self._seq), now))
        return events

    def deadline(self, now: float) -> float:
        """Seconds until ``tick`` has something to do."""
        due = [now + PING_INTERVAL]
        if self.state is not State.DISCONNECTED:
            due.append(self._said + PING_INTERVAL)
        for waiting in (self._pending, self._queued):
            if waiting is not None and not waiting.written:
                due += [waiting.arrived + self.patience]
                if self.state is State.READY and waiting.try_at and not waiting.asked:
                    due.append(waiting.try_at)
        return max(min(due) - now, 0.0)

    def _push(self, now: float) -> list[Event]:
        """Write the pending command if it may be written now."""
        pending = self._pending
        if self.state is not State.READY or pending is None or pending.written or pending.try_at > now:
            return []
        if now - self._heard < FRESH:
            return [self._write(pending, now)]
        if pending.asked:
            return []
        pending.asked = True
        return [self._say(Ping(self._seq), now)]

    def _overdue(self, now: float) -> bool:
        pending = self._pending
        return pending is not None and pending.written and now - pending.written_at >= OVERDUE

    def _write(self, pending: _Pending, now: float) -> Event:
        pending.written, pending.written_at = True, now
        pending.asked = False
        return self._say(Command(self._seq, pending.locality, pending.command), now)

    def _impatience(self, now: float) -> list[Event]:
        """TPM_RC_RETRY for a command that was never written, or was not accepted, for too long."""
        for waiting in (self._queued, self._pending):
            if waiting is None or waiting.written or now - waiting.arrived < self.patience:
                continue
            if waiting is self._queued:
                self._queued = None
            else:
                self._pending = None
            return [Answer(tpm.error_response(tpm.RC.TPM_RC_RETRY))]
        return []

    def _welcome(self, message: Welcome, now: float) -> list[Event]:
        if message.session != self._session:
            return []
        self.state, self._has_quotes = State.READY, message.quotes
        asked = self._quotes.again(now) if message.quotes else self._quotes.fail(_TOO_OLD)
        asking = self._quoted(asked, now)
        pending = self._pending
        if pending is None or not pending.written:
            self._seq = message.next_seq
            if pending is not None:
                pending.try_at = now  # it was refused by another manager, or before this one was ready
            return self._push(now) + asking
        if message.resumed and message.next_seq in (self._seq, self._seq + 1):
            return [self._write(pending, now), *asking]
        self._seq = message.next_seq
        return asking + self._finish(tpm.error_response(tpm.RC.TPM_RC_FAILURE), now)

    def _response(self, message: Response, now: float) -> list[Event]:
        if self._pending is None or not self._pending.written or message.seq != self._seq:
            return []
        self._seq += 1
        return self._finish(message.response, now)

    def _finish(self, response: bytes, now: float) -> list[Event]:
        """The pending command has its answer; the queued one is next."""
        finished, self._pending, self._queued = self._pending, self._queued, None
        events: list[Event] = [] if finished is None or finished.abandoned else [Answer(response)]
        return events + self._push(now)

    def _not_accepted(self, message: NotAccepted, now: float) -> list[Event]:
        pending = self._pending
        if pending is None or not pending.written or message.seq != self._seq:
            return []
        pending.written = False
        shortest, longest = RETRY_INTERVAL
        pending.try_at = now + min(max((now - pending.arrived) / 8, shortest), longest)
        if pending.abandoned:
            self._pending, self._queued = self._queued, None
        if message.reason is Reason.HOLD:  # nothing is written until it has said WELCOME, from wherever it goes on
            self.state = State.GREETING
            return [self._hello(now)]
        return [Moved()] if message.reason is Reason.MOVED else []

    def _pong(self, message: Pong, now: float) -> list[Event]:
        return self._push(now)

    def _error(self, message: Error, now: float) -> list[Event]:
        return [self._lost(f"the manager closed the session: {message.text}")]

    def _evidence(self, message: QuotePart | QuoteRefused, now: float) -> list[Event]:
        return self._quoted(self._quotes.receive(message, now), now)

    def _quoted(self, next_: QuoteBegin | QuoteFetch | Outcome | None, now: float) -> list[Event]:
        if next_ is None:
            return []
        return [self._say(next_, now) if isinstance(next_, QuoteBegin | QuoteFetch) else Evidence(next_)]

    def _ignore(self, message: Message, now: float) -> list[Event]:
        return []

    def goodbye(self) -> list[Event]:
        """The front end ends: its session is over."""
        ready, self.state = self.state is State.READY, State.DISCONNECTED
        return [Send(Bye())] if ready else []

    def _hello(self, now: float) -> Event:
        written = self._pending is not None and self._pending.written
        return self._say(Hello(self._session, self._seq if written else 0), now)

    def _say(self, message: Message, now: float) -> Event:
        self._said = now
        return Send(message)

    def _lost(self, reason: str) -> Event:
        self.state = State.DISCONNECTED
        return Lost(reason)


_Handler = Callable[[ChannelClient, Any, float], list[Event]]

_ON_MESSAGE: dict[tuple[State, type], _Handler] = {
    (State.GREETING, Welcome): ChannelClient._welcome,
    (State.GREETING, Error): ChannelClient._error,
    (State.READY, Response): ChannelClient._response,
    (State.READY, NotAccepted): ChannelClient._not_accepted,
    (State.READY, Pong): ChannelClient._pong,
    (State.READY, Error): ChannelClient._error,
    (State.READY, QuotePart): ChannelClient._evidence,
    (State.READY, QuoteRefused): ChannelClient._evidence,
}
