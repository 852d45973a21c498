"""Walks over all that can happen, for tests of protocols."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import TypeVar

from manager_vm.protocol.handover import SOURCE, DestinationState, Event, SourceState, State, Step, Table

World = TypeVar("World", bound=Hashable)


def explore(start: World, successors: Callable[[World], Iterable[World]]) -> Iterator[World]:
    """Every reachable world once, the nearest first."""
    seen, todo = {start}, deque([start])
    while todo:
        yield todo[0]
        for world in successors(todo.popleft()):
            if world not in seen:
                seen.add(world)
                todo.append(world)


def walk(start: World, successors: Callable[[World], Iterable[World]]) -> dict[World, list[World]]:
    """Every reachable world -> what it can become."""
    graph: dict[World, list[World]] = {}

    def kept(world: World) -> list[World]:
        return graph.setdefault(world, list(successors(world)))

    for _ in explore(start, kept):
        pass
    return graph


def leading_to(good: Iterable[World], graph: Mapping[World, list[World]]) -> set[World]:
    """From which worlds one of the ``good`` ones can be reached."""
    before: dict[World, list[World]] = {world: [] for world in graph}
    for world, following in graph.items():
        for each in following:
            before[each].append(world)
    found = set(good)
    todo = list(found)
    while todo:
        for world in before[todo.pop()]:
            if world not in found:
                found.add(world)
                todo.append(world)
    return found


def changed(table: Table, **changes: Step | None) -> Table:
    """A hand-over's ``table`` with the rows STATE__EVENT replaced, or dropped."""
    rows = dict(table)
    for name, new in changes.items():
        state, _, event = name.partition("__")
        states: type[SourceState] | type[DestinationState] = SourceState if table is SOURCE else DestinationState
        key: tuple[State | None, Event] = (None if state == "NOTHING" else states[state], Event[event])
        rows.pop(key, None)
        if new is not None:
            rows[key] = new
    return rows
