"""Local clients that ask a running front end for evidence, on the stream on which others send TPM commands.

A question looks like a TPM command whose tag no TPM knows, so both take turns on one connection:

    0x5651, u32 size, u32 0;           then the body of a QUOTE_REQUEST (CHANNEL.md section 7)
    0x5651, u32 size, u32 reason or 0; then the text of a refusal, or the evidence

Header integers are big-endian, as a TPM's. Questions of several clients take turns.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from contextlib import suppress

from guest_frontend.client import Client
from guest_frontend.link import Link
from manager_vm.errors import RemoteProtocolError
from manager_vm.wire import quote
from manager_vm.wire.quote import QuoteBegin, QuoteRefused, Refusal

HEADER = struct.Struct(">HII")
TAG = 0x5651
_MOST = 16  # clients that wait


def is_question(command: bytes) -> bool:
    """Whether a client's command is a question for its front end."""
    return command[:2] == TAG.to_bytes(2, "big")


def pack(question: QuoteBegin) -> bytes:
    """What a client sends."""
    body = quote.to_body(question)[1]
    return HEADER.pack(TAG, HEADER.size + len(body), 0) + body


def answer(outcome: bytes | QuoteRefused) -> bytes:
    """What a client gets."""
    reason, body = (outcome.reason, outcome.text.encode()) if isinstance(outcome, QuoteRefused) else (0, outcome)
    return HEADER.pack(TAG, HEADER.size + len(body), reason) + body


def new_token() -> int:
    """Another one for each question."""
    return int.from_bytes(os.urandom(8), "big") >> 1


class Questions:
    """One at a time goes over the link; not thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._asking: Client | None = None
        self._waiting: deque[tuple[Client, QuoteBegin]] = deque()

    def ask(self, client: Client, command: bytes) -> None:
        """A client's question; it is answered at once if it is none, or too many wait."""
        try:
            question = quote.request(new_token(), 0, command[HEADER.size :])
        except RemoteProtocolError as error:
            client.answer(answer(QuoteRefused(0, Refusal.NOT_ITS_QUOTE, str(error))))
            return
        assert isinstance(question, QuoteBegin)
        if len(self._waiting) >= _MOST:
            client.answer(answer(QuoteRefused(0, Refusal.LATER, "too many questions at this front end")))
            return
        client.held = True
        self._waiting.append((client, question))
        self.step()

    def step(self) -> None:
        """After each step of the link: hand an outcome over, ask the next question."""
        for outcome in self._link.outcomes():
            client, self._asking = self._asking, None
            if client is not None:
                client.held = False
                with suppress(OSError):
                    client.answer(answer(outcome))
        if self._asking is None and not self._link.asking and self._waiting:
            self._asking, question = self._waiting.popleft()
            self._link.ask(question)
