"""Booting the appliance: what it refuses, and that the host side leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from image import measure
from image.host import saved
from image.host.host import Host
from image.host.hwtpm import Arriving
from image.host.machine import VmSpec
from image.host.saved import Saved
from image.host.standin.session import KEPT
from image.host.vm import Vm
from manager_vm.errors import HostError
from manager_vm.wire import tpm
from tests.integration import raw
from tests.system import vms

_NV, _PERSISTENT = 0x01000000, 0x81000000  # first handles of each kind (Part 2, 7.2)


@contextmanager
def booting(directory: Path, image: Path, state: Path) -> Iterator[Vm]:
    """A manager's VM on its own, from power-on."""
    spec = VmSpec("manager", image, directory / "vm", state_disk=state)
    with Host(directory, vms.IMAGES) as host, Vm(spec, host.accelerator) as vm:
        vm.go()
        yield vm


@pytest.mark.timeout(300)
def test_a_changed_block_of_the_root_disk_ends_in_a_kernel_panic() -> None:
    with vms.short_directory() as directory:
        image = directory / "image"
        shutil.copytree(vms.IMAGES / "manager", image)
        with open(image / "root.img", "r+b") as file:
            for block in range(0, 20 << 20, 4096):
                file.seek(block + 100)
                byte = file.read(1)
                file.seek(block + 100)
                file.write(bytes([byte[0] ^ 1]))
        state = directory / "state.img"
        state.write_bytes(bytes(1 << 20))
        with booting(directory, image, state) as vm:
            vms.console_says(vm, "dm-verity device corrupted", "Kernel panic")


@pytest.mark.timeout(300)
def test_a_state_disk_that_holds_something_else_is_refused_and_left_as_it_is() -> None:
    with vms.short_directory() as directory:
        state = directory / "state.img"
        content = b"somebody's data" + bytes((8 << 20) - 15)
        state.write_bytes(content)
        with booting(directory, vms.IMAGES / "manager", state) as vm:
            said = vms.console_says(vm, "refused", "READY")
        assert "neither blank nor ext4" in said and "READY" not in said
        assert state.read_bytes() == content


@pytest.mark.timeout(120)
def test_a_saved_manager_comes_back_with_its_hardware_tpms_pcrs(saved_manager: Saved) -> None:
    with vms.short_directory() as directory, Host(directory, vms.IMAGES, firmware=True) as host:
        vm = host.start_manager(saved_manager)
        pcrs = vm.agent.check("cat /sys/class/tpm/tpm0/pcr-sha256/11")
        assert int(pcrs, 16) not in (0, (1 << 256) - 1)
        target = directory / "again"
        vm.save(target)
        with open(target, "rb") as file:
            assert file.read(4) == b"QEVM"


class HardwareTpmOfVm:
    """The hardware TPM as the manager VM reaches it: raw commands to /dev/tpm0, no resource manager."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def execute(self, *commands: bytes) -> list[bytes]:
        """The responses to commands that must succeed; one start of Python for all, which is slow there."""
        program = "import os, sys; f = os.open('/dev/tpm0', os.O_RDWR)\nfor c in sys.argv[1:]:"
        program += " os.write(f, bytes.fromhex(c)); print(os.read(f, 4096).hex())"
        said = self._vm.agent.check(f'python3 -c "{program}" {" ".join(command.hex() for command in commands)}')
        responses = [bytes.fromhex(line) for line in said.split()]
        assert [raw.rc(response) for response in responses] == [0] * len(commands)
        return responses

    def pcr(self, number: int) -> str:
        """A PCR's value, SHA-256."""
        return self.execute(raw.pcr_read(number))[0][-32:].hex()

    def mark(self) -> str:
        """Extend PCR 12, which nobody else does; its value."""
        return self.execute(raw.pcr_extend(12), raw.pcr_read(12))[1][-32:].hex()

    def furniture(self) -> dict[int, bytes]:
        """Public areas of all NV indices and persistent keys; the manager's own are among them."""
        indices, keys = map(_handles, self.execute(*(_list(first) for first in (_NV, _PERSISTENT))))
        assert indices and keys
        asked = [*map(tpm.nv_read_public, indices), *map(tpm.read_public, keys)]
        return dict(zip([*indices, *keys], self.execute(*asked), strict=True))


