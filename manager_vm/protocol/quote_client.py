"""The front end's half of a question for evidence, sans-I/O (CHANNEL.md section 7). Times are monotonic seconds.

Whatever was lost on the way is asked for again; the manager does not work twice for one token.
"""

from __future__ import annotations

from dataclasses import dataclass

from manager_vm.errors import LocalProtocolError
from manager_vm.wire.quote import QuoteBegin, QuoteFetch, QuotePart, QuoteRefused, Refusal, Reply, Request

AGAIN = 2.0  # seconds without a reply until the request is sent again
GIVE_UP = 60.0  # seconds from the question on

Outcome = bytes | QuoteRefused


@dataclass(slots=True)
class _Asking:
    question: QuoteBegin
    since: float
    said: float
    evidence: bytes = b""
    total: int = 0

    def request(self) -> Request:
        """What to send next, or again."""
        return QuoteFetch(self.question.token, len(self.evidence)) if self.evidence else self.question


class QuoteClient:
    """The automaton, part of a ``ChannelClient``. Each method returns a message to send, or the outcome, or None."""

    def __init__(self) -> None:
        self._asking: _Asking | None = None

    @property
    def idle(self) -> bool:
        """Whether no question is open."""
        return self._asking is None

    def ask(self, question: QuoteBegin, now: float) -> Request:
        """Begin."""
        if self._asking is not None:
            raise LocalProtocolError("a question is open already")
        self._asking = _Asking(question, now, now)
        return question

    def again(self, now: float) -> Request | None:
        """The session was opened (again): the request, if one is open."""
        if self._asking is None:
            return None
        self._asking.said = now
        return self._asking.request()

    def receive(self, reply: Reply, now: float) -> Request | Outcome | None:
        """A reply of the manager; one that was not asked for now is dropped."""
        asking = self._asking
        if asking is None or reply.token != asking.question.token:
            return None
        if isinstance(reply, QuoteRefused):
            return self._refused(asking, reply, now)
        return self._part(asking, reply, now)

    def tick(self, now: float, *, ready: bool) -> Request | Outcome | None:
        """Time has passed; ``ready``: whether something can be sent."""
        asking = self._asking
        if asking is None:
            return None
        if now - asking.since >= GIVE_UP:
            return self.fail("the manager has not answered in time")
        return self.again(now) if ready and now - asking.said >= AGAIN else None

    def fail(self, text: str) -> Outcome | None:
        """There will be no answer."""
        asking, self._asking = self._asking, None
        return None if asking is None else QuoteRefused(asking.question.token, Refusal.HARDWARE, text)

    def _refused(self, asking: _Asking, reply: QuoteRefused, now: float) -> Request | Outcome | None:
        if reply.reason is Refusal.UNKNOWN:  # a manager that was restarted, for instance
            if not asking.evidence:
                return None
            asking.evidence, asking.said = b"", now
            return asking.question
        self._asking = None
        return reply

    def _part(self, asking: _Asking, reply: QuotePart, now: float) -> Request | Outcome | None:
        if reply.offset != len(asking.evidence) or (asking.evidence and reply.total != asking.total):
            return None
        asking.evidence += reply.data
        asking.total, asking.said = reply.total, now
        if len(asking.evidence) < reply.total:
            return asking.request()
        self._asking = None
        return asking.evidence
