"""What firmware makes of TPM_RC_RETRY, and so why the shim has OVMF wait instead (QEMU.md, section 6). A bare swtpm."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from image.host import accel
from image.host.machine import VmSpec
from image.host.vm import Vm
from manager_vm.wire import tpm
from tests.integration.conftest import short_directory
from tests.integration.shim import bare_swtpm
from tests.system import reporter, vms
from tests.system.reporter import Report
from tests.system.tpm_proxy import TpmProxy, retry_once

ZERO = "0" * 64
FIRMWARES = range(10)  # PCRs


def is_extend(command: bytes) -> bool:
    return tpm.command_code(command) == tpm.CC.TPM2_PCR_Extend


def is_startup(command: bytes) -> bool:
    return tpm.command_code(command) == tpm.CC.TPM2_Startup


def booted(image: Path, wanted: Callable[[bytes], bool], number: int) -> tuple[Report, list[bytes]]:
    """The report of a boot in which one command was answered with RETRY, and all commands."""
    with short_directory() as directory, bare_swtpm(directory) as swtpm:
        path = directory / "proxy.sock"
        with closing(TpmProxy(path, swtpm, retry_once(wanted, number))) as proxy:
            spec = VmSpec("guest", image, directory / "vm", firmware=True, hwtpm=path)
            with Vm(spec, accel.choose(directory / "accelerator", vms.IMAGES / "guest")) as vm:
                vm.go()
                report = reporter.wait(vm)
            return report, proxy.commands


@pytest.mark.full
@pytest.mark.timeout(300)
def test_ovmf_repeats_no_extend_and_measures_nothing_more_in_this_boot(tmp_path: Path) -> None:
    image = reporter.image(tmp_path / "image")
    report, commands = booted(image, is_extend, 0)  # none
    measured = [number for number in FIRMWARES if report.pcrs[number] != ZERO]
    assert measured == [0, 1, 2, 3, 4, 5, 6, 7, 9] and report.log
    assert sum(map(is_extend, commands)) > 30
    report, commands = booted(image, is_extend, 3)
    assert report.log == b""  # the kernel finds no event log
    assert [number for number in FIRMWARES if report.pcrs[number] != ZERO] == [0]
    assert report.ima and report.pcrs[10] != ZERO  # and a TPM all the same
    extends = [command for command in commands if is_extend(command)]
    assert extends.count(extends[2]) == 1 and len(extends) < 8  # what follows is the kernel's


@pytest.mark.full
@pytest.mark.timeout(300)
def test_ovmf_gives_a_tpm_up_that_answers_its_startup_with_retry(tmp_path: Path) -> None:
    report, _ = booted(reporter.image(tmp_path / "image"), is_startup, 1)
    assert all(report.pcrs[number] == ZERO for number in FIRMWARES) and report.log == b""
