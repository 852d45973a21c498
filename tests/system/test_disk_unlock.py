"""A LUKS volume in an unmodified guest, bound to its vTPM by systemd-cryptenroll: when it opens, and when not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from image.builder.steps import Builder, Layout
from image.builder.tools import Tools, bootstrap
from image.host import accel, machine
from image.host.machine import VmSpec
from image.host.vm import Vm
from manager_vm.errors import HostError
from tests.integration.harness import Manager, until
from tests.integration.test_following import VM
from tests.system import test_follow, vms
from tests.system.test_follow import Hosts

_PACKAGES = (
    "systemd-cryptsetup cryptsetup-bin libtss2-esys-3.0.2-0t64 libtss2-rc0t64 libtss2-mu-4.0.1-0t64 "
    "libtss2-tcti-device0t64"
)
_VOLUME = 128 << 20  # where it begins on the disk, behind the programs for it
_SIZE = 192 << 20
# the programs are trixie's, as the guest is; its image does not have them
_PREPARE = f"""
modprobe -a erofs dm-crypt
mount -t erofs -o ro /dev/disk/by-id/virtio-vm-state /mnt
for each in dev proc sys run tmp; do mount --rbind /$each /mnt/$each; done
losetup --offset {_VOLUME} /dev/loop0 /dev/disk/by-id/virtio-vm-state
"""
_MAKE = """
printf passphrase >/tmp/key
chroot /mnt cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /tmp/key /dev/loop0
chroot /mnt systemd-cryptenroll --unlock-key-file=/tmp/key --tpm2-device=auto --tpm2-pcrs=7 /dev/loop0
rm /tmp/key
"""
_OPEN = "DM_DISABLE_UDEV=1 chroot /mnt systemd-cryptsetup attach secret /dev/loop0 - tpm2-device=auto,headless=1 2>&1"
_CLOSE = "DM_DISABLE_UDEV=1 chroot /mnt systemd-cryptsetup detach secret"
_WRITE = "echo written once >/dev/mapper/secret; sync"
_READ = "head -c 12 /dev/mapper/secret"


class Firmware(Hosts):
    """As in test_follow, through OVMF, with a disk that goes along."""

    disk: Path
    variables: Path
    firmware = True  # OVMF; False: SeaBIOS, which measures other things into PCR 7

    def machine(self, at: Manager, *, arrives: bool) -> Vm:
        """With the firmware's variables as they are: of a VM that moves, or boots again, those that it had."""
        self._count += 1
        directory = self.directory / f"vm{self._count}"
        spec = VmSpec("guest", vms.IMAGES / "guest", directory, hwtpm=self.shims[at].path, uuid=VM)
        spec = replace(spec, firmware=self.firmware, state_disk=self.disk)
        directory.mkdir()
        shutil.copyfile(self.variables, spec.variables)
        return Vm(spec, accel.choose(self.directory / "accelerator", vms.IMAGES / "guest"), arrives=arrives)


def disk(target: Path) -> Path:
    """Programs, and room for a volume."""
    builder, folder = Builder(Layout(vms.ROOT)), target.parent
    bootstrap(builder, "cryptsetup's packages", _PACKAGES.split(), folder / "programs.tar", [])
    argv = ["mkfs.erofs", "--quiet", "--tar=f", f"/mnt/{target.name}", "/mnt/programs.tar"]
    Tools(builder).run("a disk with programs", argv, folder, "see the log")
    assert target.stat().st_size < _VOLUME
    with open(target, "r+b") as file:
        file.truncate(_SIZE)
    return target


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Firmware]:
    """The VM has booted at the first."""
    found = Firmware.__new__(Firmware)
    found.disk, found.variables = disk(tmp_path / "disk"), machine.OVMF_VARS
    with test_follow.two_hosts(lambda *words: _made(found, *words)) as hosts:
        assert hosts is found
        yield found


def _made(found: Firmware, *words: Any) -> Firmware:
    Hosts.__init__(found, *words)
    return found


def restarted(hosts: Firmware, at: Manager, *, firmware: bool) -> None:
    """The VM is powered off and on."""
    hosts.vm.close()
    hosts.firmware = firmware
    hosts.vm = hosts.machine(at, arrives=False)
    hosts.vm.go()
    hosts.vm.agent.wait(400)
    hosts.vm.agent.check(_PREPARE, 120)


def opened(hosts: Firmware) -> str:
    """What is in the volume; HostError with systemd's words if it does not open."""
    hosts.vm.agent.check(f"timeout 60 sh -c '{_OPEN}'", 120)
    found = hosts.vm.agent.check(_READ)
    hosts.vm.agent.check(f"timeout 60 sh -c '{_CLOSE}'", 120)
    return found


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_volume_opens_after_a_reset_and_a_move_and_not_after_a_changed_boot(hosts: Firmware) -> None:
    agent = hosts.vm.agent
    agent.check(_PREPARE, 120)
    agent.check(_MAKE, 120)
    agent.check(f"timeout 60 sh -c '{_OPEN}'; {_WRITE}; timeout 60 sh -c '{_CLOSE}'", 180)
    boot = hosts.site.a.show("v")["boot"]
    hosts.vm.qmp.execute("system_reset")
    until(lambda: hosts.site.a.show("v")["boot"] > boot, 60, "the reset is a boot")
    agent.close()
    agent.wait(400)
    agent.check(_PREPARE, 120)
    assert opened(hosts) == "written once"
    hosts.migrate(hosts.site.b)
    assert opened(hosts) == "written once" and hosts.has() == [hosts.site.b]
    hosts.variables = hosts.directory / "variables.fd"
    shutil.copyfile(hosts.vm.spec.variables, hosts.variables)
    restarted(hosts, hosts.site.b, firmware=False)
    with pytest.raises(HostError, match=r"(?i)pcr|policy|tpm"):
        opened(hosts)
    restarted(hosts, hosts.site.b, firmware=True)
    assert opened(hosts) == "written once"