def _list(first: int) -> bytes:
    return tpm.get_capability(tpm.TPM_CAP_HANDLES, first, 64)


def _handles(response: bytes) -> list[int]:
    """moreData, capability, count, handles (Part 2, 10.10.1)."""
    body = response[tpm.HEADER_SIZE + 9 :]
    return [int.from_bytes(body[at : at + 4], "big") for at in range(0, len(body), 4)]


def _serving_pcr() -> str:
    """PCR 11 of a manager that serves, predicted from its image."""
    return measure.after_cap(measure.expected(vms.IMAGES / "manager"))["11"]


@pytest.mark.timeout(900)
@pytest.mark.full
def test_the_hardware_tpm_outlives_its_vms_and_each_boot_has_pcrs_of_its_own(saved_manager: Saved) -> None:
    with vms.short_directory() as directory:
        with Host(directory, vms.IMAGES, firmware=True) as host:
            hardware = HardwareTpmOfVm(host.start_manager(saved_manager))
            host.links.admin("create", name="a")
            furniture, pids = hardware.furniture(), (host.hwtpm.pid, host.hwtpm.swtpm_pid)
            assert int(hardware.mark(), 16) != 0
            host.stop_manager()
            hardware = HardwareTpmOfVm(host.start_manager())
            assert (host.hwtpm.pid, host.hwtpm.swtpm_pid) == pids
            assert hardware.furniture() == furniture
            assert (hardware.pcr(11), int(hardware.pcr(12), 16)) == (_serving_pcr(), 0)
            hardware.mark()
            host.kill_manager()
        with Host(directory, vms.IMAGES, firmware=True) as host:
            hardware = HardwareTpmOfVm(host.start_manager())
            assert hardware.furniture() == furniture
            assert (hardware.pcr(11), int(hardware.pcr(12), 16)) == (_serving_pcr(), 0)
            assert [each["name"] for each in host.links.admin("list")] == ["a"]


@pytest.mark.timeout(300)
def test_a_saved_manager_is_restored_again_and_again_each_time_with_its_own_tpm(saved_manager: Saved) -> None:
    with vms.short_directory() as directory, Host(directory, vms.IMAGES, firmware=True) as host:
        for name in ("a", "b"):
            hardware = HardwareTpmOfVm(host.start_manager(saved_manager))
            assert (hardware.pcr(11), int(hardware.pcr(12), 16)) == (_serving_pcr(), 0)
            host.links.admin("create", name=name)
            assert [each["name"] for each in host.links.admin("list")] == [name]
            hardware.mark()
            host.kill_manager()


@pytest.mark.timeout(300)
def test_a_manager_that_arrives_finds_this_hosts_tpm_and_takes_none_of_it_along(saved_manager: Saved) -> None:
    with vms.short_directory() as directory, Host(directory, vms.IMAGES, firmware=True) as host:
        marked = HardwareTpmOfVm(host.start_manager(saved_manager)).mark()
        host.kill_manager()
        vm = host.start_manager(saved_manager, arriving=Arriving.KEEP)
        assert HardwareTpmOfVm(vm).pcr(12) == marked
        away = directory / "away"
        away.mkdir()
        saved.save(vm, away)
        assert KEPT in (away / "memory").read_bytes()
        host.kill_manager()
        assert HardwareTpmOfVm(host.start_manager(Saved(away), arriving=Arriving.KEEP)).pcr(12) == marked
        host.kill_manager()
        with pytest.raises(HostError, match=r"stateblob .* failed with a TPM error 0x9"):
            host.start_manager(Saved(away))


