"""The manager's half of a guest's question for evidence, sans-I/O (CHANNEL.md section 7).

One question at a time; what was asked last can be fetched until something else is asked or the session is over. The
answer to a question of a session that is over is dropped, but no other question begins before it is there.
"""

from __future__ import annotations

from manager_vm.errors import LocalProtocolError, RemoteProtocolError
from manager_vm.wire import quote
from manager_vm.wire.quote import QuoteBegin, QuoteFetch, QuoteRefused, Refusal, Reply

_BUSY = "the manager still makes the evidence that was asked for before; ask again"
_UNKNOWN = "the manager does not have this evidence (any more); ask anew"


class QuoteServer:
    """The automaton, part of a ``ChannelServer``."""

    def __init__(self) -> None:
        self._asked: QuoteBegin | None = None  # by the session at hand
        self._answer: bytes | QuoteRefused | None = None  # to it
        self._working = False  # the shell has a question, this one or an older one

    def begin(self, question: QuoteBegin) -> QuoteBegin | Reply | None:
        """A question to work on, or a reply, or nothing: it is worked on already."""
        if self._asked is not None and question.token == self._asked.token:
            if question != self._asked:
                raise RemoteProtocolError(f"quote request {question.token} came again with other bytes")
            return None if self._answer is None else self._part(0)
        if self._working:
            return QuoteRefused(question.token, Refusal.BUSY, _BUSY)
        self._asked, self._answer, self._working = question, None, True
        return question

    def fetch(self, request: QuoteFetch) -> Reply:
        """A part of the answer."""
        known = self._asked is not None and self._asked.token == request.token
        if not known or not isinstance(self._answer, bytes) or request.offset >= len(self._answer):
            return QuoteRefused(request.token, Refusal.UNKNOWN, _UNKNOWN)
        return self._part(request.offset)

    def answered(self, question: QuoteBegin, answer: bytes | QuoteRefused) -> Reply | None:
        """The shell has worked on the question; what to tell the front end, if it still waits for that."""
        if not self._working:
            raise LocalProtocolError("no evidence was asked for")
        self._working = False
        if self._asked != question or self._answer is not None:
            return None
        self._answer = answer
        return self._part(0)

    def forget(self) -> None:
        """The session is over."""
        self._asked = self._answer = None

    def _part(self, offset: int) -> Reply:
        assert self._asked is not None and self._answer is not None
        if isinstance(self._answer, QuoteRefused):
            return self._answer
        return quote.part(self._asked.token, self._answer, offset)
