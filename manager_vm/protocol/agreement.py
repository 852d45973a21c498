"""From OFFER to keys, as two conversations without I/O (MIGRATION.md, sections 1 and 6; R1, R4, R5).

A conversation is a generator: it yields the message to send, gets the next one that has come, and returns what was
agreed. MigrationError or RemoteProtocolError ends it, and its cause is for the other side's REFUSE. What needs keys, a
hardware TPM or rules is asked of ``Us``, in an order in which nothing dear happens before the order was verified.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from manager_vm.crypto import Key
from manager_vm.errors import MigrationError, RefusedError, RemoteProtocolError
from manager_vm.protocol.session import Session
from manager_vm.trust import transcript
from manager_vm.wire.migration import VERSION, Accept, Cause, Confirm, Offer, Outer, Refuse

Message = TypeVar("Message", bound=Outer)


class Us(Protocol):
    """What one side brings along. Every method raises MigrationError with its cause."""

    def evidence(self, binding: bytes) -> bytes:
        """That of our platform over ``binding``: dear."""

    def verify(self, evidence: bytes, binding: bytes) -> None:
        """That this is the platform which the order names, on the other side."""

    def agree(self, share: bytes) -> Key:
        """ECDH of our share's private half with this point."""


class Destination(Us, Protocol):
    """What the destination decides."""

    def admit(self, offer: Offer) -> Accept:
        """Order, policy, versions, room: cheap. An ACCEPT without evidence."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """``offer``, ``accept``, ``confirm``: as they were sent, but for ``confirm``, which the source has yet to send."""

    session: Session
    offer: Offer
    accept: Accept
    confirm: Confirm


Conversation = Generator[Outer, Outer, Agreed]


def offer(us: Us, offered: Offer) -> Conversation:
    """The source's side."""
    accept = _expected(Accept, offered.move, (yield offered))
    if accept.version != VERSION:
        raise MigrationError(f"the other side speaks version {accept.version}", Cause.VERSION.word)
    first = transcript.first(offered, accept)
    us.verify(accept.evidence, transcript.destination_binding(first))
    shared = us.agree(accept.share)
    second = transcript.second(first, accept.evidence)
    own = us.evidence(transcript.source_binding(second))
    third = transcript.third(second, own)
    return Agreed(Session(third, shared, at_source=True), offered, accept, Confirm(offered.move, own))


def accept(us: Destination, offered: Offer) -> Conversation:
    """The destination's side, from the first message on."""
    if not offered.lowest <= VERSION <= offered.highest:
        versions = f"{offered.lowest} to {offered.highest}"
        raise MigrationError(f"the other side speaks versions {versions}, and we speak {VERSION}", Cause.VERSION.word)
    bare = us.admit(offered)
    shared = us.agree(offered.share)
    first = transcript.first(offered, bare)
    own = us.evidence(transcript.destination_binding(first))
    full = replace(bare, evidence=own)
    confirm = _expected(Confirm, offered.move, (yield full))
    second = transcript.second(first, own)
    us.verify(confirm.evidence, transcript.source_binding(second))
    third = transcript.third(second, confirm.evidence)
    return Agreed(Session(third, shared, at_source=False), offered, full, confirm)


def noting(conversation: Conversation, known: Callable[[], None]) -> Conversation:
    """The destination's conversation; ``known`` is called once the order was verified."""
    message = next(conversation)
    known()
    while True:
        try:
            message = conversation.send((yield message))
        except StopIteration as end:
            agreed: Agreed = end.value
            return agreed


def _expected(kind: type[Message], move: bytes, message: Outer) -> Message:
    if isinstance(message, Refuse) and message.move == move:
        raise refused(message)
    if not isinstance(message, kind) or getattr(message, "move", None) != move:
        raise RemoteProtocolError(f"the other end sent {type(message).__name__}, where {kind.__name__} was due")
    return message


def refused(message: Refuse) -> RefusedError:
    """What the other side says; its words are for people."""
    text = "".join(letter if letter.isprintable() else "?" for letter in message.text)
    return RefusedError(f"the other side refused ({message.cause.word}): {text}", message.cause.word)
