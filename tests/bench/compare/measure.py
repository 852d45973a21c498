"""One run: a manager or its vTPMs move, and what that took is written down."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from contextlib import ExitStack, closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass

from image.host.departure import Departure, Method
from image.host.host import Host
from image.host.landing import Landing
from manager_vm.ctl import main as vtpmctl
from manager_vm.errors import HostError
from manager_vm.protocol.tunnel import Suite
from manager_vm.server import peer_link
from manager_vm.trust import relocation
from manager_vm.trust.signing import SigningKey
from tests.bench.compare import cpu, standin
from tests.bench.compare.result import EVACUATE, Figures, Job, middle_of
from tests.bench.compare.stock import Pair, Stock, name
from tests.bench.migrate.delay import Delay

PARALLEL = 2  # vTPMs that are evacuated at once
_INTERRUPTED = 130  # exit code of vtpmctl
_HWTPM = "hwtpm"  # a host's directory of its hardware TPM


def run(job: Job, stock: Stock) -> Figures:
    """VtpmManagerError if it fails, or does not fit."""
    with stock.pair(job.memory, job.count, job.limit, job.rtt) as pair:
        looked_at = sorted({0, job.count // 2, job.count - 1})
        before = [_keys(pair.source, number) for number in looked_at]
        told, seen = _evacuate(pair) if job.method == EVACUATE else _relocate(pair, job)
        _demand_there(pair, job.count)
        after = [_keys(pair.target, number) for number in looked_at]
    changed = sum(one[kind] != other.get(kind) for one, other in zip(before, after, strict=True) for kind in one)
    return _put_together(told, seen, changed, sum(map(len, before)))


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the clock, the processors, the network and both hardware TPMs say."""

    time: float
    cpu: float
    network: int
    tpms: tuple[Counter[str], Counter[str]]


@dataclass(frozen=True, slots=True)
class _Told:
    """What the method itself says. ``total``: 0: the clock's."""

    downtime: float
    total: float = 0.0
    tunnel: int = 0
    pauses: tuple[float, ...] = ()
    least: tuple[float, ...] = ()
    phases: tuple[tuple[str, float], ...] = ()


def _see(pair: Pair) -> _Seen:
    first, second = (standin.commands(host.directory / _HWTPM) for host in (pair.source, pair.target))
    return _Seen(time.monotonic(), cpu.seconds(), pair.switch.sent, (first, second))


def _put_together(told: _Told, seen: tuple[_Seen, _Seen], changed: int, looked_at: int) -> Figures:
    before, after = seen
    source, target = (dict(sorted((new - old).items())) for old, new in zip(before.tpms, after.tpms, strict=True))
    return Figures(
        total=told.total or after.time - before.time,
        downtime=told.downtime,
        tunnel=told.tunnel,
        network=after.network - before.network,
        cpu=after.cpu - before.cpu,
        pauses=told.pauses,
        least=told.least,
        source_tpm=source,
        target_tpm=target,
        changed=changed,
        looked_at=looked_at,
        phases=dict(told.phases),
    )


def _evacuate(pair: Pair) -> tuple[_Told, tuple[_Seen, _Seen]]:
    """As an operator does it."""
    argv = ["-m", str(pair.source.directory), "--json", "evacuate", "--to", str(pair.target.directory)]
    out, said = io.StringIO(), io.StringIO()
    before = _see(pair)
    with redirect_stdout(out), redirect_stderr(said):
        code = vtpmctl.main([*argv, "--parallel", str(PARALLEL)])
    after = _see(pair)
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise HostError(_why(code, out.getvalue(), said.getvalue()))
    pauses = pair.switch.pauses()
    most, least = tuple(each.most for each in pauses), tuple(each.least for each in pauses)
    return _Told(middle_of(most), pauses=most, least=least), (before, after)


def _why(code: int, out: str, said: str) -> str:
    """Which vTPMs stay, or the last that vtpmctl says."""
    told = json.loads(out or "[]")
    stays = [each["text"] for each in told if not each["moved"]] if isinstance(told, list) else []
    if stays:
        return f"{len(stays)} vTPMs stay: {stays[0]}"
    return f"vtpmctl ends with {code}: {(said.strip().splitlines() or ['it says nothing'])[-1]}"


def _relocate(pair: Pair, job: Job) -> tuple[_Told, tuple[_Seen, _Seen]]:
    suite = Suite(job.suite)
    receiver = pair.target.links.admin("status")["migration"]
    with ExitStack() as stack:
        landing = stack.enter_context(closing(Landing(pair.target, ("127.0.0.1", 0), suite)))
        far = stack.enter_context(closing(Delay(peer_link.join(*landing.address), job.rtt)))
        ordered = _order(pair)
        before = _see(pair)
        move = Departure(
            pair.source,
            Method(job.method),
            receiver,
            peer_link.parse_address(far.address),
            ordered,
            suite=suite,
            limit=job.limit,
            follow=landing,
        )
        report = move.run()
        after = _see(pair)
    phases = tuple(report.phases.items())
    return _Told(report.downtime, report.total, report.bytes_sent, phases=phases), (before, after)


def _order(pair: Pair) -> bytes:
    """To move this manager once, by the authority of both."""
    source = pair.source
    status = source.links.admin("status")
    key = SigningKey.load(source.authority / "authority.key")
    here, there = (str(host.links.admin("platform_show")["platform"]) for host in (source, pair.target))
    return relocation.give(status["manager"], status["relocation"]["relocations"], here, there, key)


def _demand_there(pair: Pair, count: int) -> None:
    """HostError unless all vTPMs are at the target, and none is broken."""
    states = Counter(str(row["state"]) for row in pair.target.links.admin("list"))
    if states.total() != count or set(states) - {"running", "parked", "off"}:
        raise HostError(f"of {count} vTPMs are there after the move: {dict(states)}")


def _keys(host: Host, number: int) -> dict[str, str]:
    """Names of the keys of a vTPM."""
    return dict(host.links.admin("show", name=name(number))["ek_names"])
