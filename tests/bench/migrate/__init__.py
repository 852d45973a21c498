"""What it costs to move one running vTPM, and what of that its guest notices.

# The paths

- floor: the least. Two bare swtpms; state read from one, loaded into the other, which waits. No security, no disk.
- tls: the same with the state sent through TLS 1.3 over loopback, certificates of a CA verified at both ends.
- move: `migrate` between two `dev` managers, each with a swtpm as hardware TPM; a client goes on at the other channel.

# Method

In each round every path moves its vTPM once; the paths take turns. Roads: loopback, with a relay that holds each piece
back for half of the round-trip time; or a cable between two network namespaces with a token bucket at each end.
Downtime is the longest pause of a client that asks for random numbers all the time (move), or from before the state is
read to the first answer at the destination (floor, tls). Total is the whole call: for move from the operator's
request, signed order and both quotes included, to the erasure at the source. Apart are listed: time in which either
manager waited for fsync(2) or for a request to its hardware TPM (tpm2-tss included); what happened at once in both
counts once. "Ours" is what is left of the total beyond the floor's total: cryptography, protocol, interpreter.

Many: all vTPMs of a manager leave (`evacuate`), some at once; the bare paths in as many threads of one process. Busy is
the share of the time in which a hardware TPM had a request.

# Limits

- A swtpm stands for each hardware TPM: a real one takes some 100 ms for a quote, and some 10 ms for the anchor's write.
  move has four quotes or signatures before quiesce, and two anchored commits within the downtime.
- The disk is what the directory is on; fsync on a memory file system costs nothing.
- A front end tries again after an eighth of the time that its command has waited: so much its pause may be too long.
- Both managers, both hardware TPMs, the client and the relay share this machine's processors.
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
    parser.add_argument(
        "--mbit", type=float, nargs="*", default=[10.0, 100.0], metavar="N", help="bandwidths, 10^6 bit/s"
    )
    parser.add_argument("--many", type=int, default=200, metavar="N", help="vTPMs of the evacuation, 0 for none")
    parser.add_argument("--parallel", type=int, default=2, metavar="N", help="so many of them at once")


def run(args: argparse.Namespace, tell: Callable[[str], None]) -> Report:
    """Everything."""
    facts = {**machine.facts(), "rounds": args.rounds}
    rows = measure.rows(args.rounds, args.rtt, args.mbit, tell)
    many = measure.evacuations(args.many, args.parallel, tell) if args.many else []
    page = report.page(TITLE, __doc__ or "", facts, rows, many)
    return Report(report.data(facts, rows, many), page, report.text(rows, many))