@pytest.mark.timeout(120)
def test_a_hardware_tpm_that_dies_under_its_manager_is_told_with_its_log(saved_manager: Saved) -> None:
    with vms.short_directory() as directory, Host(directory, vms.IMAGES, firmware=True) as host:
        host.start_manager(saved_manager)
        os.kill(host.hwtpm.swtpm_pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while host.hwtpm.running():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(HostError, match=r"hwtpm\.log"):
            host.hwtpm.check()


@pytest.mark.timeout(120)
def test_the_measurements_of_a_boot_are_those_predicted_from_the_image(saved_manager: Saved) -> None:
    with vms.short_directory() as directory, Host(directory, vms.IMAGES, firmware=True) as host:
        vm = host.start_manager(saved_manager)
        values = measure.expected(vms.IMAGES / "manager")
        assert set(values) == {"4", "9", "11", "12", "13"}
        found = {pcr: vm.agent.check(f"cat /sys/class/tpm/tpm0/pcr-sha256/{pcr}").strip().lower() for pcr in values}
        assert found == values | measure.after_cap(values)


@pytest.mark.parametrize("kind", ["manager", "guest"])
def test_the_expected_measurements_lie_beside_the_image(kind: str) -> None:
    image = vms.IMAGES / kind
    assert (image / "pcrs.json").read_text() == measure.report(image)


@pytest.mark.timeout(300)
@pytest.mark.full
def test_two_builds_of_one_image_are_equal_bit_for_bit() -> None:
    description = vms.IMAGES / "manager" / "image.json"
    before = description.read_text()
    for _ in range(2):
        description.unlink()
        argv = ["/usr/bin/python3", "-m", "image.builder", "manager", "--profile", json.loads(before)["profile"]]
        subprocess.run(argv, cwd=vms.ROOT, check=True, capture_output=True)
        assert description.read_text() == before


@pytest.mark.timeout(600)
@pytest.mark.full
def test_the_production_image_serves_without_a_shell_and_nobody_can_be_asked_to_run_one() -> None:
    argv = ["/usr/bin/python3", "-m", "image.builder", "manager", "--profile", "production"]
    subprocess.run(argv, cwd=vms.ROOT, check=True, capture_output=True, env={**os.environ, "VTPM_IMAGE_LOCK": "ignore"})
    with vms.short_directory() as directory:
        images = directory / "images"
        images.mkdir()
        (images / "manager").symlink_to(vms.IMAGES / "manager-production")
        (images / "guest").symlink_to(vms.IMAGES / "guest")
        with Host(directory, images, firmware=True) as host:
            vm = host.start_manager()
            assert host.links.admin("create", name="a")["state"] == "off"
            assert host.links.admin("start", name="a", power_on=True)["state"] == "running"
            with pytest.raises(HostError, match="has not booted"):
                vm.agent.wait(3)
            host.stop_manager()
            host.start_manager()
            assert host.links.admin("show", name="a")["state"] == "running"


@pytest.mark.timeout(120)
def test_nothing_is_left_when_the_host_side_is_killed(saved_manager: Saved) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from image.host.host import Host; from image.host.saved import Saved\n"
        "host = Host(Path(sys.argv[1]), Path(sys.argv[2]), firmware=True)\n"
        "vm = host.start_manager(Saved(Path(sys.argv[3])))\n"
        "print(vm.pid, host.hwtpm.pid, host.hwtpm.swtpm_pid, flush=True); time.sleep(60)\n"
    )
    with vms.short_directory() as directory:
        argv = [sys.executable, "-c", program, str(directory), str(vms.IMAGES), str(saved_manager.directory)]
        child = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=vms.ROOT)
        assert child.stdout is not None
        pids = [int(word) for word in child.stdout.readline().split()]
        assert len(pids) == 3 and all(os.path.exists(f"/proc/{pid}") for pid in pids)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        deadline = time.monotonic() + 10
        while any(_alive(pid) for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
