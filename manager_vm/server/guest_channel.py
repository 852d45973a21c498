"""One thread per guest's channel: frames in, the vTPM's answers out. No rule of the protocol stands here
(protocol/channel_server), nor of the vTPM (vtpm/vtpm); this is only the loop between them.

A thread with blocking poll() costs a few microseconds per command; one event loop for all would cost a hop.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable

from manager_vm.errors import ProtocolError, UnreachableError
from manager_vm.protocol.channel_server import Action, Attest, ChannelServer, Close, Execute, Send
from manager_vm.server.attestor import Attestor
from manager_vm.server.complaints import Complaints
from manager_vm.server.execution import Execution, Outcome
from manager_vm.server.questions import Questions
from manager_vm.vchan.endpoint import Endpoint, State
from manager_vm.vtpm.vtpm import Vtpm
from manager_vm.wire import channel, framing
from manager_vm.wire.channel import Reason

log = logging.getLogger(__name__)

_LIVE = 3.5  # seconds without a sign of life after which a front end counts as gone
_TICK = 1.0  # seconds between looks at the clock
_EXPIRE = 0.3  # seconds after which a half-received frame on a lossy carrier is given up
_CHUNK = 65536
_PATIENCE = 1.0  # seconds for a front end to make room for an answer; its ring holds seven of the longest


class GuestChannel:
    """Serves one vTPM on one server end point until ``close``. ``deadline``: seconds per command.

    ``localities``: that the front end may use: a guest's own has 0 alone, a QEMU shim says what the machine does.
    ``wanted``: told the name of a vTPM that does not run, and for which a command came.
    """

    def __init__(
        self,
        vtpm: Vtpm,
        endpoint: Endpoint,
        address: str,
        deadline: float,
        attestor: Attestor,
        localities: frozenset[int] = frozenset({0}),
        wanted: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._wanted = wanted
        self.address = address
        self._localities = localities
        self._vtpm = vtpm
        self._endpoint = endpoint
        self._decoder = framing.Decoder(channel.MAX_BODY, resync=endpoint.lossy)
        self._endpoint_fd = endpoint.fileno()
        self._epoch = endpoint.epoch
        self._heard = 0.0
        self._fed = 0.0  # when bytes came last
        self._lost = 0  # front ends dropped so far
        self._complaints = Complaints(f"vTPM {vtpm.name}: channel {address}")
        self._automaton = vtpm.channel
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._waking = threading.Lock()
        self._closing = self._holding = False
        self._greeting: channel.Hello | None = None  # that waits for ``release``
        self._broken = False
        self._room_by = 0.0  # until then a front end may make room for answers
        self._unread = False  # bytes may have come unnoticed
        self._ticked = time.monotonic()
        self._poller = select.poll()
        self._poller.register(endpoint.fileno(), select.POLLIN)
        self._poller.register(self._wake, select.POLLIN)
        self._execution = Execution(vtpm, self._poller, deadline)
        self._questions = Questions(vtpm.name, attestor, self._execution, self._signal)
        self._thread = threading.Thread(target=self._loop, name=f"channel {vtpm.name}", daemon=True)
        self._thread.start()

    def begin_close(self) -> None:
        """As ``close``, without waiting for the end."""
        self._closing = True
        self._signal()

    def close(self) -> None:
        """Stop serving; a command that executes is finished first, its answer stays in the reply cache. Idempotent."""
        self.begin_close()
        self._thread.join()
        with self._waking:
            if self._wake >= 0:
                os.close(self._wake)
            self._wake = -1

    def hold(self) -> None:
        """Execute nothing and greet nobody until ``release``; whoever asks is told to wait, and writes no command then.

        So nothing that a front end wrote is lost with the manager's VM, which is to stop.
        """
        self._greeting = None
        self._holding = True

    def release(self) -> None:
        """Go on; a front end that has greeted meanwhile is answered."""
        self._holding = False
        self._signal()

    def _signal(self) -> None:
        with self._waking:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def hasten(self, grace: float) -> None:
        """The manager stops: a command that executes has ``grace`` seconds left."""
        self._execution.hasten(grace)
        self._signal()

    def serves(self, vtpm: Vtpm) -> bool:
        """Whether ``vtpm`` is served here; not if the loop ended by itself: the end point is closed for good."""
        return self._vtpm is vtpm and not self._broken

    @property
    def finishing(self) -> bool:
        """Whether it is broken and its last command still executes."""
        return self._broken and self._thread.is_alive()

    def _loop(self) -> None:
        try:
            with self._endpoint:
                while not (self._closing and not self._execution.running):
                    look = self._wait()
                    if self._execution.running:
                        self._fetch()
                    if not look:
                        continue  # only an answer was there: on one processor the front end waits for ours
                    if self._endpoint.update() is State.CLOSED:
                        log.error("vTPM %s: channel %s is closed for good", self._vtpm.name, self.address)
                        self._broken = True
                        break
                    self._read()
        finally:
            self._broken = self._broken or not self._closing
            self._vtpm.live = False
            self._finish_orphan()

    def _wait(self) -> bool:
        """Until something happens; whether the end point is to be looked at."""
        unread, self._unread = self._unread, False
        timeout = 0.0 if unread else _TICK
        if self._decoder.pending and self._endpoint.lossy:
            timeout = min(timeout, _EXPIRE)
        ready = [fd for fd, _ in self._poller.poll(self._execution.left(timeout) * 1000)]
        if self._wake in ready:
            os.eventfd_read(self._wake)
        now = time.monotonic()
        self._room_by = now + _PATIENCE
        if self._wake in ready:
            self._perform(self._questions.answers())
            self._greet()
        if not ready or now - self._ticked >= _TICK:
            self._tick(now)
            return True
        return unread or self._endpoint_fd in ready

    def _tick(self, now: float) -> None:
        self._ticked = now
        self._vtpm.live = now - self._heard < _LIVE
        self._complaints.tell_rest()
        if self._decoder.pending and self._endpoint.lossy and now - self._fed >= _EXPIRE:
            self._take(self._decoder.expire)

    def _read(self) -> None:
        if self._endpoint.epoch != self._epoch:
            self._epoch = self._endpoint.epoch
            self._decoder.reset()
            self._automaton.new_peer()
        self._take(self._fresh)

    def _fresh(self) -> list[framing.Frame]:
        data = self._endpoint.read(_CHUNK)
        if not data:
            return []
        if self._endpoint.lossy:
            self._fed = time.monotonic()
        return self._decoder.feed(data)

    def _take(self, frames: Callable[[], list[framing.Frame]]) -> None:
        """Handle what has come; a front end that breaks the rules loses its session, on every carrier."""
        try:
            self._handle(frames())
        except ProtocolError as error:
            self._complaints.report(error)
            self._decoder.reset()
            self._automaton.new_peer()
            self._send(channel.Error(str(error)), patience=0.0)

    def _handle(self, frames: list[framing.Frame]) -> None:
        if frames:
            self._heard = time.monotonic()
            self._vtpm.live = True
        lost = self._lost
        for frame in frames:
            if self._lost != lost or self._closing:
                return  # its sender was dropped meanwhile, or nobody is served here any more
            message = channel.from_frame(frame)
            if self._holding:
                self._put_off(message)
            else:
                self._perform(self._automaton_now().receive(message))

    def _put_off(self, message: channel.Message) -> None:
        """While held."""
        if isinstance(message, channel.Command):
            self._send(channel.NotAccepted(message.seq, Reason.HOLD))
        elif isinstance(message, channel.Hello):
            self._greeting = message

    def _greet(self) -> None:
        greeting = self._greeting
        if greeting is not None and not self._holding:
            self._greeting = None
            self._perform(self._automaton_now().receive(greeting))

    def _automaton_now(self) -> ChannelServer:
        """The vTPM's automaton; a resume or a start put a new one there, which knows no front end yet."""
        if self._vtpm.channel is not self._automaton and not self._execution.running:
            self._automaton = self._vtpm.channel
        self._automaton.localities = self._localities
        return self._automaton

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(message):
                    self._send(message)
                case Execute(_, locality, command):
                    self._perform(self._execution.begin(self._automaton, command, locality, self._executed))
                case Attest(question):
                    self._perform(self._questions.ask(self._automaton, question))
                case Close(reason):
                    self._complaints.report(reason)

    def _send(self, message: channel.Message, patience: float | None = None) -> None:
        """A front end that does not read is dropped: it must not hold up whoever closes this channel.

        All messages of one turn of the loop share one second (``patience``: seconds for this one alone).
        """
        left = max(self._room_by - time.monotonic(), 0.0) if patience is None else patience
        visit = self._endpoint.epoch
        try:
            if self._endpoint.send(framing.encode(channel.to_frame(message)), left):
                self._unread = True
        except (UnreachableError, ProtocolError) as error:
            self._complaints.report(error)
            self._lost += 1
            self._decoder.reset()
            self._automaton.new_peer()
            if self._endpoint.epoch == visit:
                self._endpoint.drop_peer()

    def _executed(self, outcome: Outcome) -> list[Action]:
        """What follows from the end of a guest's command."""
        if isinstance(outcome, Reason):
            if outcome in (Reason.PARKED, Reason.STARTING):
                self._wanted(self._vtpm.name)
            return self._automaton.refused(outcome)
        return self._automaton.outcome_unknown() if outcome is None else self._automaton.executed(outcome)

    def _fetch(self) -> None:
        """Take the answer of the executing command, if it is complete."""
        self._perform(self._execution.fetch())
        if not self._execution.running:
            self._perform(self._questions.proceed())

    def _finish_orphan(self) -> None:
        """The end point broke while a command executed: see it through, so that the vTPM is free again."""
        self._automaton.new_peer()  # nobody is left to answer
        while self._execution.running:
            poller = select.poll()
            poller.register(self._vtpm.fileno(), select.POLLIN)
            poller.register(self._wake, select.POLLIN)
            if self._wake in {fd for fd, _ in poller.poll(self._execution.left(_TICK) * 1000)}:
                os.eventfd_read(self._wake)
            self._fetch()
        self._questions.drop()
