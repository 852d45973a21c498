"""What it costs to move one running vTPM, and what of that its guest notices.

# The paths

- floor: the least. Two bare swtpms; state read from one, loaded into the other, which waits. No security, no disk.
- tls: the same with the state sent through TLS 1.3 over loopback, certificates of a CA verified at both ends.
- move: `migrate` between two `dev` managers, each with a swtpm as hardware TPM; a client goes on at the other channel.

# Method

In each round every path moves its vTPM once; the paths take turns. Downtime is the longest pause of a client that asks
for random numbers all the time (move), or from before the state is read to the first answer at the destination (floor,
tls). Total is the whole call: for move from the operator's request, signed order and both quotes included, to the
erasure at the source. With a round-trip time a relay between both sides holds each piece back for half of it.

# Limits

- A swtpm stands for each hardware TPM: a real one takes some 100 ms for a quote, and some 10 ms for the anchor's write.
  move has four quotes or signatures before quiesce, and two anchored commits within the downtime.
- The disk is what the directory is on; fsync on a memory file system costs nothing.
- A front end tries again 50 ms after it was told that a vTPM is being moved: its pauses are multiples of that.
- No bandwidth limits, no evacuation of many vTPMs yet; fsync and hardware-TPM time are not listed apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from tests.bench import machine
from tests.bench.migrate import measure, report
from tests.bench.report import Report

TITLE = "What a move of one vTPM costs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="moves on each path")
    parser.add_argument(
        "--rtt", type=float, nargs="+", default=[0.0, 10.0, 50.0], metavar="MS", help="round-trip times"
    )


def run(args: argparse.Namespace, tell: Callable[[str], None]) -> Report:
    """Everything."""
    facts = {**machine.facts(), "rounds": args.rounds}
    rows = measure.rows(args.rounds, args.rtt, tell)
    return Report(report.data(facts, rows), report.page(TITLE, __doc__ or "", facts, rows), report.text(rows))
