"""When a VM gets its ticket, and what becomes of a park behind it (server/parking.py, server/pull_out.py)."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from manager_vm.errors import MigrationError, StateError, StoreError, VtpmManagerError
from manager_vm.protocol.lifecycle import State
from manager_vm.server.pull_out import Giver
from manager_vm.store.records import VtpmRecord
from manager_vm.wire import ticket as tickets
from manager_vm.wire.migration import Cause
from manager_vm.wire.ticket import Ticket

VM = str(uuid.UUID(int=1 << 64))
RUNNING = VtpmRecord(str(uuid.UUID(int=2 << 64)), "v", State.RUNNING, 5000, "blob", bytes(32), {}, {}, vm=VM)


class Registry:
    """Of one vTPM, whose park becomes durable, or fails, when ``go_on`` is set."""

    def __init__(self) -> None:
        self.found = RUNNING
        self.refuses: VtpmManagerError | None = None
        self.fails: VtpmManagerError | None = None
        self.go_on = threading.Event()
        self.began = threading.Semaphore(0)

    def record(self, name: str) -> VtpmRecord:
        return self.found

    def stop(self, name: str, *, ticket: str, still: Callable[[], None]) -> VtpmRecord:
        if self.refuses is not None:
            raise self.refuses
        still()
        self.began.release()
        assert self.go_on.wait(10)
        if self.fails is not None:
            raise self.fails
        self.found = replace(self.found, state=State.PARKED, ticket=ticket)
        return self.found


@pytest.fixture
def registry() -> Iterator[Registry]:
    before = set(threading.enumerate())
    found = Registry()
    yield found
    found.go_on.set()
    for each in set(threading.enumerate()) - before:
        each.join()


@pytest.fixture
def giver(registry: Registry) -> Giver:
    local = SimpleNamespace(platform=SimpleNamespace(name="here"))
    return Giver(cast(Any, local), cast(Any, registry), *cast(Any, (None, None, None)))


def ticket(giver: Giver) -> Ticket:
    return tickets.parse(giver.ticket("v", VM, "here:1"))


def test_where_a_destination_stands_by_the_ticket_is_out_before_the_park_is_durable(
    registry: Registry, giver: Giver
) -> None:
    with giver._standing_by(RUNNING.uuid), ThreadPoolExecutor(2) as pool:
        given = ticket(giver)
        assert registry.found.state is State.RUNNING
        shown, again = pool.submit(giver.parkings.settle, given), pool.submit(ticket, giver)
        assert not shown.done() and not again.done()
        registry.go_on.set()
        shown.result()
        assert again.result() == given == ticket(giver)
    assert (registry.found.state, registry.found.ticket) == (State.PARKED, given.park)


@pytest.mark.parametrize("whose", ["nobody's", "another vTPM's"])
def test_where_none_does_the_ticket_waits_for_the_park(registry: Registry, giver: Giver, whose: str) -> None:
    with giver._standing_by("" if whose == "nobody's" else str(uuid.uuid4())), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ticket, giver)
        assert registry.began.acquire(timeout=10)
        assert not asked.done()
        registry.go_on.set()
        assert asked.result().park == registry.found.ticket


def test_a_destination_that_is_gone_stands_by_no_more(registry: Registry, giver: Giver) -> None:
    with giver._standing_by(RUNNING.uuid), giver._standing_by(RUNNING.uuid):
        pass
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ticket, giver)
        assert registry.began.acquire(timeout=10)
        assert not asked.done()
        registry.go_on.set()
        asked.result()


def test_what_cannot_be_parked_at_all_gets_no_ticket(registry: Registry, giver: Giver) -> None:
    registry.refuses = StoreError("the disk is full")
    with giver._standing_by(RUNNING.uuid), pytest.raises(StoreError, match="the disk is full"):
        giver.ticket("v", VM, "here:1")


def test_a_park_that_fails_behind_its_ticket_is_told_to_whoever_shows_it_and_the_next_one_is_another(
    registry: Registry, giver: Giver
) -> None:
    registry.fails = StateError("vTPM 'v' has just died")
    with giver._standing_by(RUNNING.uuid):
        given = ticket(giver)
        registry.go_on.set()
        for _ in range(2):
            with pytest.raises(
                MigrationError, match="could not be parked for this ticket: vTPM 'v' has just died"
            ) as one:
                giver.parkings.settle(given)
            assert one.value.cause == Cause.FAULT.word
        giver.parkings.settle(replace(given, park="00" * 16))  # another one: void, as such tickets are
        registry.fails = None
        new = ticket(giver)
        giver.parkings.settle(new)
        giver.parkings.settle(given)
        assert new.park == registry.found.ticket != given.park


def test_a_manager_that_ends_waits_for_the_parks_that_it_has_promised(registry: Registry, giver: Giver) -> None:
    with giver._standing_by(RUNNING.uuid), ThreadPoolExecutor(1) as pool:
        given = ticket(giver)
        closing = pool.submit(giver.parkings.close)
        assert not closing.done()
        registry.go_on.set()
        closing.result()
        assert registry.found.ticket == given.park
