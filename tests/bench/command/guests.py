"""(c) and (d): /dev/tpm0 of three guests of one image: over ivshmem, over virtio-serial, and QEMU's tpm-crb."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from image.host import machine
from image.host.host import Host
from image.host.machine import VmSpec
from image.host.process import Process
from image.host.vm import Vm
from image.host.wires import GUEST_PORT, Carrier
from manager_vm.errors import HostError
from tests.bench.command import paths, probe, workload
from tests.bench.command.paths import CRB, IN_MANAGER, IVSHMEM, MANAGER_SPEED, VIRTIO
from tests.bench.command.workload import GET_RANDOM, LOOP, NV_WRITE, PCR_EXTEND, PING, QUOTE, SYSTEM
from tests.bench.stats import Samples
from tests.system import vms

_CARRIERS = {IVSHMEM: Carrier.IVSHMEM, VIRTIO: Carrier.VIRTIO_SERIAL}
_COUNTS = {GET_RANDOM: 40, PCR_EXTEND: 40, QUOTE: 16, NV_WRITE: 16}
_EXPLAIN_ROUNDS = 4
_BOOT = 240.0  # seconds
_ROUND = 120.0  # seconds for one round of one guest
_DEVICE = "/dev/tpm0"
_PROBE, _PLAN = "/root/probe.py", "/root/plan.json"
_LOOK = """systemctl is-system-running --wait >/dev/null
for tpm in /sys/class/tpm/tpm[0-9]*; do
  if test -e $tpm/device/driver; then basename "$(readlink -f $tpm/device/driver)"; else readlink -f $tpm; fi
done"""
_PROXY = "/sys/devices/virtual/tpm/tpm0"  # where a device of tpm_vtpm_proxy stands; it has no driver
_WANTED = {IVSHMEM: _PROXY, VIRTIO: _PROXY, CRB: "tpm_crb"}


@dataclass(frozen=True, slots=True)
class Lane:
    """A path in a VM. ``channel``: of a guest of ours, as its front end calls it."""

    path: str
    vm: Vm
    channel: str = ""


@dataclass(frozen=True, slots=True)
class Lab:
    """The machines of one run."""

    manager: Vm
    lanes: tuple[Lane, ...]
    accelerator: str


@contextmanager
def lab(directory: Path, tell: Callable[[str], None]) -> Iterator[Lab]:
    """Manager and guests, all with a TPM that is set up; they end with the block."""
    saved_manager, saved_guest = vms.saved_manager(), vms.saved_guest()
    with ExitStack() as stack:
        host = stack.enter_context(Host(directory, vms.IMAGES, firmware=True))
        tell("guest with tpm-crb: booting")
        crb = _boot_crb(stack, directory, host.accelerator)
        manager = host.start_manager(saved_manager)
        ours = vms.Lab(host, saved_guest)
        lanes = [
            Lane(path, ours.guest(carrier.replace("-", ""), carrier).vm, _channel(carrier))
            for path, carrier in _CARRIERS.items()
        ]
        tell("manager and guests over ivshmem and virtio-serial: up")
        crb.agent.wait(_BOOT)
        lanes.append(Lane(CRB, crb))
        for lane in lanes:
            _prepare(lane)
        yield Lab(manager, tuple(lanes), host.accelerator)


def measure(lab: Lab, rounds: int, samples: Samples) -> None:
    """Guests take turns, every other round the other way round."""
    for number in range(rounds):
        for lane in lab.lanes if number % 2 == 0 else reversed(lab.lanes):
            samples.add(lane.path, _run(lane.vm, workload.plan(_DEVICE, _COUNTS)))


def explain(lab: Lab, samples: Samples) -> None:
    """The way of (c) in parts, which take turns: swtpm alone in the manager VM; /dev/tpm0 again; PING; the channel."""
    lab.manager.agent.write(_PROBE, Path(probe.__file__).read_bytes())
    for number in range(_EXPLAIN_ROUNDS):
        bare = workload.plan(f"swtpm:/tmp/bench{number}", _COUNTS, prepare=True)
        samples.add(IN_MANAGER, _run(lab.manager, bare))
        samples.add(MANAGER_SPEED, _run(lab.manager, workload.plan("speed:", {LOOP: 20, SYSTEM: 20})))
        for lane in lab.lanes:
            if lane.channel:
                _explain_guest(lane, samples)


def _explain_guest(lane: Lane, samples: Samples) -> None:
    """A channel has one front end: the guest's own is stopped while the script is in its place."""
    agent = lane.vm.agent
    samples.add(paths.again(lane.path), _run(lane.vm, workload.plan(_DEVICE, _COUNTS)))
    unit = agent.check("systemctl list-units --plain --no-legend 'vtpm-guest@*' | cut -d' ' -f1").strip()
    agent.check(f"systemctl stop '{unit}'")
    samples.add(paths.ping(lane.path), _run(lane.vm, workload.plan(f"ping:{lane.channel}", {PING: 60})))
    samples.add(paths.link(lane.path), _run(lane.vm, workload.plan(f"channel:{lane.channel}", _COUNTS)))
    agent.check(f"systemctl start '{unit}'")


