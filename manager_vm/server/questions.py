"""A guest's questions for evidence on one channel: the limit, the AK's public area, the answer when it is there.

The manager reads the public area itself, as a command of its own between two of the guest's.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from contextlib import suppress

from manager_vm.errors import NoEvidenceError, RemoteProtocolError, VtpmManagerError
from manager_vm.keys import evidence
from manager_vm.protocol.channel_server import Action, ChannelServer
from manager_vm.protocol.limit import Limit
from manager_vm.server.attestor import BURST, INTERVAL, Answer, Attestor, refusal
from manager_vm.server.execution import Execution, Outcome
from manager_vm.wire import tpm
from manager_vm.wire.channel import Reason
from manager_vm.wire.quote import QuoteBegin, QuoteRefused, Refusal

_LOCALITY = 0


class Questions:
    """Belongs to one channel's thread. ``wake`` may be called on any: the channel then looks at ``answers``."""

    def __init__(self, name: str, attestor: Attestor, execution: Execution, wake: Callable[[], None]) -> None:
        self._name = name
        self._attestor = attestor
        self._execution = execution
        self._wake = wake
        self._limit = Limit(BURST, INTERVAL)
        self._open: list[tuple[ChannelServer, QuoteBegin]] = []  # without an answer
        self._next: tuple[ChannelServer, QuoteBegin] | None = None  # of these: waits for the guest's command to end
        self._made: queue.SimpleQueue[tuple[ChannelServer, QuoteBegin, Answer]] = queue.SimpleQueue()

    def ask(self, automaton: ChannelServer, question: QuoteBegin) -> list[Action]:
        """What follows at once from a question; the automaton lets one through at a time."""
        if not self._limit.allows(time.monotonic()):
            text = f"too many questions for evidence; again in {INTERVAL:.0f} s"
            return automaton.attested(question, QuoteRefused(question.token, Refusal.LATER, text))
        try:
            evidence.check_question(question)
        except VtpmManagerError as error:
            return automaton.attested(question, refusal(question, error))
        if self._open:  # of an automaton that was there before
            text = "the evidence that was asked for before is still made; ask again"
            return automaton.attested(question, QuoteRefused(question.token, Refusal.BUSY, text))
        self._next = automaton, question
        self._open.append(self._next)
        return self.proceed()

    def proceed(self) -> list[Action]:
        """Read the public area of the key that the question names, if the vTPM is free now."""
        if self._next is None or self._execution.running:
            return []
        (automaton, question), self._next = self._next, None
        command = tpm.read_public(question.handle)

        def then(outcome: Outcome) -> list[Action]:
            return self._read(automaton, question, outcome)

        return self._execution.begin(automaton, command, _LOCALITY, then)

    def answers(self) -> list[Action]:
        """What follows from evidence that was made meanwhile."""
        found: list[Action] = []
        with suppress(queue.Empty):
            while True:
                automaton, question, answer = self._made.get_nowait()
                found += self._answered(automaton, question, answer)
        return found

    def drop(self) -> None:
        """The channel ends: nobody is left to answer, but the automaton may ask again on another one."""
        for automaton, question in list(self._open):
            self._answered(automaton, question, QuoteRefused(question.token, Refusal.NOT_SERVING, "ask again"))
        self._next = None

    def _answered(self, automaton: ChannelServer, question: QuoteBegin, answer: Answer) -> list[Action]:
        self._open.remove((automaton, question))
        return automaton.attested(question, answer)

    def _read(self, automaton: ChannelServer, question: QuoteBegin, outcome: Outcome) -> list[Action]:
        def done(answer: Answer) -> None:
            self._made.put((automaton, question, answer))
            self._wake()

        try:
            self._attestor.vouch(self._name, question, _public(outcome, question), done)
        except VtpmManagerError as error:
            return self._answered(automaton, question, refusal(question, error))
        return []


def _public(outcome: Outcome, question: QuoteBegin) -> bytes:
    """TPMT_PUBLIC from the answer to TPM2_ReadPublic (Part 3, 12.4)."""
    if outcome is None or isinstance(outcome, Reason):
        raise NoEvidenceError("the vTPM does not serve now; ask again", Refusal.NOT_SERVING)
    try:
        rc, body = tpm.parse_response(outcome)
    except RemoteProtocolError:
        rc, body = int(tpm.RC.TPM_RC_FAILURE), b""
    size = int.from_bytes(body[:2], "big")
    if rc == tpm.RC.TPM_RC_FAILURE:
        raise NoEvidenceError("the vTPM has failed; its guest has to be reset", Refusal.NOT_SERVING)
    if rc != tpm.RC.TPM_RC_SUCCESS or len(body) < 2 + size:
        raise NoEvidenceError(f"the vTPM has no key at {question.handle:#010x} (TPM_RC {rc:#x})", Refusal.NO_KEY)
    return body[2 : 2 + size]
