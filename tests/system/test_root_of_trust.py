"""Which boots of the real appliance get its root key: firmware, UKI, dm-verity, hardware TPM, state disk."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from image import measure
from image.host import hwtpm, provision
from image.host.guest import Guest
from image.host.host import Host
from image.host.saved import Saved
from manager_vm.errors import VtpmManagerError
from manager_vm.trust.authority import AuthorityDirectory
from tests.system import cut_standin, vms
from tests.system.test_guest import EXTEND, PCR, PCR_WITH_ONE_EXTEND
from tests.system.test_reset import PERSIST, PERSISTED, VOLATILE, VOLATILE_CHECK

_SERVES = "manager_vm.daemon: READY"
# what a guest's commands see while the manager is away: how many were answered, how many were not
LOOP = "(g=0; b=0; while ! test -e /tmp/stop; do tpm2_getrandom -o /dev/null 1 2>/tmp/why && g=$((g+1)) || b=$((b+1)); "
LOOP += "echo $g $b >/tmp/seen; sleep 1; done) </dev/null >/dev/null 2>&1 &"


def refused(host: Host, text: str, stub_arguments: str = "") -> str:
    """Power the manager on; it must not serve, and say why on its console."""
    console = host.manager_spec(None).console
    console.unlink(missing_ok=True)
    vm = host.power_on_manager(stub_arguments=stub_arguments)
    said = vms.console_says(vm, text, _SERVES)
    assert text in said and _SERVES not in said
    host.kill_manager()
    return said


@pytest.mark.timeout(1200)
def test_an_approved_upgrade_keeps_every_vtpm_and_the_revoked_image_never_unseals_again(lab: vms.Lab) -> None:
    first, second = lab.guest("a"), lab.guest("b")
    for guest in (first, second):
        guest.vm.agent.check(EXTEND)
        guest.vm.agent.check(PERSIST)
    first.vm.agent.check(VOLATILE)
    second.vm.agent.run(LOOP)
    host, old = lab.host, lab.host.images
    newer = vms.second_image(host.directory / "second")
    host.links.admin("approve", statement=provision.approve(host.authority, newer / "manager"))
    host.stop_manager()
    host.images = newer
    host.start_manager()
    assert "vm.build=2" in lab.manager.agent.check("cat /proc/cmdline")
    assert pcr_11(lab) == json.loads((newer / "manager/pcrs.json").read_text())["after_cap"]["11"]
    seen_intact(first)
    first.vm.agent.check(VOLATILE_CHECK)
    seen_intact(second)
    answered, unanswered = map(int, second.vm.agent.check("touch /tmp/stop; cat /tmp/seen").split())
    assert answered > 0
    print(f"commands of the second guest during the upgrade: {answered} answered, {unanswered} failed")
    revocation = AuthorityDirectory.open(host.authority).revoke(below=1, reason="superseded")
    host.links.admin("revoke", statement=revocation.read_bytes())
    host.stop_manager()
    host.images = old
    refused(host, "is revoked, and the hardware TPM refuses it")


def seen_intact(guest: Guest) -> None:
    """NV, persistent objects, certificates, PCRs."""
    assert guest.vm.agent.check(PCR, 120).strip() == PCR_WITH_ONE_EXTEND
    assert guest.vm.agent.check(PERSISTED).startswith("12345678")


def pcr_11(lab: vms.Lab) -> str:
    """As the manager's kernel reads it."""
    return lab.manager.agent.check("cat /sys/class/tpm/tpm0/pcr-sha256/11").strip().lower()


@pytest.mark.timeout(600)
def test_an_extra_kernel_argument_is_named_by_its_pcr_and_gets_no_root_key(lab: vms.Lab) -> None:
    lab.host.stop_manager()
    said = refused(lab.host, "the root key stays sealed", "an.extra=argument")
    assert "PCR 12 is" in said and "PCR 4 is" not in said


@pytest.mark.timeout(1200)
@pytest.mark.full
def test_an_older_state_disk_and_another_hardware_tpm_are_refused_each_by_its_own_error(lab: vms.Lab) -> None:
    host = lab.host
    disk, older, own = host.directory / "state.img", host.directory / "older.img", host.directory / "hwtpm"
    host.stop_manager()
    shutil.copyfile(disk, older)
    host.start_manager()
    host.links.admin("create", name="a")
    host.stop_manager()
    shutil.copyfile(disk, host.directory / "newest.img")
    shutil.copyfile(older, disk)
    refused(host, "is not the anchored one: it is older")
    shutil.copyfile(host.directory / "newest.img", disk)
    host.close()
    with Host(host.directory, host.images, firmware=True) as again:
        own.rename(host.directory / "kept")
        refused(again, "not the one that the root key is sealed to")
    shutil.rmtree(own)
    (host.directory / "kept").rename(own)
    with Host(host.directory, host.images, firmware=True) as again:
        again.start_manager()
        assert [vtpm["name"] for vtpm in again.links.admin("list")] == ["a"]


@pytest.mark.timeout(600)
@pytest.mark.full
def test_an_image_that_nobody_approved_gets_no_root_key(lab: vms.Lab) -> None:
    lab.host.stop_manager()
    lab.host.images = vms.second_image(lab.host.directory / "second")
    values = measure.expected(Path(lab.host.images) / "manager")
    said = refused(lab.host, "what has booted is not approved")
    assert f"PCR 4 is {values['4'][:16]}" in said and f"PCR 9 is {values['9'][:16]}" in said


@pytest.mark.timeout(600)
@pytest.mark.full
@pytest.mark.parametrize("point", [cut_standin.BEFORE, cut_standin.DONE, cut_standin.ANSWERED])
def test_a_vm_that_is_cut_off_around_the_anchors_write_finds_one_true_manifest(
    saved_manager: Saved, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    with vms.short_directory() as directory:
        monkeypatch.setenv("CUT", str(directory))
        (directory / "point").write_text(point)
        monkeypatch.setattr(hwtpm, "PROGRAM", "tests.system.cut_standin")
        with Host(directory, vms.IMAGES, firmware=True) as host:
            host.start_manager(saved_manager)
            (directory / "armed").touch()
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(host.links.admin, "create", name="a", timeout=60.0)
                await_file(directory / "reached")
                host.kill_manager()
                host.hwtpm.close()
                with pytest.raises(VtpmManagerError):
                    asked.result()
            (directory / "armed").unlink()
            host.start_manager()
            found = [vtpm["name"] for vtpm in host.links.admin("list")]
            assert found == ([] if point == cut_standin.BEFORE else ["a"])
            host.links.admin("create", name="b")


def await_file(path: Path) -> None:
    """Until it is there."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
