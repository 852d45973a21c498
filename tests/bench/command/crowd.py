"""Many guests behind one QEMU shim and one carrier: latency and fairness, beside as many bare swtpms.

Simulated QEMUs, all in this process, which waits for all of them at once and looks at no answer but its response code.
Both sides are driven by the same code; what that costs by itself is part of both.
"""

from __future__ import annotations

import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from manager_vm.wire import tpm
from tests.bench import stats
from tests.integration.fake_qemu import FakeQemu
from tests.integration.harness import ROOT, Manager, environment, until

SHIM, SWTPM = "shim", "bare swtpm"
_COMMAND = tpm.get_random(16)
_PERIOD = 1.0  # seconds between two commands of a polite guest
_AT_ONCE = 16  # VMs that are started at the same time
_START = 300.0


@dataclass(frozen=True, slots=True)
class Load:
    """What one load has shown: microseconds, all guests together. ``served``: commands of each guest in ``seconds``.

    ``medians``: p10 and p90 of the guests' own medians.
    """

    name: str
    seconds: float
    median: float
    p95: float
    p99: float
    worst: float
    medians: tuple[float, float]
    served: tuple[int, ...]

    @property
    def jain(self) -> float:
        """Jain's index of fairness: 1 where all were served alike, 1/n where one had everything."""
        return sum(self.served) ** 2 / (len(self.served) * sum(each * each for each in self.served))

    @property
    def rate(self) -> float:
        """Commands per second, all together."""
        return sum(self.served) / self.seconds


@dataclass(frozen=True, slots=True)
class Crowd:
    """So many guests of one kind. ``boot``: seconds until all their TPMs were on; ``boots``: median, worst of one."""

    kind: str
    guests: int
    boot: float
    boots: tuple[float, float]
    loads: tuple[Load, ...]

    def load(self, name: str) -> Load:
        """KeyError if it was not measured."""
        for each in self.loads:
            if each.name == name:
                return each
        raise KeyError(name)


POLITE, ALL, GREEDY = "one a second each", "all as fast as they can", "one as fast as it can, beside polite ones"


def measure(directory: Path, counts: list[int], seconds: float, tell: Callable[[str], None]) -> tuple[Crowd, ...]:
    """Each count with both kinds, one after the other."""
    found = []
    for number, count in enumerate(counts):
        for kind, made in ((SWTPM, _bare), (SHIM, _shimmed)):
            tell(f"{count} guests: {kind}")
            own = directory / f"{number}{kind[0]}"
            own.mkdir(mode=0o711)
            with made(own, count) as paths:
                found.append(_crowd(kind, paths, seconds))
    return tuple(found)


def _crowd(kind: str, paths: list[Path], seconds: float) -> Crowd:
    began = time.monotonic()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        booted = list(pool.map(_boot, paths))
    boot = time.monotonic() - began
    qemus, each = [qemu for qemu, _ in booted], sorted(took for _, took in booted)
    try:
        loads = [_load(POLITE, qemus, seconds, greedy=0), _load(ALL, qemus, seconds, greedy=len(qemus))]
        if len(qemus) > 1:
            loads.append(_load(GREEDY, qemus, seconds, greedy=1))
    finally:
        for qemu in qemus:
            qemu.close()
    return Crowd(kind, len(qemus), boot, (stats.quantile(each, 0.5), each[-1]), tuple(loads))


def _boot(path: Path) -> tuple[FakeQemu, float]:
    began = time.monotonic()
    return FakeQemu(path).boot(), time.monotonic() - began


def _load(name: str, qemus: list[FakeQemu], seconds: float, *, greedy: int) -> Load:
    """The first ``greedy`` guests always have a command under way, the others send one a period."""
    samples, took = _drive(qemus, seconds, greedy)
    polite = samples[greedy:] if 0 < greedy < len(qemus) else samples  # what the others pay
    ordered = sorted(each for guest in polite for each in guest)
    medians = sorted(stats.quantile(sorted(guest), 0.5) for guest in polite if guest)
    p95, p99 = (stats.quantile(ordered, q) for q in (0.95, 0.99))
    spread = (stats.quantile(medians, 0.1), stats.quantile(medians, 0.9))
    served = tuple(len(guest) for guest in samples)
    return Load(name, took, stats.quantile(ordered, 0.5), p95, p99, ordered[-1], spread, served)


