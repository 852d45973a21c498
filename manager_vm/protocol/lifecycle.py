"""What may happen to a vTPM, as a table (ARCHITECTURE.md, "Reset semantics"). Pure: no process, no disk.

The states are those of the durable record: after a crash the record alone says who may run a vTPM.
"""

from __future__ import annotations

from enum import StrEnum

from manager_vm.errors import QuarantinedError, StateError


class State(StrEnum):
    """Durable state of a vTPM."""

    OFF = "off"  # no power: permanent state only; waits for a power-on
    PARKED = "parked"  # stopped with its volatile state; resumes where it was
    RUNNING = "running"  # a process holds the newest state
    FAILED = "failed"  # died under a running guest: TPM_RC_FAILURE until the next reported reset
    QUARANTINED = "quarantined"  # damaged: kept untouched
    GONE = "gone"  # handed over to another manager, which has not confirmed it yet
    ARRIVING = "arriving"  # whole and durable here, but its source has not given it up yet


class Event(StrEnum):
    """What can happen. POWER_ON is a reset or power-on reported by the host side, or ``start --power-on``."""

    POWER_ON = "power on"
    RESUME = "start"
    PARK = "stop"
    DIED = "died"
    DAMAGED = "damaged"
    DESTROY = "destroy"
    RELEASE_OFF = "release, off"  # an admin leads it out of quarantine, to what it was before
    RELEASE_PARKED = "release, parked"
    RELEASE = "release"  # whatever else it was: to failed, so that a running guest goes on only after a reset
    LEAVE = "migrate"
    ERASE = "erase"  # the destination has it
    RETURN_OFF = "take back, off"  # the destination has signed that it never will
    RETURN_PARKED = "take back, parked"
    ARRIVED_OFF = "take over, off"
    ARRIVED_PARKED = "take over, parked"
    ARRIVED = "take over"
    ARRIVED_DEAD = "take over, dead"  # its first process here died with the manager
    TURNED_AWAY = "turn away"
    REVERT = "revert"  # back to a snapshot, which an admin has permitted


TRANSITIONS: dict[tuple[State, Event], State | None] = {
    (State.OFF, Event.POWER_ON): State.RUNNING,
    (State.OFF, Event.DAMAGED): State.QUARANTINED,
    (State.OFF, Event.DESTROY): None,
    (State.PARKED, Event.POWER_ON): State.RUNNING,
    (State.PARKED, Event.RESUME): State.RUNNING,
    (State.PARKED, Event.DAMAGED): State.QUARANTINED,
    (State.PARKED, Event.DESTROY): None,
    (State.RUNNING, Event.POWER_ON): State.RUNNING,
    (State.RUNNING, Event.PARK): State.PARKED,
    (State.RUNNING, Event.DIED): State.FAILED,
    (State.RUNNING, Event.DAMAGED): State.QUARANTINED,
    (State.RUNNING, Event.DESTROY): None,
    (State.FAILED, Event.POWER_ON): State.RUNNING,
    (State.FAILED, Event.DAMAGED): State.QUARANTINED,
    (State.FAILED, Event.DESTROY): None,
    (State.OFF, Event.REVERT): State.PARKED,
    (State.PARKED, Event.REVERT): State.PARKED,
    (State.RUNNING, Event.REVERT): State.PARKED,
    (State.FAILED, Event.REVERT): State.PARKED,
    (State.OFF, Event.LEAVE): State.GONE,
    (State.PARKED, Event.LEAVE): State.GONE,
    (State.RUNNING, Event.LEAVE): State.GONE,
    (State.GONE, Event.ERASE): None,
    (State.GONE, Event.RETURN_OFF): State.OFF,
    (State.GONE, Event.RETURN_PARKED): State.PARKED,
    (State.ARRIVING, Event.ARRIVED_OFF): State.OFF,
    (State.ARRIVING, Event.ARRIVED_PARKED): State.PARKED,
    (State.ARRIVING, Event.ARRIVED): State.RUNNING,
    (State.ARRIVING, Event.ARRIVED_DEAD): State.FAILED,
    (State.ARRIVING, Event.TURNED_AWAY): None,
    (State.QUARANTINED, Event.RELEASE_OFF): State.OFF,
    (State.QUARANTINED, Event.RELEASE_PARKED): State.PARKED,
    (State.QUARANTINED, Event.RELEASE): State.FAILED,
}

# what it was before its quarantine -> how it leaves it (a record of an earlier version does not say: "")
RELEASES: dict[str, Event] = {State.OFF: Event.RELEASE_OFF, State.PARKED: Event.RELEASE_PARKED}

_REMEDY: dict[tuple[State, Event], str] = {
    (State.OFF, Event.RESUME): "it has no power: start its VM, or use 'start --power-on'",
    (State.OFF, Event.PARK): "it is off already",
    (State.PARKED, Event.PARK): "it is stopped already; 'start' resumes it",
    (State.RUNNING, Event.RESUME): "it is running already",
    (
        State.FAILED,
        Event.RESUME,
    ): "its process died under a running guest; reset the guest, or detach it and use 'start --power-on'",
    (State.FAILED, Event.PARK): "its process died; there is nothing to stop until the guest is reset",
    (State.FAILED, Event.LEAVE): "its process died under a running guest; reset the guest first",
}


_WAITING = {
    State.GONE: "it was handed over to another manager, which has not confirmed it yet; see 'migrations'",
    State.ARRIVING: "it comes from another manager, which has not given it up yet; see 'migrations'",
}


def after(name: str, state: State, event: Event) -> State | None:
    """The next state (None: the vTPM is gone); StateError or QuarantinedError with the remedy if not allowed."""
    if state is State.QUARANTINED and (state, event) not in TRANSITIONS:
        raise QuarantinedError(
            f"vTPM {name!r} is quarantined; see 'show {name}' for the reason; an admin's 'release' leads out of it"
        )
    if (state, event) not in TRANSITIONS:
        remedy = _REMEDY.get((state, event)) or _WAITING.get(state, f"it is {state}")
        raise StateError(f"cannot {event} vTPM {name!r}: {remedy}")
    return TRANSITIONS[state, event]
