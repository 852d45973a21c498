"""A whole manager moves to another platform with its disk (RELOCATION.md): real swtpms as both hardware TPMs.

The receiver stops before the manager that came is started: a hardware TPM has one user at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from manager_vm.errors import StateError
from tests.integration.conftest import Make
from tests.integration.harness import Manager
from tests.integration.relocating import Platforms, host


@pytest.fixture
def platforms(make: Make) -> Iterator[Platforms]:
    """Manager a has vTPM "v", which runs; b has none."""
    one = make(fresh=True)
    other = one.directory.parent / "n"
    other.mkdir(mode=0o711)
    two = Manager(other)
    one.start()
    two.start()
    one.add("v")
    found = Platforms(one, two)
    try:
        yield found
    finally:
        found.close()


def test_a_manager_moves_with_its_disk_and_its_vtpms_go_on(platforms: Platforms) -> None:
    a, b = platforms.a, platforms.b
    value = a.guest("v").extend(16)
    agreed = platforms.agree()
    assert host(b, "relocate_tunnel", move=agreed["move"])["tunnel"] == agreed["tunnel"]
    assert a.guest("v").pcr(16) == value  # it serves on
    host(a, "relocate_freeze", park=True)
    with pytest.raises(StateError, match="has left"):
        host(a, "attach", name="v")
    assert host(a, "relocate_hand_over")["state"] == "settled"
    a.stop()
    b.stop()
    here = platforms.at(b, platforms.copy(a, "moved"), "here").start()
    assert here.ctl("status")["relocation"] == {"relocations": 1, "state": "", "move": "", "peer": ""}
    assert here.ctl("platform", "show")["platform"] == platforms.names[b]
    here.ctl("attach", "v")
    assert here.guest("v").pcr(16) == value
    here.guest("v").extend(16)
    here.stop()
    here.start()
    here.stop()
    code, text = a.refuse_to_start()
    assert (code, "missing" in text) == (6, True)
