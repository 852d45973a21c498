"""Is it better to move the whole manager VM, or its vTPMs one by one?

# The methods

- stop: the manager parks all vTPMs and ends; its disk moves, and it boots at the other host.
- suspend: the VM's memory goes into an encrypted file, which moves with the disk and is loaded there.
- precopy: memory and disk move while the manager serves; the VM stops for the rest.
- evacuate: vTPMs leave one by one (two at once) for a manager that runs at the other host: `vtpmctl evacuate`.

# Method

Two simulated hosts, each with a manager VM and a hardware TPM; one authority; a network between the managers, and a TCP
connection between the hosts. vTPMs are created and powered on, no guest is there. For each number of vTPMs and each
size of the VM the two managers are booted and filled once and saved; each run begins with a restored copy of them, so
that all methods begin with the same state. Restoring is not measured. After a run all vTPMs must be at the other host.

# What is measured

- Total: the whole call of the operator, from the request until the source has nothing left.
- Downtime of a whole manager: from before it freezes until it serves at the other host. All vTPMs wait at once, so each
  waits for all of it.
- Pause of a vTPM that moves alone: in its TCP connection, at most from READY to COMMITTED, at least from STATE to
  COMMIT (MIGRATION.md): it is quiesced between READY and STATE, and active between COMMIT and COMMITTED. The others go
  on. All figures are the upper bound where nothing else is said. "Downtime" of evacuate is the median of the pauses;
  the last vTPM is there at the end of the total.
- All together: the waiting of all vTPMs added up, in seconds.
- Bytes: what the hosts send through their tunnel, and frames between the managers, headers included.
- Processor time: of all processes of both hosts from /proc, from the beginning to the end: QEMUs, hardware TPMs, and
  this process, which does both hosts' work. VMs that wait need some of it too.
- Commands to both hardware TPMs, counted at the stand-ins; keys made: Create and CreateLoaded among them.
- Keys of vTPMs that are others after the move, of up to three vTPMs.

# Parts

- Grid: each method in each cell, once.
- Secured against unsecured: precopy with each cipher of the tunnel and without any, in turns, in one run. The overhead
  is taken round by round; the aim is 10 % at most. "none" exists for this measurement only. Moves of single vTPMs are
  always encrypted.
- Bandwidth: one cell with a limit, on each stream of the tunnel and on the whole network between the managers.
- Delay: one cell with a round-trip time, for each stream of the tunnel and each frame between the managers, held back
  in this process.

# Limits

- Both hosts share this machine, its disk and its processors. Where processors are emulated, what runs in the VM
  (evacuate: cryptography and protocol; stop: the boot) is many times slower than on real ones, and what QEMU and the
  host do (suspend, precopy) is not: this favours moving the whole VM.
- A swtpm stands for each hardware TPM; a real one takes some 100 ms for a signature: compare the commands.
- Without guests memory changes little while it moves: precopy is at its best, and a guest's own way to the other host
  is not in the figures.
- After the move of a whole manager the source has no manager. To boot and enrol one, for the way back, takes about a
  minute where the processor is emulated, and is not in the figures; evacuate leaves an empty one.
- Each cell is measured once: small differences mean nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

from tests.bench.compare import experiment, result
from tests.bench.compare.experiment import Scale
from tests.bench.report import Report

TITLE = "Moving the whole manager, or its vTPMs one by one"
USUAL = Scale(
    counts=(1, 10, 50), memory=(512, 1024), methods=result.METHODS, rounds=3, limits=(100,), budget=30.0, delays=(20,)
)
FULL = replace(USUAL, counts=(*USUAL.counts, 200), limits=(*USUAL.limits, 10), delays=(*USUAL.delays, 100))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    experiment.add_arguments(parser, USUAL)
    parser.add_argument("--full", action="store_true", help="200 vTPMs, 10 Mbit/s, 100 ms too; give it a larger budget")


def run(args: argparse.Namespace, tell: Callable[[str], None]) -> Report:
    """Everything."""
    if args.again is not None:
        return experiment.again("compare", TITLE, __doc__ or "", args.again)
    jobs = experiment.jobs(args, FULL if args.full else USUAL)
    return experiment.run("compare", TITLE, __doc__ or "", jobs, args.budget, tell)