def _drive(qemus: list[FakeQemu], seconds: float, greedy: int) -> tuple[list[list[float]], float]:
    """Latencies (us) of each guest, and how long that took; an answer that is no success is an error."""
    began = time.perf_counter()
    end, poller = began + seconds, select.epoll()
    sent: dict[int, float] = {}
    due = [(began + (n + 1) * _PERIOD / len(qemus), n) for n in range(greedy, len(qemus))]
    samples: list[list[float]] = [[] for _ in qemus]
    numbers = {qemu.data.fileno(): n for n, qemu in enumerate(qemus)}
    for fd in numbers:
        poller.register(fd, select.EPOLLIN)
    for n in range(greedy):
        _send(qemus, n, sent)
    due.sort()
    while (now := time.perf_counter()) < end or sent:
        while due and due[0][0] <= now < end:
            when, n = due.pop(0)
            if n not in sent:
                _send(qemus, n, sent)
            due.append((when + _PERIOD, n))
        wait = min(due[0][0] - now, 0.1) if due and now < end else 0.1
        for fd, _ in poller.poll(max(wait, 0.0)):
            n = numbers[fd]
            answer = qemus[n].data.recv(4096)
            samples[n].append((time.perf_counter() - sent.pop(n)) * 1e6)
            if tpm.response_code(answer) != tpm.RC.TPM_RC_SUCCESS:
                raise AssertionError(f"guest {n} got {answer.hex()}")
            if n < greedy and now < end:
                _send(qemus, n, sent)
    poller.close()
    return samples, time.perf_counter() - began


def _send(qemus: list[FakeQemu], n: int, sent: dict[int, float]) -> None:
    sent[n] = time.perf_counter()
    qemus[n].data.sendall(_COMMAND)


@contextmanager
def _shimmed(directory: Path, count: int) -> Iterator[list[Path]]:
    """One manager with so many vTPMs, one shim service in front of it."""
    home, guests = directory / "m", directory / "g"
    home.mkdir(mode=0o711)
    guests.mkdir()
    manager = Manager(home)
    with ExitStack() as stack:
        stack.callback(lambda: manager.stop() if manager.running else None)
        manager.start()
        with manager.admin() as link:
            for n in range(count):
                link.call("create", name=f"v{n}")
                (guests / f"v{n}.guest").write_text("")
        words = ["qemu", f"unix:{home}/shims.sock", "--host-link", str(home / "host.sock"), "--directory", str(guests)]
        argv = [sys.executable, "-m", "guest_frontend", *words]
        stack.enter_context(_child(argv, directory / "shim.log", environment(home)))
        paths = [guests / f"v{n}.sock" for n in range(count)]
        until(lambda: all(path.exists() for path in paths), _START, "the shim serves all guests")
        yield paths


@contextmanager
def _bare(directory: Path, count: int) -> Iterator[list[Path]]:
    """So many swtpms, as QEMU has them without us."""
    with ExitStack() as stack:
        paths = []
        for n in range(count):
            state, path = directory / f"s{n}", directory / f"{n}.ctrl"
            state.mkdir()
            argv = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={path}"]
            stack.enter_context(_child(argv, directory / "swtpm.log", None))
            paths.append(path)
        until(lambda: all(path.exists() for path in paths), _START, "all swtpms listen")
        yield paths


@contextmanager
def _child(argv: list[str], log: Path, env: dict[str, str] | None) -> Iterator[None]:
    with open(log, "ab") as out:
        apart = ["setpriv", "--pdeathsig", "KILL", "--"]
        process = subprocess.Popen(
            [*apart, *argv], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
