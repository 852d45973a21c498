"""protocol/lifecycle: every pair of a state and an event is either a transition or refused, and says why."""

from __future__ import annotations

from itertools import product

import pytest

from manager_vm.errors import QuarantinedError, StateError
from manager_vm.protocol.lifecycle import RELEASES, TRANSITIONS, Event, State, after

PAIRS = list(product(State, Event))
LEAVING = {
    Event.RELEASE_OFF: State.OFF,
    Event.RELEASE_PARKED: State.PARKED,
    Event.RELEASE: State.FAILED,
}
MOVING = (State.GONE, State.ARRIVING)
ALIVE = [state for state in State if state is not State.QUARANTINED and state not in MOVING]
MOVES = {
    State.GONE: {Event.ERASE: None, Event.RETURN_OFF: State.OFF, Event.RETURN_PARKED: State.PARKED},
    State.ARRIVING: {
        Event.ARRIVED_OFF: State.OFF,
        Event.ARRIVED_PARKED: State.PARKED,
        Event.ARRIVED: State.RUNNING,
        Event.ARRIVED_DEAD: State.FAILED,
        Event.TURNED_AWAY: None,
    },
}


def reachable(start: State) -> set[State]:
    """Every state that some events lead to from ``start``."""
    found, todo = {start}, [start]
    while todo:
        state = todo.pop()
        new = {to for (at, _), to in TRANSITIONS.items() if at is state and to is not None} - found
        found |= new
        todo += new
    return found


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_every_event_in_every_state_is_a_transition_or_refused(state: State, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert after("web", state, event) is TRANSITIONS[state, event]
        return
    with pytest.raises(QuarantinedError if state is State.QUARANTINED else StateError, match="'web'"):
        after("web", state, event)


@pytest.mark.parametrize("event", [event for event in Event if event not in LEAVING])
def test_a_quarantined_vtpm_is_not_started_not_deleted_and_not_made_anew(event: Event) -> None:
    with pytest.raises(QuarantinedError, match="show web"):
        after("web", State.QUARANTINED, event)


def test_only_a_release_leads_out_of_quarantine_and_never_to_a_running_vtpm() -> None:
    assert {event: to for (state, event), to in TRANSITIONS.items() if state is State.QUARANTINED} == LEAVING
    assert {state for state, event in TRANSITIONS if event in LEAVING} == {State.QUARANTINED}


@pytest.mark.parametrize("before", [*ALIVE, ""])
def test_a_released_vtpm_is_what_it_was_but_a_dead_or_unknown_one_waits_for_a_reset(before: str) -> None:
    state = after("web", State.QUARANTINED, RELEASES.get(before, Event.RELEASE))
    assert state == (before if before in (State.OFF, State.PARKED) else State.FAILED)


@pytest.mark.parametrize("state", ALIVE)
def test_damage_leads_to_quarantine_from_every_state(state: State) -> None:
    assert after("web", state, Event.DAMAGED) is State.QUARANTINED


@pytest.mark.parametrize("state", ALIVE)
def test_a_power_on_starts_a_vtpm_in_every_state_but_quarantine(state: State) -> None:
    assert after("web", state, Event.POWER_ON) is State.RUNNING


@pytest.mark.parametrize("state", ALIVE)
def test_a_vtpm_can_be_destroyed_in_every_state_but_quarantine(state: State) -> None:
    assert after("web", state, Event.DESTROY) is None


def test_only_a_parked_vtpm_resumes_without_a_power_on() -> None:
    assert [state for state, event in TRANSITIONS if event is Event.RESUME] == [State.PARKED]


def test_only_a_running_vtpm_can_be_parked_or_die() -> None:
    for event in (Event.PARK, Event.DIED):
        assert [state for state, each in TRANSITIONS if each is event] == [State.RUNNING]


def test_an_unclean_death_is_left_only_by_a_power_on_a_snapshot_damage_or_destruction() -> None:
    leaving = {event: to for (state, event), to in TRANSITIONS.items() if state is State.FAILED}
    others = {Event.DAMAGED: State.QUARANTINED, Event.DESTROY: None}
    assert leaving == {Event.POWER_ON: State.RUNNING, Event.REVERT: State.PARKED, **others}


def test_every_state_can_be_reached_from_a_new_vtpm() -> None:
    assert reachable(State.OFF) | reachable(State.ARRIVING) == set(State)
    assert State.ARRIVING not in reachable(State.OFF)  # it comes from another manager


@pytest.mark.parametrize("state", MOVING)
def test_only_the_hand_over_leads_on_from_a_vtpm_between_two_managers(state: State) -> None:
    assert {event: to for (at, event), to in TRANSITIONS.items() if at is state} == MOVES[state]
    assert all(event not in MOVES[state] for at, event in TRANSITIONS if at is not state)
    with pytest.raises(StateError, match="see 'migrations'"):
        after("web", state, Event.POWER_ON)


def test_only_a_vtpm_whose_state_is_whole_leaves() -> None:
    assert {at for at, event in TRANSITIONS if event is Event.LEAVE} == {State.OFF, State.PARKED, State.RUNNING}


@pytest.mark.parametrize(
    ("state", "event", "remedy"),
    [
        (State.OFF, Event.RESUME, "start --power-on"),
        (State.OFF, Event.PARK, "off already"),
        (State.PARKED, Event.PARK, "'start' resumes it"),
        (State.RUNNING, Event.RESUME, "running already"),
        (State.FAILED, Event.RESUME, "reset the guest"),
        (State.FAILED, Event.PARK, "until the guest is reset"),
        (State.FAILED, Event.LEAVE, "reset the guest first"),
    ],
)
def test_a_refused_verb_names_what_to_do_instead(state: State, event: Event, remedy: str) -> None:
    with pytest.raises(StateError, match=remedy) as caught:
        after("web", state, event)
    assert f"cannot {event} vTPM 'web'" in str(caught.value)


def test_the_states_words_are_those_of_the_stored_records() -> None:
    assert {state.value for state in State} == {
        "off",
        "parked",
        "running",
        "failed",
        "quarantined",
        "gone",
        "arriving",
    }
