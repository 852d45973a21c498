"""What vouches for a vTPM's AK, compared: what each hierarchy makes anew when the vTPM moves, and what links to whom.

# The hierarchies

- sk: the vTPM's SK, a key of the hardware TPM that the authority certified at enrolment, signs for the AK.
- ak-vek: the platform's AK vouches for the vTPM's EK; whoever relies on the AK asks the vTPM again after each move.
- ak-vak: the platform's AK vouches for each AK.
- independent: an outside CA, which has asked the vTPM once.
- ek: the hardware EK signs. Refused; the hardware TPM is asked all the same, and its answer shown.

# Method

Two platforms, each with a swtpm as hardware TPM, owned and enrolled as a manager does it; some vTPMs, each a swtpm with
a group of its own and an AK that was made in it. In each round every hierarchy moves every vTPM from the first platform
to the second: issue there, renew here, verify as a third party. The hierarchies take turns, in the other order every
other round. All commands to the hardware TPMs are counted at the wire; keys are read from the vTPM before and after;
the outside CA and who relies on an EK count how often they are asked. Time is that of `renew` alone, with the
verification of the AK by who relies on it where the old one is void (ak-vek).

What links is what tests/unlinkability.py finds in all certificates and credentials of all vTPMs of both platforms.

# Limits

- A swtpm stands for the hardware TPM: a real one takes some 100 ms for a signature, so compare the operations.
- Moving the vTPM's state is the same for all and not measured here; nor is the commit that notes an SK's assignment.
- CAs answer at once: what a round trip to one costs is up to the network and the CA.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench import machine
from tests.bench.hierarchy import measure, report
from tests.bench.report import Report

TITLE = "What a move costs in each key hierarchy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--vtpms", type=int, default=4, metavar="N", help="on each platform")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="moves of each vTPM in each hierarchy")


def run(args: argparse.Namespace, tell: Callable[[str], None]) -> Report:
    """Everything."""
    facts = {**machine.facts(), "vtpms": args.vtpms, "rounds": args.rounds}
    with tempfile.TemporaryDirectory(prefix="vt") as directory:
        tell(f"two platforms, {2 * args.vtpms} vTPMs")
        with measure.site(Path(directory), args.vtpms, args.rounds) as site:
            tell(f"{args.rounds} rounds")
            rows = measure.rows(site, args.rounds)
            refused = site.platforms["A"].try_to_sign_with_the_ek()
    data = report.data(facts, rows, refused)
    return Report(data, report.page(TITLE, __doc__ or "", facts, rows, refused), report.text(rows, refused))
