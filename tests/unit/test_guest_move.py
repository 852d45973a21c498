"""image.host.guest_move, guest, boots: what does not move, and what a guest keeps on its host."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from image.host import guest as guests
from image.host.boots import BootCounter
from image.host.guest_move import GuestMove, go_on
from image.host.host import Host
from image.host.machine import argv
from image.host.wires import Carrier, IvshmemWire
from manager_vm.errors import HostError

OURS = "6f2c0a51-5a0e-4f0c-8f5b-0d7f0c6f2f11"


@dataclass
class Machine:
    """A guest's VM: it runs or not, and notes what its monitor is asked to change."""

    running: bool = True
    changes: list[str] = field(default_factory=list)

    @property
    def qmp(self) -> Machine:
        return self

    def execute(self, command: str, **arguments: Any) -> dict[str, Any]:
        if not command.startswith("query-"):
            self.changes.append(command)
        return {"running": self.running}


@dataclass
class Manager:
    """A host's links to a manager that has these vTPMs, and notes what else it is asked."""

    vtpms: list[dict[str, Any]]
    asked: list[str] = field(default_factory=list)

    def host(self, verb: str, **args: Any) -> Any:
        if verb == "list":
            return self.vtpms
        self.asked.append(verb)
        raise HostError("nothing else was to be asked")


def host_of(
    *, carrier: Carrier = Carrier.VIRTIO_SERIAL, held: bool = False, running: bool = True, vtpms: Any = ()
) -> Any:
    vm = Machine(running)
    guest = SimpleNamespace(name="v", wire=SimpleNamespace(carrier=carrier), held=held, vm=vm)
    return SimpleNamespace(guests={"v": guest}, links=Manager(list(vtpms)))


@pytest.mark.parametrize(
    ("host", "name", "why"),
    [
        (host_of(), "w", "no guest 'w'"),
        (host_of(carrier=Carrier.IVSHMEM), "v", "over ivshmem: QEMU cannot move that device.*virtio-serial"),
        (host_of(held=True), "v", "held at its reset"),
        (host_of(running=False), "v", "does not run"),
        (host_of(vtpms=[{"name": "w", "uuid": "u", "generation": 1}]), "v", "is not at this manager"),
    ],
)
def test_a_guest_that_cannot_move_is_told_why_and_nothing_was_touched(host: Any, name: str, why: str) -> None:
    with pytest.raises(HostError, match=why):
        GuestMove(cast(Host, host), name, "10.0.0.2:7411", ("10.0.0.2", 7000), b"order").run()
    assert host.links.asked == [] and host.guests["v"].vm.changes == []


def test_a_guest_that_is_held_at_its_reset_goes_on_by_that_alone() -> None:
    host = host_of(held=True)
    with pytest.raises(HostError, match="held at its reset"):
        go_on(cast(Host, host), host.guests["v"])
    assert host.links.asked == [] and host.guests["v"].vm.changes == []


def test_a_wire_that_qemu_cannot_move_says_which_can() -> None:
    with pytest.raises(HostError, match="use virtio-serial"):
        IvshmemWire.plug_arriving(SimpleNamespace(carrier=Carrier.IVSHMEM), SimpleNamespace())  # type: ignore[arg-type]


def test_a_guest_keeps_its_uuid_and_takes_the_one_it_comes_with(tmp_path: Path) -> None:
    first = guests.spec("v", tmp_path, tmp_path)
    assert guests.spec("v", tmp_path, tmp_path).uuid == first.uuid != guests.spec("w", tmp_path, tmp_path).uuid
    assert guests.spec("v", tmp_path, tmp_path, OURS).uuid == guests.spec("v", tmp_path, tmp_path).uuid == OURS
    image = tmp_path / "guest"
    image.mkdir()
    (image / "cmdline").write_text("quiet")
    words = argv(guests.spec("v", tmp_path, tmp_path), "tcg")
    assert words[words.index("-uuid") + 1] == OURS


def test_a_boot_that_began_elsewhere_is_counted_on_from(tmp_path: Path) -> None:
    boots = BootCounter(tmp_path / "boot")
    boots.advance()
    boots.adopt(7)
    assert BootCounter(tmp_path / "boot").number == 7 and boots.advance() == 8
