"""Moves, timed: each path at each round-trip time, round by round."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from guest_frontend.link import Link
from manager_vm.trust import order
from manager_vm.trust.signing import SigningKey
from manager_vm.wire import tpm
from tests.bench.migrate.bare import Bare, Plain, Tls
from tests.bench.migrate.delay import Delay
from tests.integration.harness import Manager, until

_ASK = tpm.get_random(8)


@dataclass(slots=True)
class Row:
    """One path at one round-trip time. All in milliseconds."""

    path: str
    rtt: float
    downtimes: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)


def rows(rounds: int, rtts: list[float], tell: Callable[[str], None]) -> list[Row]:
    """Every path at every round-trip time."""
    found = []
    with _site() as site:
        for rtt in rtts:
            measured = [Row(path, rtt) for path in ("floor", "tls", "move")]
            tell(f"{rounds} rounds with a round-trip time of {rtt:g} ms")
            with ExitStack() as held:
                carriers = [held.enter_context(Bare(kind, rtt)) for kind in (Plain, Tls)]
                mover = held.enter_context(Mover(site, rtt))
                for _ in range(rounds):
                    for row, move in zip(measured, [*(each.move for each in carriers), mover.move], strict=True):
                        downtime, total = move()
                        row.downtimes.append(downtime * 1000)
                        row.totals.append(total * 1000)
            found += measured
    return found


@contextmanager
def _site() -> Iterator[list[Manager]]:
    with tempfile.TemporaryDirectory(prefix="vt") as name:
        Path(name).chmod(0o711)
        managers = []
        for each in ("m", "n"):
            (Path(name) / each).mkdir(mode=0o711)
            managers.append(Manager(Path(name) / each))
        try:
            for manager in managers:
                manager.start()
            managers[0].add("v")
            yield managers
        finally:
            for manager in managers:
                if manager.running:
                    manager.stop()


class Mover:
    """``migrate`` there and back, with a client that never stops asking."""

    def __init__(self, managers: list[Manager], rtt: float) -> None:
        self._managers = managers
        self._key = SigningKey.load(managers[0].authority / "authority.key")
        self._platforms = [each.ctl("platform", "show")["platform"] for each in managers]
        self._delays = [Delay(each.ctl("status")["migration"], rtt) for each in managers]
        self._stop = threading.Event()
        self._longest = 0.0
        self._answers = 0
        self._client = threading.Thread(target=self._ask)

    def __enter__(self) -> Mover:
        self._client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._client.join()
        for each in self._delays:
            each.close()

    def move(self) -> tuple[float, float]:
        """(downtime, total) in seconds."""
        here = 0 if self._managers[0].ctl("list") else 1
        there = 1 - here
        source = self._managers[here]
        shown = source.show("v")
        where = self._platforms[here], self._platforms[there]
        self._longest = 0.0
        before = self._answers
        began = time.monotonic()
        ordered = order.give(shown["uuid"], shown["generation"], *where, self._key)
        with source.admin() as client:
            client.call("migrate", name="v", order=ordered, to=self._delays[there].address)
        total = time.monotonic() - began
        until(lambda: self._answers > before + 3 and self._longest > 0, what="the client goes on")
        time.sleep(0.2)
        return self._longest, total

    def _ask(self) -> None:
        link = Link(",".join(each.channel("v") for each in self._managers), patience=30.0)
        link.open(10.0)
        last = time.monotonic()
        while not self._stop.is_set():
            link.execute(_ASK)
            now = time.monotonic()
            self._longest = max(self._longest, now - last)
            self._answers += 1
            last = now
        link.close()