def facts(lab: Lab) -> dict[str, str]:
    """What the guests and the manager VM are."""
    one = lab.lanes[0].vm.agent
    return {
        "accelerator": lab.accelerator,
        "machine": machine.MACHINE,
        "guest_cpu": machine.cpu(lab.accelerator),
        "guest_kernel": one.check("uname -r").strip(),
        "guest_python": one.check("python3 --version").strip(),
        "guest_clock": one.check("cat /sys/devices/system/clocksource/clocksource0/current_clocksource").strip(),
        "guest_meltdown": one.check("cat /sys/devices/system/cpu/vulnerabilities/meltdown").strip(),
        "manager_swtpm": lab.manager.agent.check("swtpm --version").splitlines()[0],
    }


def _channel(carrier: Carrier) -> str:
    return "ivshmem" if carrier is Carrier.IVSHMEM else f"virtio-serial:{GUEST_PORT}"


def _boot_crb(stack: ExitStack, directory: Path, accelerator: str) -> Vm:
    """A guest whose TPM is QEMU's, with a swtpm of this host behind it and nothing between."""
    spec = VmSpec("crb", vms.IMAGES / "guest", directory / "crb", hwtpm=_swtpm(stack, directory / "crb-tpm"))
    vm = stack.enter_context(Vm(spec, accelerator))
    vm.go()
    return vm


def _swtpm(stack: ExitStack, directory: Path) -> Path:
    """The control socket of a swtpm that QEMU itself drives, and that ends with it."""
    directory.mkdir(mode=0o700)
    control = directory / "control.sock"
    argv = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={directory}"]
    argv += ["--ctrl", f"type=unixio,path={control}", "--terminate"]
    process = stack.enter_context(Process("swtpm of guest crb", argv, directory / "swtpm.log"))
    while not control.exists():
        process.check()
        time.sleep(0.01)
    return control


def _prepare(lane: Lane) -> None:
    """The probe and the TPM's objects are there; /dev/tpm0 is the only TPM and the one that we think."""
    found = lane.vm.agent.check(_LOOK, _BOOT)
    if found.split() != [_WANTED[lane.path]]:
        raise HostError(f"the TPMs of guest {lane.vm.spec.name} are {found.split()}, not one of {_WANTED[lane.path]}")
    lane.vm.agent.write(_PROBE, Path(probe.__file__).read_bytes())
    _run(lane.vm, workload.plan(_DEVICE, {}, prepare=True))


def _run(vm: Vm, plan: dict[str, object]) -> dict[str, list[float]]:
    vm.agent.write(_PLAN, json.dumps(plan).encode())
    measured: dict[str, list[float]] = json.loads(vm.agent.check(f"python3 {_PROBE} {_PLAN}", _ROUND))
    return measured
