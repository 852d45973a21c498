"""VMs that know nothing of us: OVMF and SeaBIOS measure, Linux finds a TPM, IMA uses it; a manager has the vTPM.

The manager is a ``dev`` one on this host: whatever the channel is, the shim sees the same.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from image.host import accel
from image.host.machine import VmSpec
from image.host.vm import Vm
from manager_vm.errors import HostError
from manager_vm.trust import event_log
from tests.integration.conftest import managed, short_directory
from tests.integration.harness import Manager, until
from tests.integration.shim import Shim, shimmed
from tests.system import reporter, vms
from tests.system.test_guest import EXTEND, PCR, PCR_WITH_ONE_EXTEND

ZERO = "0" * 64
FIRMWARES = range(10)  # PCRs


@pytest.fixture
def manager() -> Iterator[Manager]:
    """One with vTPM "a"; it is the shim that attaches it."""
    with short_directory() as directory:
        (directory / "m").mkdir(mode=0o711)
        with managed(directory / "m", None, ()) as one:
            one.start().ctl("create", "a")
            yield one


@pytest.fixture
def shim(manager: Manager) -> Iterator[Shim]:
    with shimmed(manager) as one:
        yield one


@pytest.fixture(scope="session")
def reporters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reporter.image(tmp_path_factory.mktemp("reporter") / "image")


def machine(shim: Shim, image: Path, model: str, *, firmware: bool) -> Vm:
    """A VM whose TPM is the shim's; its processors wait."""
    directory = shim.path.parent / "vm"
    spec = VmSpec("guest", image, directory, firmware=firmware, hwtpm=shim.path, tpm_model=model)
    return Vm(spec, accel.choose(shim.path.parent / "accelerator", vms.IMAGES / "guest"))


def replayed(log: Path) -> dict[int, str]:
    """What tpm2_eventlog makes of an event log: SHA-256 PCRs."""
    said = subprocess.run(["tpm2_eventlog", str(log)], capture_output=True, text=True, check=True).stdout
    bank = said.split("\npcrs:\n")[1].split("sha256:\n")[1].split("  sha384:")[0]
    return {int(number): value.upper() for number, value in re.findall(r"(\d+) *: 0x([0-9a-f]{64})", bank)}


def assert_measured(report: reporter.Report, directory: Path, unused: list[int]) -> None:
    """The log explains PCR 0 to 9, by our reading of it and by tpm2-tools', and IMA has begun. ``unused`` are zero."""
    pcrs = {number: report.pcrs[number] for number in FIRMWARES}
    ours = event_log.replay(event_log.parse(report.log), list(FIRMWARES))
    assert {number: value.hex().upper() for number, value in ours.items()} == pcrs
    (directory / "log").write_bytes(report.log)
    assert {number: replayed(directory / "log").get(number, ZERO) for number in FIRMWARES} == pcrs
    assert [number for number in FIRMWARES if pcrs[number] == ZERO] == unused
    assert report.ima and report.pcrs[10] != ZERO


@pytest.mark.timeout(300)
def test_ovmf_measures_the_boot_into_the_vtpm_and_linux_and_ima_go_on_with_it(
    shim: Shim, reporters: Path, manager: Manager, tmp_path: Path
) -> None:
    with machine(shim, reporters, "tpm-crb", firmware=True) as vm:
        vm.go()
        report = reporter.wait(vm)
        assert_measured(report, tmp_path, unused=[8])
        assert report.pcrs[16] == ZERO != report.extended
        assert manager.show("a")["boot"] == 1
        with pytest.raises(HostError, match="TPM emulator does not support migration"):
            vm.save(tmp_path / "saved")  # refused before anything is copied


@pytest.mark.full
@pytest.mark.timeout(300)
def test_seabios_measures_too_and_each_reset_of_its_vm_is_a_new_boot_with_fresh_pcrs(
    shim: Shim, reporters: Path, manager: Manager, tmp_path: Path
) -> None:
    with machine(shim, reporters, "tpm-tis", firmware=False) as vm:
        vm.go()
        first = reporter.wait(vm, 1)
        assert_measured(first, tmp_path, unused=[8, 9])
        assert first.pcrs[16] == ZERO != first.extended
        boot = manager.show("a")["boot"]
        vm.qmp.execute("system_reset")
        second = reporter.wait(vm, 2)
        assert (second.pcrs[16], second.extended) == (ZERO, first.extended)
        reported = [int(number) for number in re.findall(r"^boot (\d+)", shim.log(), re.M)]
        assert boot < manager.show("a")["boot"] == reported[-1]  # SeaBIOS resets again, in several ways


@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_vm_whose_boot_no_manager_acknowledges_ends_at_its_reset_and_starts_again_when_one_does(
    shim: Shim, reporters: Path, manager: Manager
) -> None:
    with machine(shim, reporters, "tpm-crb", firmware=False) as vm:
        manager.stop()
        with suppress(HostError):  # it ends before it answers
            vm.qmp.execute("system_reset")
        until(lambda: not vm.running(), 30, "QEMU has ended")
        with pytest.raises(HostError, match="ended with status 1"):
            vm.check()
    assert "is not acknowledged" in shim.log()
    manager.start()
    with machine(shim, reporters, "tpm-crb", firmware=False) as vm:
        vm.go()
        assert reporter.wait(vm).pcrs[16] == ZERO


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", ["tpm-tis", "tpm-crb"])
def test_a_whole_guest_uses_its_tpm_through_a_restart_of_the_manager_and_a_reset(
    shim: Shim, manager: Manager, tmp_path: Path, model: str
) -> None:
    with machine(shim, vms.IMAGES / "guest", model, firmware=True) as vm:
        vm.go()
        vm.agent.wait(400)
        told = vm.agent.check("tpm2_eventlog /sys/kernel/security/tpm0/binary_bios_measurements 2>&1", 120)
        read = vm.agent.check("tpm2_pcrread sha256:0,1,2,3,4,5,6,7,8,9,10", 120)
        pcrs = {int(number): value for number, value in re.findall(r"(\d+) *: 0x([0-9A-F]{64})", read)}
        (tmp_path / "told").write_text(told)
        bank = told.split("\npcrs:\n")[1].split("sha256:\n")[1].split("  sha384:")[0]
        logged = {int(number): value.upper() for number, value in re.findall(r"(\d+) *: 0x([0-9a-f]{64})", bank)}
        assert {number: pcrs[number] for number in FIRMWARES} == {n: logged.get(n, ZERO) for n in FIRMWARES}
        assert pcrs[10] != ZERO
        vm.agent.check(EXTEND.replace(" 7:", " 23:"), 120)
        manager.stop()
        manager.start()
        pcr_23 = PCR.replace(":7", ":23")
        assert vm.agent.check(pcr_23, 120).strip() == PCR_WITH_ONE_EXTEND
        vm.qmp.execute("system_reset")
        until(lambda: manager.show("a")["boot"] == 2, 60, "the manager has heard of the reset")
        vm.agent.close()
        vm.agent.wait(400)
        assert int(vm.agent.check(pcr_23, 120).strip(), 16) == 0
        assert vm.agent.check("tpm2_pcrread sha256:0,2,3,6,7", 120).split()[-1] == "0x" + pcrs[7]
