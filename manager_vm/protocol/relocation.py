"""Who is the manager: the move of a whole manager to another platform, as tables (RELOCATION.md). Pure.

The source's state is durable in the manifest, under the anchor in the source's hardware TPM. At the destination one NV
index decides, the *place*: its TPM lets it be written for the first time once, by a claim or by a release.

Every step is carried out in this order: make the new state durable, then say the word. After a crash the durable state
alone counts. What has no row is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto


class Leaving(StrEnum):
    """Durable state at the source, and of each copy of its disk or memory. None: it does not move."""

    AGREED = "agreed"  # the receiver has a place; the source serves on
    LEFT = "left"  # its owner is the destination: the point of no return; it serves nothing and commits nothing


class Receiving(StrEnum):
    """Durable state of the receiver. None: an ordinary manager without vTPMs."""

    PREPARED = "prepared"  # it keeps a place, serves nothing and commits nothing else


class Word(StrEnum):
    """What a hardware TPM certifies of its anchor or place, with the move in its qualifying data."""

    COMMIT = "commit"  # source: what stands in the anchor is a manifest whose owner is the destination
    CLAIMED = "claimed"  # destination
    RELEASED = "released"  # destination


class Event(Enum):
    """What happens to the source or to the receiver."""

    AGREE = auto()  # both sides have agreed, and the receiver has a place
    FREEZE = auto()  # the host says that everything slow is over
    CERTIFY = auto()  # COMMIT is asked for, the first time or again
    GIVE_UP = auto()  # before the point of no return
    CLAIMED = auto()  # the destination's words
    RELEASED = auto()
    ADOPT = auto()  # source to receiver: be ready for me
    COMMIT = auto()  # source to receiver: claim for my disk
    RELEASE = auto()  # source, or an operator there, to receiver: nobody comes


class Effect(Enum):
    """What an event does besides changing the state."""

    NOTHING = auto()
    CERTIFY = auto()  # make COMMIT
    SERVE = auto()  # go on as if nothing had been
    GIVE_UP_TPM = auto()  # the anchor at the source is removed: no copy of the disk is anything any more
    MAKE_PLACE = auto()  # a new one, that nobody has written, with a new secret; one that was released is gone
    CLAIM = auto()  # first write of the place: what COMMIT certifies
    RELEASE = auto()  # first write of the place: RELEASED


@dataclass(frozen=True, slots=True)
class Step:
    """``state``: what is durable afterwards, None: nothing of a move."""

    state: Leaving | Receiving | None
    effect: Effect = Effect.NOTHING


_L, _R = Leaving, Receiving

# from AGREED no new agreement leads on: a source knows of one place at a time
SOURCE: Mapping[tuple[Leaving | None, Event], Step] = {
    (None, Event.AGREE): Step(_L.AGREED),
    (_L.AGREED, Event.GIVE_UP): Step(None),
    (_L.AGREED, Event.RELEASED): Step(None),
    (_L.AGREED, Event.FREEZE): Step(_L.LEFT, Effect.CERTIFY),
    (_L.LEFT, Event.CERTIFY): Step(_L.LEFT, Effect.CERTIFY),
    (_L.LEFT, Event.RELEASED): Step(None, Effect.SERVE),
    (_L.LEFT, Event.CLAIMED): Step(_L.LEFT, Effect.GIVE_UP_TPM),
}

# a receiver that is asked to ADOPT while it keeps a place releases that one first, and keeps the word for ever: an
# ADOPT that was held back may come when its source has left for a later place, or when that was claimed
RECEIVER: Mapping[tuple[Receiving | None, Event], Step] = {
    (None, Event.ADOPT): Step(_R.PREPARED, Effect.MAKE_PLACE),
    (_R.PREPARED, Event.COMMIT): Step(_R.PREPARED, Effect.CLAIM),
    (_R.PREPARED, Event.RELEASE): Step(None, Effect.RELEASE),
}


class Start(Enum):
    """What a manager is that opens its anchored manifest, or that wakes up in memory."""

    SERVES = auto()
    ARRIVED = auto()  # it has left, and this is where it went
    LEFT = auto()  # it has left, and this is where it came from: it waits for a word of the destination
    ELSEWHERE = auto()  # this manifest is not for this platform


# (whether the owner in the manifest is this platform, the state in it)
START: Mapping[tuple[bool, Leaving | None], Start] = {
    (True, None): Start.SERVES,
    (True, Leaving.AGREED): Start.SERVES,
    (True, Leaving.LEFT): Start.ARRIVED,
    (False, Leaving.LEFT): Start.LEFT,
}


def source(state: Leaving | None, event: Event) -> Step | None:
    """What ``event`` leads to at the source; None: it is refused."""
    return SOURCE.get((state, event))


def receiver(state: Receiving | None, event: Event) -> Step | None:
    """What ``event`` leads to at the receiver; None: it is refused."""
    return RECEIVER.get((state, event))


def start(*, here: bool, state: Leaving | None) -> Start:
    """What a manager is whose manifest is anchored, or whose memory woke up. ``here``: its owner is this platform."""
    return START.get((here, state), Start.ELSEWHERE)


def commits(state: Leaving | Receiving | None) -> bool:
    """Whether other changes than those of the move may be committed in this state."""
    return state in (None, Leaving.AGREED)
