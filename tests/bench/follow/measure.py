"""The same VM moved by QEMU on both ways, in turns."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from image.host import accel
from image.host.machine import VmSpec
from image.host.process import Process
from image.host.qmp import Qmp
from image.host.vm import Vm
from manager_vm.errors import HostError
from tests.integration.harness import Manager, until
from tests.system import test_follow, vms
from tests.system.test_follow import Hosts
from tests.system.test_move import Client

FOLLOWS, HOST = "follows", "host swtpm"
_BOOT = 400.0
_EVENT = 10.0  # seconds
_PARTS = {
    "ticket": re.compile(r"its ticket is here after ([0-9.]+) s"),
    "redeem": re.compile(r"here from .* after ([0-9.]+) s"),
    "taken": re.compile(r"its VM has it after ([0-9.]+) s"),
}


@dataclass(frozen=True, slots=True)
class Move:
    """Milliseconds. ``parts``: of ours."""

    way: str
    downtime: float
    stood: float
    total: float
    longest: float
    parts: dict[str, float] = field(default_factory=dict)


class Direct(Hosts):
    """Whose VMs' streams go from QEMU to QEMU."""

    @contextmanager
    def way(self, target: Path) -> Iterator[Path]:
        yield target


class Plain(Direct):
    """Hosts without us: each QEMU has a swtpm, which begins empty."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        super().__init__(directory, cast(Any, None), {})
        self._stack = stack

    def machine(self, at: Manager, *, arrives: bool) -> Vm:
        """The next one, wherever that is."""
        self._count += 1
        directory = self.directory / f"vm{self._count}"
        state = directory / "tpm"
        state.mkdir(parents=True)
        path = directory / "tpm.ctrl"
        argv = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={path}"]
        self._stack.callback(Process("swtpm", argv, directory / "swtpm.log").close)
        until(path.exists, what="swtpm listens")
        spec = VmSpec("guest", vms.IMAGES / "guest", directory, hwtpm=path)
        return Vm(spec, accel.choose(self.directory / "accelerator", vms.IMAGES / "guest"), arrives=arrives)


class Way:
    """One VM with its client; it stands still while the other way is measured."""

    def __init__(self, name: str, hosts: Hosts, places: list[Manager]) -> None:
        self.name = name
        self._hosts = hosts
        self._places = places
        self.client = Client(hosts.vm.agent, patient=True)
        self.client.go_on()
        hosts.vm.qmp.execute("stop")

    def move(self) -> Move:
        """To the next place, while the client works."""
        hosts, to = self._hosts, self._places[0]
        hosts.vm.go()
        before = self.client.go_on()
        said = [len(each) for each in self._logs()]
        began = time.time()
        there, _ = hosts.arrived(to)
        there.go()
        stopped, now = _last(hosts.vm.qmp, "STOP"), _last(there.qmp, "RESUME")
        downtime = float(hosts.vm.qmp.execute("query-migrate")["downtime"])
        hosts.vm.close()
        hosts.vm = there
        self.client.follow(there.agent)
        self.client.go_on()
        longest = self._longest(before)
        there.qmp.execute("stop")
        new = "\n".join(each[length:] for each, length in zip(self._logs(), said, strict=True))
        parts = {name: 1000 * float(found[-1]) for name, words in _PARTS.items() if (found := words.findall(new))}
        self._places.reverse()
        return Move(self.name, downtime, 1000 * (now - stopped), 1000 * (now - began), longest, parts)

    def _longest(self, before: int) -> float:
        lines = self._hosts.vm.agent.check("cat /tmp/log").splitlines()[before - 1 :]
        times = [float(line.split()[1]) for line in lines]
        return 1000 * max(later - sooner for sooner, later in pairwise(times))

    def _logs(self) -> list[str]:
        """Of managers and shims."""
        return [log() for place, shim in self._hosts.shims.items() for log in (place.log, shim.log)]


def _last(qmp: Qmp, name: str) -> float:
    """When QEMU said this event last, by its own clock, which is that of this machine (seconds since 1970)."""
    found = None
    while (event := qmp.next_event(0 if found else _EVENT)) is not None:
        if event["event"] == name:
            found = event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6
    if found is None:
        raise HostError(f"QEMU has not said {name}")
    return float(found)


def moves(rounds: int, tell: Callable[[str], None]) -> list[Move]:
    """``rounds`` of each way, in turns, and one before that is not counted."""
    found = []
    with _ways(tell) as ways:
        for number in range(rounds + 1):
            for way in ways if number % 2 else reversed(ways):
                move = way.move()
                tell(f"{way.name}: downtime {move.downtime:.0f} ms, stop to go {move.stood:.0f} ms")
                found += [move] if number else []
        for way in ways:
            if not (end := _end(way)).startswith("ok "):
                raise HostError(f"{way.name}: the client in the guest saw an error: {end}")
    return found


def _end(way: Way) -> str:
    way._hosts.vm.go()
    return way.client.end()


@contextmanager
def _ways(tell: Callable[[str], None]) -> Iterator[list[Way]]:
    with ExitStack() as stack:
        tell(f"{FOLLOWS}: booting its VM")
        hosts = stack.enter_context(test_follow.two_hosts(Direct))
        ours = Way(FOLLOWS, hosts, [hosts.site.b, hosts.site.a])
        tell(f"{HOST}: booting its VM")
        plain = Plain(stack.enter_context(vms.short_directory()), stack)
        plain.vm = plain.machine(hosts.site.a, arrives=False)
        stack.callback(lambda: plain.vm.close())
        plain.vm.go()
        plain.vm.agent.wait(_BOOT)
        yield [ours, Way(HOST, plain, [hosts.site.a, hosts.site.b])]
