"""Moves, timed: each path on each road, round by round; and many vTPMs at once."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from guest_frontend.link import Link
from manager_vm.trust import order
from manager_vm.trust.signing import SigningKey
from manager_vm.wire import tpm
from tests.bench.migrate.bare import Bare, Moved, Plain, Tls
from tests.bench.migrate.cable import Cable
from tests.bench.migrate.delay import Delay
from tests.bench.migrate.roads import Limited, Loopback, Road
from tests.bench.migrate.timed import Waits
from tests.integration.harness import Manager, until

_ASK = tpm.get_random(8)
BARE: dict[str, type[Plain] | type[Tls]] = {"floor": Plain, "tls": Tls}
MOVE = "move"


@dataclass(slots=True)
class Row:
    """One path on one road."""

    path: str
    road: str
    moved: list[Moved] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Evacuation:
    """Many vTPMs, ``parallel`` at once. ``total``: seconds. ``busy``: shares of it in which the hardware TPM of source
    and destination had something to do; none for bare swtpms."""

    path: str
    count: int
    parallel: int
    total: float
    busy: tuple[float, ...] = ()


def rows(rounds: int, rtts: list[float], mbits: list[float], tell: Callable[[str], None]) -> list[Row]:
    """Every path on every road."""
    found = []
    with _site(Loopback(0)) as site:
        for rtt in rtts:
            found += _on(Loopback(rtt), site, rounds, tell)
    for mbit in mbits:
        with Cable(mbit) as cable:
            road = Limited(cable, mbit)
            with _site(road) as site:
                found += _on(road, site, rounds, tell)
    return found


def evacuations(count: int, parallel: int, tell: Callable[[str], None]) -> list[Evacuation]:
    """All of ``count`` vTPMs leave, on each path, over loopback."""
    found = []
    for path, kind in BARE.items():
        tell(f"{count} vTPMs leave, {parallel} at once: {path}")
        with ExitStack() as held, ThreadPoolExecutor(parallel) as workers:
            carriers = [held.enter_context(Bare(kind, Loopback(0))) for _ in range(count)]
            began = time.monotonic()
            list(workers.map(Bare.move, carriers))
            found.append(Evacuation(path, count, parallel, time.monotonic() - began))
    tell(f"{count} vTPMs leave, {parallel} at once: {MOVE}")
    with _site(Loopback(0)) as (source, to), _waits([source, to]) as waits:
        source.add(*(f"v{number}" for number in range(1, count)))
        began = time.monotonic()
        outcomes = source.ctl("evacuate", "--to", str(to.directory), "--parallel", str(parallel))
        ended = time.monotonic()
        assert all(each["moved"] for each in outcomes), outcomes
        busy = tuple(waits.within(("tpm",), began, ended, of=each) / (ended - began) for each in (0, 1))
        found.append(Evacuation(MOVE, count, parallel, ended - began, busy))
    return found


def _on(road: Road, site: list[Manager], rounds: int, tell: Callable[[str], None]) -> list[Row]:
    measured = [Row(path, road.name) for path in (*BARE, MOVE)]
    tell(f"{rounds} rounds, {road.name}")
    with ExitStack() as held:
        moves = [held.enter_context(Bare(kind, road)).move for kind in BARE.values()]
        moves.append(held.enter_context(Mover(site, road)).move)
        for _ in range(rounds):
            for row, move in zip(measured, moves, strict=True):
                row.moved.append(move())
    return measured


@contextmanager
def _site(road: Road) -> Iterator[list[Manager]]:
    """Two managers, at the two ends of the road; vTPM "v" is at the first."""
    with tempfile.TemporaryDirectory(prefix="vt") as name:
        Path(name).chmod(0o711)
        managers = []
        for end, each in enumerate(("m", "n")):
            directory = Path(name) / each
            directory.mkdir(mode=0o711)
            prefix, listen = road.settings(end)
            manager = Manager(directory, {"migration": listen}, prefix)
            manager.program = ["-m", "tests.bench.migrate.timed", str(directory), *manager.program[2:]]
            managers.append(manager)
        try:
            for manager in managers:
                manager.start()
            managers[0].add("v")
            yield managers
        finally:
            for manager in managers:
                if manager.running:
                    manager.stop()


@contextmanager
def _waits(managers: list[Manager]) -> Iterator[Waits]:
    waits = Waits([each.directory for each in managers])
    try:
        yield waits
    finally:
        waits.close()


class Mover:
    """``migrate`` there and back, with a client that never stops asking."""

    def __init__(self, managers: list[Manager], road: Road) -> None:
        self._managers = managers
        self._key = SigningKey.load(managers[0].authority / "authority.key")
        self._platforms = [each.ctl("platform", "show")["platform"] for each in managers]
        self._delays = [Delay(each.ctl("status")["migration"], road.rtt) for each in managers]
        self._waits = Waits([each.directory for each in managers])
        self._stop = threading.Event()
        self._pause = (0.0, 0.0)  # the longest between two answers
        self._answers = 0
        self._client = threading.Thread(target=self._ask)

    def __enter__(self) -> Mover:
        self._client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._client.join()
        self._waits.close()
        for each in self._delays:
            each.close()

    def move(self) -> Moved:
        """To the other manager."""
        here = 0 if self._managers[0].ctl("list") else 1
        there = 1 - here
        source = self._managers[here]
        shown = source.show("v")
        where = self._platforms[here], self._platforms[there]
        self._pause = (0.0, 0.0)
        before = self._answers
        began = time.monotonic()
        ordered = order.give(shown["uuid"], shown["generation"], *where, self._key)
        with source.admin() as client:
            client.call("migrate", name="v", order=ordered, to=self._delays[there].address)
        ended = time.monotonic()
        until(lambda: self._answers > before + 3 and self._pause[1] > 0, what="the client goes on")
        time.sleep(0.2)
        apart = [self._waits.within(("disk", "tpm"), *span) for span in ((began, ended), self._pause)]
        return Moved(self._pause[1] - self._pause[0], ended - began, apart[1], apart[0])

    def _ask(self) -> None:
        link = Link(",".join(each.channel("v") for each in self._managers), patience=30.0)
        link.open(10.0)
        last = time.monotonic()
        while not self._stop.is_set():
            link.execute(_ASK)
            now = time.monotonic()
            if now - last > self._pause[1] - self._pause[0]:
                self._pause = (last, now)
            self._answers += 1
            last = now
        link.close()
