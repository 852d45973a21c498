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

_PATIENCE = 150.0  # seconds for a line on the console
_INDEX, _KEY, _FIRST_TRANSIENT = 0x1500001, 0x81000001, 0x80000000
_OWNER_INDEX = 0x02060006  # TPMA_NV: OWNERWRITE, AUTHWRITE, OWNERREAD, AUTHREAD, NO_DA
_CONTENT = b"12345678"


@contextmanager
def booting(directory: Path, image: Path, state: Path) -> Iterator[Vm]:
    """A manager's VM on its own, from power-on."""
    spec = VmSpec("manager", image, directory / "vm", state_disk=state)
    with Host(directory, vms.IMAGES) as host, Vm(spec, host.accelerator) as vm:
        vm.go()
        yield vm


def console_says(vm: Vm, *texts: str) -> str:
    """Wait until one of ``texts`` stands on the console; all of it."""
    deadline = time.monotonic() + _PATIENCE
    while not any(text in (said := vm.spec.console.read_text(errors="replace")) for text in texts):
        assert time.monotonic() < deadline, said
        time.sleep(0.1)
    return said


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
            console_says(vm, "dm-verity device corrupted", "Kernel panic")


@pytest.mark.timeout(300)
def test_a_state_disk_that_holds_something_else_is_refused_and_left_as_it_is() -> None:
    with vms.short_directory() as directory:
        state = directory / "state.img"
        content = b"somebody's data" + bytes((8 << 20) - 15)
        state.write_bytes(content)
        with booting(directory, vms.IMAGES / "manager", state) as vm:
            said = console_says(vm, "refused", "READY")
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
        """The responses; one start of Python for all, which is slow there."""
        program = "import os, sys; f = os.open('/dev/tpm0', os.O_RDWR)\nfor c in sys.argv[1:]:"
        program += " os.write(f, bytes.fromhex(c)); print(os.read(f, 4096).hex())"
        said = self._vm.agent.check(f'python3 -c "{program}" {" ".join(command.hex() for command in commands)}')
        return [bytes.fromhex(line) for line in said.split()]

    def good(self, *commands: bytes) -> list[bytes]:
        """The responses to commands that must succeed."""
        responses = self.execute(*commands)
        assert [raw.rc(response) for response in responses] == [0] * len(commands)
        return responses

    def pcr(self) -> str:
        """PCR 11, SHA-256."""
        return self.good(raw.pcr_read(11))[0][-32:].hex()

    def furnish(self) -> tuple[str, bytes]:
        """An NV index, a persistent key, and something in PCR 11; the PCR and ReadPublic of the key."""
        where = _KEY.to_bytes(4, "big")
        *_, pcr, key = self.good(
            tpm.nv_define_space(_INDEX, _OWNER_INDEX, len(_CONTENT), tpm.TPM_RH_OWNER),
            tpm.nv_write(_INDEX, 0, _CONTENT, tpm.TPM_RH_OWNER),
            raw.create_primary(),
            tpm.command(tpm.CC.TPM2_EvictControl, where, handles=(tpm.TPM_RH_OWNER, _FIRST_TRANSIENT), auths=1),
            tpm.flush_context(_FIRST_TRANSIENT),
            raw.pcr_extend(11),
            raw.pcr_read(11),
            tpm.read_public(_KEY),
        )
        return pcr[-32:].hex(), key

    def look(self) -> tuple[str, bytes, bytes]:
        """PCR 11, what the index holds, ReadPublic of the key."""
        pcr, nv, key = self.good(raw.pcr_read(11), tpm.nv_read(_INDEX, 0, len(_CONTENT)), tpm.read_public(_KEY))
        return pcr[-32:].hex(), tpm.parameters(nv[tpm.HEADER_SIZE :])[2:], key


@pytest.mark.timeout(900)
def test_the_hardware_tpm_outlives_its_vms_and_each_boot_has_pcrs_of_its_own(saved_manager: Saved) -> None:
    expected = measure.expected(vms.IMAGES / "manager")["11"]
    with vms.short_directory() as directory:
        with Host(directory, vms.IMAGES, firmware=True) as host:
            measured, key = HardwareTpmOfVm(host.start_manager(saved_manager)).furnish()
            pids = host.hwtpm.pid, host.hwtpm.swtpm_pid
            assert measured != expected
            host.stop_manager()
            hardware = HardwareTpmOfVm(host.start_manager())
            assert hardware.look() == (expected, _CONTENT, key)
            assert (host.hwtpm.pid, host.hwtpm.swtpm_pid) == pids
            hardware.good(raw.pcr_extend(11))
            host.kill_manager()
        with Host(directory, vms.IMAGES, firmware=True) as host:
            assert HardwareTpmOfVm(host.start_manager()).look() == (expected, _CONTENT, key)


@pytest.mark.timeout(300)
def test_a_saved_manager_is_restored_again_and_again_each_time_with_its_own_tpm(saved_manager: Saved) -> None:
    expected = measure.expected(vms.IMAGES / "manager")["11"]
    with vms.short_directory() as directory, Host(directory, vms.IMAGES, firmware=True) as host:
        for _ in range(2):
            hardware = HardwareTpmOfVm(host.start_manager(saved_manager))
            assert hardware.pcr() == expected
            hardware.furnish()  # there is no such index yet
            host.kill_manager()


@pytest.mark.timeout(300)
def test_a_manager_that_arrives_finds_this_hosts_tpm_and_takes_none_of_it_along(saved_manager: Saved) -> None:
    with vms.short_directory() as directory, Host(directory, vms.IMAGES, firmware=True) as host:
        measured, key = HardwareTpmOfVm(host.start_manager(saved_manager)).furnish()
        host.kill_manager()
        vm = host.start_manager(saved_manager, arriving=Arriving.KEEP)
        assert HardwareTpmOfVm(vm).look() == (measured, _CONTENT, key)
        away = directory / "away"
        away.mkdir()
        saved.save(vm, away)
        assert KEPT in (away / "memory").read_bytes()
        host.kill_manager()
        assert HardwareTpmOfVm(host.start_manager(Saved(away), arriving=Arriving.KEEP)).look()[0] == measured
        host.kill_manager()
        with pytest.raises(HostError, match=r"stateblob .* failed with a TPM error 0x9"):
            host.start_manager(Saved(away))


@pytest.mark.timeout(120)
def test_a_manager_whose_hardware_tpm_dies_is_told_of_and_the_next_start_has_power_again(saved_manager: Saved) -> None:
    with vms.short_directory() as directory, Host(directory, vms.IMAGES, firmware=True) as host:
        host.start_manager(saved_manager)
        os.kill(host.hwtpm.swtpm_pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while host.hwtpm.running():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(HostError, match=r"hwtpm\.log"):
            host.hwtpm.check()
        host.kill_manager()
        host.start_manager(saved_manager, arriving=Arriving.KEEP)
        host.hwtpm.check()


@pytest.mark.timeout(120)
def test_the_measurements_of_a_boot_are_those_predicted_from_the_image(saved_manager: Saved) -> None:
    with vms.short_directory() as directory, Host(directory, vms.IMAGES, firmware=True) as host:
        vm = host.start_manager(saved_manager)
        values = measure.expected(vms.IMAGES / "manager")
        assert set(values) == {"4", "9", "11", "12", "13"}
        found = {pcr: vm.agent.check(f"cat /sys/class/tpm/tpm0/pcr-sha256/{pcr}").strip().lower() for pcr in values}
        assert found == values


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
