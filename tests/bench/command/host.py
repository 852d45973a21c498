"""(a) and (b): a bare swtpm, and a manager in ``dev`` mode over the ring; on one processor, and not pinned."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.command import probe, workload
from tests.bench.command.paths import (
    BARE,
    BARE_FREE,
    BARE_KEY,
    DEV,
    DEV_FREE,
    DEV_PING,
    HOST_SPEED,
    RELAY,
)
from tests.bench.command.relay import Relay
from tests.bench.command.workload import GET_RANDOM, LOOP, NV_WRITE, PCR_EXTEND, PING, QUOTE, SYSTEM
from tests.bench.stats import Samples
from tests.integration.harness import Manager

_NAME = "bench"
_APART = ("setsid", "setpriv", "--pdeathsig", "KILL", "--")  # Ctrl-C is for us; if we are killed the manager is too
_COUNTS = {GET_RANDOM: 120, PCR_EXTEND: 120, QUOTE: 30, NV_WRITE: 6}
_OTHER_COUNTS = {
    BARE_KEY: {NV_WRITE: 6},
    RELAY: {GET_RANDOM: 120, PCR_EXTEND: 120, QUOTE: 30},
    DEV_PING: {PING: 120},
    HOST_SPEED: {LOOP: 20, SYSTEM: 20},
}


@dataclass(frozen=True, slots=True)
class Lane:
    """A path whose processes may use ``cpus``. ``pids``: everybody who works for a command."""

    path: str
    target: probe.Target
    cpus: frozenset[int]
    pids: dict[str, int]


@contextmanager
def lanes(directory: Path) -> Iterator[list[Lane]]:
    """All paths, ready; their processes end with the block."""
    directory.chmod(0o711)  # each swtpm of a manager has a uid of its own
    everywhere = frozenset(os.sched_getaffinity(0))
    one = frozenset({max(everywhere)})
    with ExitStack() as stack:
        pinned = _pair(stack, directory / "1", one, (BARE, DEV))
        free = _pair(stack, directory / "2", everywhere, (BARE_FREE, DEV_FREE))
        yield [*pinned, *free, *_explaining(stack, directory, one)]


@contextmanager
def running_on(cpus: frozenset[int]) -> Iterator[None]:
    """This process, and what it starts meanwhile, on these processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(lanes: list[Lane], rounds: int, samples: Samples) -> None:
    """``rounds`` rounds; every other one the other way round."""
    for number in range(rounds):
        for lane in lanes if number % 2 == 0 else reversed(lanes):
            with running_on(lane.cpus):
                counts = _OTHER_COUNTS.get(lane.path, _COUNTS)
                samples.add(lane.path, probe.measure(lane.target, workload.work(counts)))


def _pair(stack: ExitStack, directory: Path, cpus: frozenset[int], paths: tuple[str, str]) -> list[Lane]:
    """A bare swtpm and a manager with one vTPM; children inherit the processors."""
    (directory / "bare").mkdir(parents=True)
    with running_on(cpus):
        bare = probe.Swtpm(str(directory / "bare"))
        stack.callback(bare.close)
        manager = stack.enter_context(_manager(directory))
    link = probe.connect(f"channel:{manager.channel(_NAME)}")
    stack.callback(link.close)
    pids = {"manager": manager.pid, "swtpm": manager.swtpm_pid(_NAME)}
    pair = [Lane(paths[0], bare, cpus, {"swtpm": bare.pid}), Lane(paths[1], link, cpus, pids)]
    for lane in pair:
        probe.demand(lane.target, workload.setup())
    return pair


def _explaining(stack: ExitStack, directory: Path, cpus: frozenset[int]) -> list[Lane]:
    """Parts of the way: an encrypted state file; a process in between; PING to a manager's thread, no TPM behind it."""
    with running_on(cpus):
        keyed = probe.Swtpm(str(directory / "keyed"), encrypted=True)
        stack.callback(keyed.close)
        relay = Relay(directory / "relay")
        stack.callback(relay.close)
        manager = stack.enter_context(_manager(directory / "3"))
    ping = probe.connect(f"ping:{manager.channel(_NAME)}")
    stack.callback(ping.close)
    for target in (keyed, relay):
        probe.demand(target, workload.setup())
    return [
        Lane(BARE_KEY, keyed, cpus, {"swtpm": keyed.pid}),
        Lane(RELAY, relay, cpus, relay.pids),
        Lane(DEV_PING, ping, cpus, {"manager": manager.pid}),
        Lane(HOST_SPEED, probe.connect("speed:"), cpus, {}),
    ]


@contextmanager
def _manager(directory: Path) -> Iterator[Manager]:
    """A manager with one vTPM. Stopped in order, or killed if we are interrupted: it may not have begun to serve."""
    directory.mkdir(exist_ok=True)
    manager = Manager(directory, prefix=_APART)
    try:
        manager.start().add(_NAME)
        yield manager
    except BaseException:
        if manager.running:
            manager.kill()
        raise
    manager.stop()
