"""Connected pairs without process or socket: two automata and what is under way between them; two sides of a ring."""

from __future__ import annotations

import mmap
import struct
from collections import deque
from collections.abc import Iterable

from manager_vm.protocol import channel_server as manager
from manager_vm.protocol import client_events as front
from manager_vm.protocol.channel_client import ChannelClient
from manager_vm.protocol.channel_server import ChannelServer
from manager_vm.vchan.ring import MEMORY_SIZE, RingClient, RingServer
from manager_vm.wire import channel, framing, tpm
from manager_vm.wire.channel import Message, Reason
from manager_vm.wire.quote import QuoteBegin, QuoteRefused

SESSION = b"first front end!"
OTHER_SESSION = b"second front end"


def wired(message: Message) -> Message:
    """What arrives when ``message`` is sent: through real frames."""
    (frame,) = framing.Decoder(channel.MAX_BODY).feed(framing.encode(channel.to_frame(message)))
    return channel.from_frame(frame)


def command(number: int) -> bytes:
    """A well-formed TPM command that differs for each number."""
    return tpm.get_random(number)


def response(command_: bytes) -> bytes:
    """What the fake vTPM answers."""
    return tpm.HEADER.pack(tpm.TPM_ST_NO_SESSIONS, tpm.HEADER_SIZE + len(command_), 0) + command_


FAILURE = tpm.error_response(tpm.RC.TPM_RC_FAILURE)
RETRY = tpm.error_response(tpm.RC.TPM_RC_RETRY)


class Pair:
    """Two automata, what is under way between them, and what came out at either end.

    ``slow``: the vTPM does not answer by itself; call ``finish``. ``reason``: the vTPM refuses every command with it.
    ``evidence``: what the manager answers to questions; None: call ``finish_questions``.
    """

    def __init__(self, server: ChannelServer | None = None, session: bytes = SESSION) -> None:
        self.client = ChannelClient(session)
        self.server = server or ChannelServer()
        self.to_manager: deque[Message] = deque()
        self.to_guest: deque[Message] = deque()
        self.executed: list[tuple[int, bytes]] = []
        self.answers: list[bytes] = []
        self.lost: list[str] = []
        self.closed: list[str] = []
        self.running: bytes | None = None
        self.slow = False
        self.reason: Reason | None = None
        self.evidence: bytes | QuoteRefused | None = None
        self.questions: list[QuoteBegin] = []
        self.outcomes: list[bytes | QuoteRefused] = []
        self.now = 100.0

    def connect(self) -> Pair:
        """A new connection: what was under way is gone."""
        self.to_manager.clear()
        self.to_guest.clear()
        self.server.new_peer()
        self.client.disconnected()
        self.at_guest(self.client.connected(self.now))
        return self

    def replace_server(self, server: ChannelServer) -> None:
        """The manager was restarted with what ``server`` knows."""
        self.server, self.running = server, None

    def replace_client(self, session: bytes) -> None:
        """The front end was restarted."""
        self.client = ChannelClient(session)
        self.connect()

    def submit(self, command_: bytes, locality: int = 0) -> None:
        """The local client has a command."""
        self.at_guest(self.client.submit(command_, locality, self.now))

    def ask(self, question: QuoteBegin) -> None:
        """The local client has a question."""
        self.at_guest(self.client.ask(question, self.now))

    def finish_questions(self, answer: bytes | QuoteRefused) -> None:
        """The manager has the answers to its open questions."""
        done, self.questions = self.questions, []
        for question in done:
            self.at_manager(self.server.attested(question, answer))

    def pass_time(self, seconds: float) -> None:
        """Only the front end has a clock."""
        self.now += seconds
        self.at_guest(self.client.tick(self.now))

    def run(self) -> Pair:
        """Deliver until nothing is under way."""
        while self.to_manager or self.to_guest:
            if self.to_manager:
                self.deliver_to_manager(self.to_manager.popleft())
            if self.to_guest:
                self.deliver_to_guest(self.to_guest.popleft())
        return self

    def deliver_to_manager(self, message: Message) -> None:
        """One message arrives at the manager."""
        self.at_manager(self.server.receive(wired(message)))

    def deliver_to_guest(self, message: Message) -> None:
        """One message arrives at the front end."""
        self.at_guest(self.client.receive(wired(message), self.now))

    def finish(self) -> None:
        """The slow vTPM has its answer."""
        assert self.running is not None
        done, self.running = self.running, None
        self.at_manager(self.server.executed(response(done)))

    def die(self) -> None:
        """The vTPM dies while a command executes."""
        self.running = None
        self.at_manager(self.server.outcome_unknown())

    def at_manager(self, actions: Iterable[manager.Action]) -> None:
        """The manager's shell."""
        for action in actions:
            match action:
                case manager.Send(message):
                    self.to_guest.append(message)
                case manager.Close(reason):
                    self.closed.append(reason)
                case manager.Execute(seq, _, command_):
                    self._execute(seq, command_)
                case manager.Attest(question):
                    self.questions.append(question)
                    if self.evidence is not None:
                        self.finish_questions(self.evidence)

    def _execute(self, seq: int, command_: bytes) -> None:
        if self.reason is not None:
            self.at_manager(self.server.refused(self.reason))
            return
        self.executed.append((seq, command_))
        self.running = command_
        if not self.slow:
            self.finish()

    def at_guest(self, events: Iterable[front.Event]) -> None:
        """The front end's shell, without coming back by itself."""
        for event in events:
            match event:
                case front.Send(message):
                    self.to_manager.append(message)
                case front.Answer(answer):
                    self.answers.append(answer)
                case front.Lost(reason):
                    self.lost.append(reason)
                case front.Evidence(outcome):
                    self.outcomes.append(outcome)


# byte offsets of CHANNEL.md section 5
OFFSET = {
    "magic": 0,
    "layout": 4,
    "epoch": 8,
    "server live": 12,
    "client nonce": 64,
    "server ack": 128,
    "c2s producer": 192,
    "c2s consumer": 256,
    "s2c producer": 320,
    "s2c consumer": 384,
}


class RingPair:
    """Shared memory and both sides, connected. ``kicks`` counts notifications of (server, client)."""

    def __init__(self, memory: bytearray | mmap.mmap | None = None) -> None:
        self.memory = memory if memory is not None else bytearray(MEMORY_SIZE)
        self.kicks = [0, 0]
        self.server = self.new_server()
        self.client = self.new_client()
        self.server.update()
        self.client.update()

    def new_server(self) -> RingServer:
        """A server on this memory."""
        return RingServer(memoryview(self.memory), lambda: self._kick(0))

    def new_client(self) -> RingClient:
        """A client on this memory."""
        return RingClient(memoryview(self.memory), lambda: self._kick(1))

    def _kick(self, who: int) -> None:
        self.kicks[who] += 1

    def get(self, word: str) -> int:
        """A word of the header."""
        return int(struct.unpack_from("<I", self.memory, OFFSET[word])[0])

    def put(self, word: str, value: int) -> None:
        """What only a broken or hostile peer does."""
        struct.pack_into("<I", self.memory, OFFSET[word], value & 0xFFFFFFFF)
