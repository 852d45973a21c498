"""Who has the vTPM: the hand-over of a move as two tables (MIGRATION.md, section 8). Pure.

Every step is carried out in this order: persist the new state (what is erased goes with that commit), then send.
After a crash the durable state alone counts.
A state of None: this side knows nothing of the move. What has no row is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto

from manager_vm.wire.migration import Kind


class SourceState(StrEnum):
    """Durable state of a move at the source."""

    OFFERED = "offered"  # nothing was given up
    TOMBSTONE = "tombstone"  # given up for the destination: the point of no return
    DONE = "done"  # the destination has it for good; it is erased here
    ABORTED = "aborted"
    RESTORED = "restored"  # taken back: the destination has signed that it never will run it
    DECLARED = "declared dead"  # taken back on an admin's word alone


class DestinationState(StrEnum):
    """Durable state of a move at the destination."""

    PREPARED = "prepared"  # whole and durable, not runnable
    ACTIVE = "active"  # COMMIT is durable: it runs
    COMMITTED = "committed"  # and an anchored commit contains it
    RELEASED = "released"  # it never runs here


class Event(Enum):
    """What happens. The first five are the hand-over messages of the other side."""

    PREPARED = auto()
    COMMIT = auto()
    COMMITTED = auto()
    RELEASED = auto()
    ABORTED = auto()
    GIVE_UP = auto()  # a failure, a time-out, an operator's abort, a restart
    DECLARE_DEAD = auto()
    LOADED = auto()  # the state is whole and swtpm has taken it
    ANCHORED = auto()  # the anchored commit after ACTIVE is due
    RESEND = auto()


class Persist(Enum):
    """How a new state becomes durable."""

    NOT = auto()  # it is the same
    FILE = auto()  # one fsync
    COMMIT = auto()  # an anchored commit


@dataclass(frozen=True, slots=True)
class Step:
    """What an event leads to. ``send``: then, signed."""

    state: SourceState | DestinationState
    persist: Persist
    send: Kind | None = None


State = SourceState | DestinationState
Table = Mapping[tuple[State | None, Event], Step]

_S, _D = SourceState, DestinationState

SOURCE: Table = {
    (_S.OFFERED, Event.PREPARED): Step(_S.TOMBSTONE, Persist.COMMIT, send=Kind.COMMIT),
    (_S.OFFERED, Event.GIVE_UP): Step(_S.ABORTED, Persist.COMMIT, send=Kind.ABORTED),
    (_S.OFFERED, Event.RELEASED): Step(_S.ABORTED, Persist.COMMIT),
    (_S.TOMBSTONE, Event.PREPARED): Step(_S.TOMBSTONE, Persist.NOT, send=Kind.COMMIT),
    (_S.TOMBSTONE, Event.RESEND): Step(_S.TOMBSTONE, Persist.NOT, send=Kind.COMMIT),
    (_S.TOMBSTONE, Event.COMMITTED): Step(_S.DONE, Persist.COMMIT),
    (_S.TOMBSTONE, Event.RELEASED): Step(_S.RESTORED, Persist.COMMIT),
    (_S.TOMBSTONE, Event.DECLARE_DEAD): Step(_S.DECLARED, Persist.COMMIT),
    (_S.ABORTED, Event.PREPARED): Step(_S.ABORTED, Persist.NOT, send=Kind.ABORTED),
    (_S.DECLARED, Event.PREPARED): Step(_S.DECLARED, Persist.NOT, send=Kind.ABORTED),
}

DESTINATION: Table = {
    (None, Event.LOADED): Step(_D.PREPARED, Persist.COMMIT, send=Kind.PREPARED),
    (_D.PREPARED, Event.COMMIT): Step(_D.ACTIVE, Persist.FILE),
    (_D.PREPARED, Event.ABORTED): Step(_D.RELEASED, Persist.COMMIT, send=Kind.RELEASED),
    (_D.PREPARED, Event.GIVE_UP): Step(_D.RELEASED, Persist.COMMIT, send=Kind.RELEASED),
    (_D.PREPARED, Event.RESEND): Step(_D.PREPARED, Persist.NOT, send=Kind.PREPARED),
    (_D.ACTIVE, Event.ANCHORED): Step(_D.COMMITTED, Persist.COMMIT, send=Kind.COMMITTED),
    (_D.COMMITTED, Event.COMMIT): Step(_D.COMMITTED, Persist.NOT, send=Kind.COMMITTED),
    (_D.RELEASED, Event.COMMIT): Step(_D.RELEASED, Persist.NOT, send=Kind.RELEASED),
}

_OVER: frozenset[State] = frozenset({_S.DONE, _S.ABORTED, _S.RESTORED, _S.DECLARED, _D.COMMITTED, _D.RELEASED})


def step(table: Table, state: State | None, event: Event) -> Step | None:
    """What ``event`` leads to; None: it is dropped."""
    return table.get((state, event))


def is_over(state: State) -> bool:
    """Whether this side needs nothing more of the other."""
    return state in _OVER
