"""A front end's connection to the manager: end point, decoder and automaton, and coming back after every loss."""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable

from manager_vm.errors import BusyError, ConfigError, ProtocolError, UnreachableError, VtpmManagerError
from manager_vm.protocol.channel_client import KERNEL_PATIENCE, ChannelClient
from manager_vm.protocol.client_events import Answer, Event, Evidence, Lost, Moved, Send
from manager_vm.vchan import address
from manager_vm.vchan.endpoint import Endpoint, State
from manager_vm.wire import channel, framing
from manager_vm.wire.quote import QuoteBegin, QuoteRefused

log = logging.getLogger(__name__)

TOOL_PATIENCE = 30.0  # seconds: tools wait longer than a kernel does
_BACKOFF = (0.02, 0.5)  # seconds, first and longest pause between connection attempts
_EXPIRE = 0.3
_CHUNK = 65536


class Link:
    """Owns the end point. Poll ``fileno()`` (if not -1) for ``timeout()`` seconds, then call ``step()``.

    ``where``: a channel, or several with commas between them for a vTPM that may move: the session goes on at the next
    one when this one is lost, or when the manager there says that the vTPM has moved. ``introduce`` is called on each
    new connection before anything is said there; where it returns False this one is dropped, to be tried again.
    ``connect``: how a channel's end point is had (default: ``address.connect``).
    """

    def __init__(
        self,
        where: str,
        patience: float = KERNEL_PATIENCE,
        introduce: Callable[[], bool] = lambda: True,
        connect: Callable[[address.Address], Endpoint] | None = None,
    ) -> None:
        self._introduce = introduce
        self._connect_to = connect or address.connect
        self._addresses = [address.parse(each) for each in where.split(",")]
        self._at = 0  # which of them
        self._tried = 0  # channels in this round that had no vTPM for us
        self._client = ChannelClient(os.urandom(channel.SESSION_SIZE), patience)
        self._endpoint: Endpoint | None = None
        self._decoder = framing.Decoder(channel.MAX_BODY)
        self._epoch = 0
        self._fed = 0.0  # when bytes came last
        self._open = False
        self._served = False  # the manager has answered once: what is wrong now may pass
        self._pause = _BACKOFF[0]
        self._next_try = 0.0
        self._complaint: VtpmManagerError | None = None
        self._outcomes: list[bytes | QuoteRefused] = []

    def fileno(self) -> int:
        """The end point's descriptor, -1 while there is none."""
        return self._endpoint.fileno() if self._endpoint is not None else -1

    def timeout(self) -> float:
        """Seconds until ``step`` is due even if nothing happens."""
        now = time.monotonic()
        due = self._client.deadline(now)
        if self._endpoint is None:
            due = min(due, max(self._next_try - now, 0.0))
        elif self._endpoint.lossy and self._decoder.pending:
            due = min(due, max(self._fed + _EXPIRE - now, 0.0))
        return due

    def step(self) -> list[bytes]:
        """Make progress; returns answers for the local client (at most one per command)."""
        now = time.monotonic()
        answers: list[bytes] = []
        if self._endpoint is None and now >= self._next_try:
            self._connect(now)
        if self._endpoint is not None:
            answers += self._receive(self._endpoint, now)
        return answers + self._perform(self._client.tick(now))

    def be_patient(self, patience: float) -> None:
        """From now on TPM_RC_RETRY comes after this many seconds."""
        self._client.patience = patience

    def submit(self, command: bytes, locality: int = 0) -> list[bytes]:
        """A command from the local client; its answer may come at once."""
        return self._perform(self._client.submit(command, locality, time.monotonic()))

    def abandon(self) -> None:
        """The local client does not wait any more."""
        self._client.abandon()

    @property
    def written(self) -> bool:
        """Whether a command was written that has no answer."""
        return self._client.written

    @property
    def asking(self) -> bool:
        """Whether a question for evidence is open."""
        return self._client.asking

    def ask(self, question: QuoteBegin) -> None:
        """A question for evidence; commands go on meanwhile. ``outcomes`` has the answer in the end."""
        self._perform(self._client.ask(question, time.monotonic()))

    def outcomes(self) -> list[bytes | QuoteRefused]:
        """Evidence that has come, or why there is none; at most one per question."""
        found, self._outcomes = self._outcomes, []
        return found

    def execute(self, command: bytes, locality: int = 0) -> bytes:
        """Submit and wait (a TPM is one method)."""
        answers = self.submit(command, locality)
        while not answers:
            self.wait()
            answers = self.step()
        return answers[0]

    def wait(self) -> None:
        """Sleep until ``step`` is due."""
        poller = select.poll()
        if self._endpoint is not None:
            poller.register(self._endpoint.fileno(), select.POLLIN)
        poller.poll(self.timeout() * 1000 + 1)

    @property
    def ready(self) -> bool:
        """Whether the manager has answered on this channel and takes commands."""
        return self._client.state.name == "READY"

    def open(self, timeout: float) -> None:
        """Wait until the manager has answered; UnreachableError or BusyError with the last cause otherwise."""
        deadline = time.monotonic() + timeout
        while not self.ready:
            if time.monotonic() >= deadline:
                raise self._complaint or UnreachableError(f"the manager does not answer on {self._address}")
            self.step()
            if not self.ready:
                self.wait()

    def close(self) -> None:
        """Say goodbye and let go of the channel."""
        if self._endpoint is not None:
            self._perform(self._client.goodbye())
        if self._endpoint is not None:  # the other end may have left meanwhile
            self._endpoint.close()
            self._endpoint = None

    def _connect(self, now: float) -> None:
        try:
            self._endpoint = self._connect_to(self._address)
        except (UnreachableError, BusyError, ConfigError) as error:
            if isinstance(error, ConfigError) and not self._served:
                raise
            self._complain(error)
            self._go_on(now)
            return
        self._decoder = framing.Decoder(channel.MAX_BODY, resync=self._endpoint.lossy)
        self._epoch = self._endpoint.epoch
        self._open = False

    def _receive(self, endpoint: Endpoint, now: float) -> list[bytes]:
        state = endpoint.update()
        if state is State.CLOSED:
            return self._drop("the other end left", now)
        if endpoint.epoch != self._epoch:
            self._epoch = endpoint.epoch
            self._open = False
        if state is not State.OPEN:
            if self._open:
                self._open = False
                self._client.disconnected()
            return []
        answers: list[bytes] = []
        if not self._open:
            if not self._introduce():
                return self._drop("the manager does not know this front end yet", now)
            self._open = True
            self._decoder.reset()
            answers += self._perform(self._client.connected(now))
        if self._endpoint is not endpoint:
            return answers  # the greeting could not be sent
        return answers + self._read(endpoint, now)

    def _read(self, endpoint: Endpoint, now: float) -> list[bytes]:
        answers: list[bytes] = []
        try:
            data = endpoint.read(_CHUNK)
            self._fed = now if data else self._fed
            frames = self._decoder.feed(data) if data else self._expired(endpoint, now)
            for frame in frames:
                answers += self._perform(self._client.receive(channel.from_frame(frame), now))
                if self.ready:
                    self._served, self._tried = True, 0
                    self._pause, self._complaint = _BACKOFF[0], None
        except ProtocolError as error:
            answers += self._drop(str(error), now)
        return answers

    def _expired(self, endpoint: Endpoint, now: float) -> list[framing.Frame]:
        late = endpoint.lossy and self._decoder.pending and now - self._fed >= _EXPIRE
        return self._decoder.expire() if late else []

    def _perform(self, events: list[Event]) -> list[bytes]:
        answers: list[bytes] = []
        for event in events:
            match event:
                case Send(message):
                    answers += self._send(message)
                case Answer(response):
                    answers.append(response)
                case Evidence(outcome):
                    self._outcomes.append(outcome)
                case Lost(reason):
                    answers += self._drop(reason, time.monotonic())
                case Moved() if len(self._addresses) > 1:
                    answers += self._drop("the vTPM has moved", time.monotonic())
        return answers

    def _send(self, message: channel.Message) -> list[bytes]:
        if self._endpoint is None:
            return []
        try:
            self._endpoint.send(framing.encode(channel.to_frame(message)), timeout=1.0)
        except (UnreachableError, ProtocolError) as error:
            return self._drop(str(error), time.monotonic())
        return []

    def _drop(self, reason: str, now: float) -> list[bytes]:
        self._complain(UnreachableError(reason))
        self._client.disconnected()
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None
        self._go_on(now)
        return []

    @property
    def _address(self) -> address.Address:
        return self._addresses[self._at]

    def _go_on(self, now: float) -> None:
        """To the next channel; a pause when all of them were tried since a manager has answered last."""
        self._at = (self._at + 1) % len(self._addresses)
        self._tried = (self._tried + 1) % len(self._addresses)
        if self._tried == 0:
            self._back_off(now)

    def _back_off(self, now: float) -> None:
        self._next_try = now + self._pause
        self._pause = min(self._pause * 2, _BACKOFF[1])

    def _complain(self, error: VtpmManagerError) -> None:
        if str(error) != str(self._complaint):
            log.warning("%s: %s", self._address, error)
        self._complaint = error
