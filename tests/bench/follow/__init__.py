"""What a live migration costs a VM whose vTPM follows it, beside the same migration with a swtpm on the host.

# The ways

- follows: the VM's TPM is QEMU's, behind the shim; a ticket goes in the stream, and the vTPM from manager to manager,
  attested on both sides, encrypted, by anchored commits at both.
- host swtpm: QEMU's tpm-emulator and a swtpm on the host, as people have it without us; the TPM's state goes in the
  stream, in clear, into a swtpm that starts empty.

# Method

Two VMs of one image, one for each way, with the same client inside that uses its TPM all the time. The ways take turns,
each moves its VM from one QEMU to a next one on this machine, over a UNIX socket, without a limit of bandwidth; the VM
of the other way stands still meanwhile. Both migrations are made by the same code. From the second move on the managers
have met, and agree before the ticket comes; the first move is not counted.

- QEMU's downtime: what QEMU says of itself (query-migrate): from stopping the source to its stream's end.
- stop to go: from the source's processors standing still to the destination's running, by the time that each QEMU says
  of it (events STOP and RESUME). The program that leads both QEMUs looks at them 20 ms at a time, on both ways.
- longest wait: between two rounds of the client, by the guest's own clock, which stands still while the VM does.
- of ours: ticket (the vTPM is still; its park, an anchored commit, goes on beside QEMU), redeem (the park is through,
  its state is here, an anchored commit on each side),
  taken (the first command: the source gives it up, an anchored commit, and the destination serves).

# Limits

- Both hosts are this machine: processors, disk and memory are shared, the network is none. A round trip between hosts
  adds one to redeem and two to taken.
- The managers are `dev` ones on the host: in a manager VM under emulation all of ours takes longer.
- A swtpm stands for the hardware TPM. Its quotes are made before the ticket and do not count here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from manager_vm.errors import ConfigError
from tests.bench import machine
from tests.bench.follow import measure, report
from tests.bench.report import Report
from tests.system import vms

TITLE = "What a VM's live migration costs when its vTPM follows"
_QUICK = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="moves on each way")
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK} moves: whether it works, not what it costs")


def run(args: argparse.Namespace, tell: Callable[[str], None]) -> Report:
    """Everything."""
    if not (vms.IMAGES / "guest" / "image.json").exists():
        raise ConfigError("there are no images; run ./build.sh image")
    rounds = _QUICK if args.quick else args.rounds
    facts = {**machine.facts(), "rounds": rounds}
    moves = measure.moves(rounds, tell)
    return Report(report.data(facts, moves), report.page(TITLE, __doc__ or "", facts, moves), report.text(moves))
