"""What a front end's automaton asks of its owner."""

from __future__ import annotations

from dataclasses import dataclass

from manager_vm.protocol.quote_client import Outcome
from manager_vm.wire.channel import Message


@dataclass(frozen=True, slots=True)
class Send:
    """Send this message to the manager."""

    message: Message


@dataclass(frozen=True, slots=True)
class Answer:
    """Give this response to the local client."""

    response: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection is of no use any more: close it, connect again after a while."""

    reason: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """The outcome of ``ask``: the evidence, or why there is none."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Moved:
    """Another manager has the vTPM: whoever knows another channel goes there. The command stays."""


Event = Send | Answer | Lost | Evidence | Moved
