"""What does it take to move the whole manager VM to another host?

# The methods

- stop: the manager parks all vTPMs and ends; its disk moves, and it boots at the other host.
- suspend: the VM's memory goes into an encrypted file, which moves with the disk and is loaded there.
- precopy: memory and disk move while the manager serves; the VM stops for the rest.

# Method

Two simulated hosts, each with a manager VM and a hardware TPM; one authority; a network between the managers, and a TCP
connection between the hosts. vTPMs are created and powered on, no guest is there. For each number of vTPMs and each
size of the VM the two managers are booted and filled once and saved; each run begins with a restored copy of them.
Restoring is not measured. After a run all vTPMs must be at the other host.

# What is measured

- Total: the whole call of the operator, from the request until the source has nothing left.
- Downtime: from before the manager freezes until it serves at the other host. All vTPMs wait so long.
- Phases: when each began; the next one's beginning is its end.
- Bytes: what the hosts send through their tunnel, and frames between the managers, headers included.
- Processor time: of all processes of both hosts, from the beginning to the end.
- Secured against unsecured: precopy with each cipher of the tunnel and without any, in one run, each round in the
  other's reverse order. The overhead is taken round by round; the aim is 10 % at most. "none" exists for this
  measurement only.

# Limits

- Both hosts share this machine, its disk and its processors. Where processors are emulated, what runs in the VM (stop:
  the boot) is many times slower than on real ones, and what QEMU and the host do (suspend, precopy) is not.
- A swtpm stands for each hardware TPM; a real one takes some 100 ms for a signature: compare the commands.
- Without guests memory changes little while it moves: precopy is at its best.
- Each cell is measured once: small differences mean nothing, except in the rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from tests.bench.compare import experiment, result
from tests.bench.compare.experiment import Scale
from tests.bench.report import Report

TITLE = "Moving the whole manager"
USUAL = Scale(counts=(1, 10), memory=(512,), methods=result.WHOLE, rounds=3, limits=(), budget=20.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    experiment.add_arguments(parser, USUAL)


def run(args: argparse.Namespace, tell: Callable[[str], None]) -> Report:
    """Everything."""
    if args.again is not None:
        return experiment.again("relocate", TITLE, __doc__ or "", args.again)
    return experiment.run("relocate", TITLE, __doc__ or "", experiment.jobs(args, USUAL), args.budget, tell)
