"""SIGKILL at every point of a commit, for every verb that commits: exactly one manifest is true afterwards, always."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from manager_vm.store.manifest import Step
from tests.integration import crashing
from tests.integration.harness import Manager, Refused

# verb -> what it does, whether the manifest says afterwards that it happened
VERBS: dict[str, tuple[tuple[str, ...], Callable[[Manager], bool]]] = {
    "create": (("create", "b"), lambda manager: len(manager.ctl("list")) == 2),
    "stop": (("stop", "a"), lambda manager: manager.show("a")["state"] == "parked"),
    "boot": (("boot", "a", "7"), lambda manager: manager.show("a")["boot"] == 7),
    "detach": (("detach", "a"), lambda manager: manager.show("a")["channel"] == ""),
}
COMMITTED = {Step.ANCHORED, Step.RENAMED, crashing.AFTER}


def crash(manager: Manager, point: str, *verb: str) -> None:
    """A manager that dies at ``point`` of the first commit of ``verb``."""
    armed, program = manager.directory / "armed", manager.program
    manager.program = crashing.program(manager.directory, point, armed)
    manager.start()
    armed.touch()
    with pytest.raises(Refused):
        manager.ctl(*verb)
    manager.killed()
    manager.program = program


@pytest.mark.parametrize("point", crashing.POINTS)
@pytest.mark.parametrize(
    "verb", ["create", "boot", *(pytest.param(each, marks=pytest.mark.full) for each in ("stop", "detach"))]
)
def test_a_crash_at_any_point_of_a_commit_leaves_one_true_manifest(manager: Manager, verb: str, point: str) -> None:
    command, happened = VERBS[verb]
    manager.add("a")
    manager.guest("a").define("0x1500001")
    manager.guest("a").write("0x1500001", bytes(range(32)))
    manager.stop()
    crash(manager, point, *command)
    manager.start()
    assert happened(manager) is (point in COMMITTED)
    assert sorted(path.name for path in manager.state.glob("manifest*")) == ["manifest"]
    manager.ctl("create", "c")
    if manager.show("a")["channel"]:
        manager.ctl("boot", "a", "9")
        assert manager.guest("a").read("0x1500001") == bytes(range(32))
