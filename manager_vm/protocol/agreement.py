"""From OFFER to keys, as two conversations without I/O (MIGRATION.md, sections 1 and 6; R1, R4, R5).

A conversation is a generator: it yields the message to send, gets the next one that has come, and returns what was
agreed. MigrationError or RemoteProtocolError ends it, and its cause is for the other side's REFUSE. What needs keys, a
hardware TPM or rules is asked of ``Us``, in an order in which nothing dear happens before the order was verified.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from manager_vm.crypto import Key
from manager_vm.errors import MigrationError, RemoteProtocolError
from manager_vm.protocol import session
from manager_vm.protocol.session import Session
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
    """``offer``, ``accept``: as they were sent, the latter without evidence. ``last``: to be sent."""

    session: Session
    offer: Offer
    accept: Accept
    last: Confirm | None = None


Conversation = Generator[Outer, Outer, Agreed]


def offer(us: Us, offered: Offer) -> Conversation:
    """The source's side."""
    accept = _expected(Accept, offered.move, (yield offered))
    if accept.version != VERSION:
        raise MigrationError(f"the other side speaks version {accept.version}", Cause.VERSION.word)
    first = session.first_transcript(offered, accept)
    us.verify(accept.evidence, session.destination_binding(first))
    shared = us.agree(accept.share)
    second = session.second_transcript(first, accept.evidence)
    own = us.evidence(session.source_binding(second))
    third = session.third_transcript(second, own)
    last = Confirm(offered.move, own)
    return Agreed(Session(third, shared, at_source=True), offered, accept, last)


def accept(us: Destination, offered: Offer) -> Conversation:
    """The destination's side, from the first message on."""
    if not offered.lowest <= VERSION <= offered.highest:
        versions = f"{offered.lowest} to {offered.highest}"
        raise MigrationError(f"the other side speaks versions {versions}, and we speak {VERSION}", Cause.VERSION.word)
    bare = us.admit(offered)
    shared = us.agree(offered.share)
    first = session.first_transcript(offered, bare)
    own = us.evidence(session.destination_binding(first))
    confirm = _expected(Confirm, offered.move, (yield replace(bare, evidence=own)))
    second = session.second_transcript(first, own)
    us.verify(confirm.evidence, session.source_binding(second))
    third = session.third_transcript(second, confirm.evidence)
    return Agreed(Session(third, shared, at_source=False), offered, bare)


def _expected(kind: type[Message], move: bytes, message: Outer) -> Message:
    if isinstance(message, Refuse) and message.move == move:
        raise refused(message)
    if not isinstance(message, kind) or getattr(message, "move", None) != move:
        raise RemoteProtocolError(f"the other end sent {type(message).__name__}, where {kind.__name__} was due")
    return message


def refused(message: Refuse) -> MigrationError:
    """What the other side says; its words are for people."""
    text = "".join(letter if letter.isprintable() else "?" for letter in message.text)
    return MigrationError(f"the other side refused ({message.cause.word}): {text}", message.cause.word)
