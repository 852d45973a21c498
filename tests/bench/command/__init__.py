"""What a TPM command costs on its way to a vTPM: the same four commands on each path, in one run, as ratios.

# The paths

- (a) A bare swtpm: a client and a swtpm on a socket pair, nothing else. Neither encrypts nor syncs its state file.
- (b) `dev` mode: guest_frontend's link, the ring in shared memory, a manager in a process of its own, its swtpm.
- (c) /dev/tpm0 in a guest: tpm_vtpm_proxy, guest_frontend, ivshmem or virtio-serial to the manager VM, its swtpm.
- (d) /dev/tpm0 in the same guest image with QEMU's tpm-crb and a swtpm on the host: what people use without us.

# The commands

- GetRandom of 16 bytes; PCR_Extend of PCR 16, SHA-256.
- Quote of PCR 0 to 7 by a restricted P-256 signing key that is loaded: ECDSA, SHA-256.
- NV_Write of 32 bytes, other bytes each time (a TPM skips a write of what is there already).

# Method

Each command is timed by itself in the client, from handing it over to having the whole answer. Every answer must be
TPM_RC_SUCCESS. The client of (a) and (b) is this process; in guests it is one stand-alone script, the same for all.

Paths take turns: a round is some commands of each kind on every path, and every other round goes the other way round.
A few commands at the start of each turn are not counted. Differences and ratios are taken round by round; their median
is what counts, so what disturbs a whole round disturbs both sides. Nothing is asserted about time: a miss is a line in
the report.

For (a) and (b) client, manager and swtpm share one processor (and once more wherever Linux puts them). VMs are not
pinned; all of them run all the time, so each is measured beside the same idle others.

# Many guests

Simulated QEMUs behind one QEMU shim, one carrier and one `dev` manager, beside as many bare swtpms, all driven by one
process with the same code: GetRandom. All VMs are started, 16 at a time. Then each sends a command a second; then all
send the next one as soon as they have an answer; then one does that beside the polite others, and what these pay is
counted. Jain's index: 1 where all guests were served alike.

# Parts

- relay: a process between client and swtpm that copies bytes through shared memory and does nothing else.
- PING only: the channel to the manager's thread and back, without a TPM behind it.
- (c) without the kernel: the front end is stopped and a script uses the channel in its place. These parts take turns
  with (c) as a whole in rounds of their own ("again").
- bare swtpm in the manager VM: (a), but there.

# Limits

- Where the processor is emulated, (d) is favoured: its swtpm is native code on the real processor, ours is emulated.
- The guest's kernel looks at its TPM at once, then about each millisecond: times of /dev/tpm0 come in such steps.
- Of (a) to (d) one guest works at a time. The many guests are simulated and have no kernel between; client, shim,
  manager and swtpms share the processors, and what the client costs (about 10 us a command) limits the bare swtpms.
- (b) and (c) sync an NV_Write to the disk before they answer, (a) and (d) never do: those figures are no like for like.
- Commands follow each other at once: no wake-up from deep sleep is in these figures.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from manager_vm.errors import ConfigError
from tests.bench import machine
from tests.bench.command import aims, crowd, guests, host, parts, report
from tests.bench.command.crowd import Crowd
from tests.bench.command.paths import BARE, DEV, RELAY
from tests.bench.command.result import Result
from tests.bench.report import Report
from tests.bench.stats import Samples
from tests.integration.conftest import short_directory
from tests.system import vms

TITLE = "What a TPM command costs"
_CROWD = 8.0  # seconds for each load of many guests


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--host-rounds", type=int, default=60, metavar="N", help="rounds of (a) and (b)")
    parser.add_argument(
        "--guest-rounds", type=int, default=12, metavar="N", help="rounds of (c) and (d); 0: without VMs"
    )
    text = "how many guests at one shim, one count after the other (default: 1 10 50 200; nothing: none)"
    parser.add_argument("--crowds", type=int, nargs="*", default=[1, 10, 50, 200], metavar="N", help=text)


def run(args: argparse.Namespace, tell: Callable[[str], None]) -> Report:
    """Everything."""
    if args.guest_rounds and not (vms.IMAGES / "guest" / "image.json").exists():
        raise ConfigError("there are no images; run ./build.sh image, or leave the VMs out with --guest-rounds 0")
    samples = Samples()
    facts = {**machine.facts(), "host_rounds": args.host_rounds, "guest_rounds": args.guest_rounds}
    with vms.short_directory() as directory:
        on_host = _on_host(directory, args.host_rounds, samples, tell)
    if args.guest_rounds:
        with vms.short_directory() as directory:
            facts |= _in_guests(directory, args.guest_rounds, samples, tell)
    crowds: tuple[Crowd, ...] = ()
    if args.crowds:
        with short_directory() as directory:
            crowds = crowd.measure(directory, args.crowds, _CROWD, tell)
    facts["load_at_end"] = list(os.getloadavg())
    result = replace(_result(facts, samples, on_host), crowds=crowds)
    return Report(result.json(), report.page(result, TITLE, __doc__ or ""), report.text(result))


@dataclass(frozen=True, slots=True)
class _OnHost:
    shares: tuple[parts.Share, ...]
    pieces: tuple[parts.Piece, ...]
    sync: float
    file_system: str


def _on_host(directory: Path, rounds: int, samples: Samples, tell: Callable[[str], None]) -> _OnHost:
    tell("host: starting (a) and (b)")
    scratch = directory / "scratch"
    scratch.mkdir()
    with host.lanes(directory) as lanes:
        tell(f"host: {rounds} rounds")
        host.measure(lanes, rounds, samples)
        tell("host: the way in parts")
        shares = [share for lane in lanes if lane.path in (BARE, RELAY, DEV) for share in parts.shares(lane)]
        pieces = parts.pieces(lanes[0].cpus, scratch)
        return _OnHost(tuple(shares), tuple(pieces), parts.sync_time(scratch), machine.file_system(directory))


def _in_guests(directory: Path, rounds: int, samples: Samples, tell: Callable[[str], None]) -> dict[str, object]:
    tell("guests: starting; where there are no saved VMs yet, they are booted and saved first")
    with guests.lab(directory, tell) as lab:
        tell(f"guests: {rounds} rounds")
        guests.measure(lab, rounds, samples)
        facts: dict[str, object] = {**guests.facts(lab)}
        tell("guests: the way in parts")
        guests.explain(lab, samples)
        return facts


def _result(facts: dict[str, object], samples: Samples, on_host: _OnHost) -> Result:
    series = samples.series()
    shares: dict[str, dict[str, float]] = {}
    for share in on_host.shares:
        shares.setdefault(share.path, {})[share.process] = share.microseconds
    facts = {**facts, "file_system": on_host.file_system}
    found = tuple(aims.evaluate(series, shares, on_host.sync, facts))
    return Result(facts, series, on_host.shares, on_host.pieces, on_host.sync, found)
