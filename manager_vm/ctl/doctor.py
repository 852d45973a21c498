"""``vtpmctl doctor``: what this machine has and lacks, each line with its remedy. Needs no manager."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from manager_vm import packages
from manager_vm.ctl.client import Client, sockets
from manager_vm.errors import VtpmManagerError


class Level(StrEnum):
    """How bad a finding is."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    level: Level
    what: str
    remedy: str = ""


_PROGRAMS = {
    "swtpm": "needed where a manager runs: apt-get install swtpm",
    "unshare": "needed where a manager runs: apt-get install util-linux",
    "setpriv": "needed where a manager runs: apt-get install util-linux",
    "prlimit": "needed where a manager runs: apt-get install util-linux",
    "qemu-system-x86_64": "needed on a host of VMs: apt-get install qemu-system-x86",
}
_MINIMUM_MIB = 512


def examine(where: str) -> list[Finding]:
    """All findings; ``where`` is the manager to ask ("" = none)."""
    return [*_python(), *_programs(), *_versions(), *_devices(), *_memory(), *_manager(where)]


def _python() -> Iterator[Finding]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding(Level.OK, f"Python {version}")


def _programs() -> Iterator[Finding]:
    for name, remedy in _PROGRAMS.items():
        found = shutil.which(name)
        yield Finding(Level.OK, f"{name}: {found}") if found else Finding(Level.WARN, f"{name} is missing", remedy)


def _versions() -> Iterator[Finding]:
    versions = packages.installed()
    if not versions:
        yield Finding(
            Level.WARN, "no dpkg database: versions of swtpm and libtpms are not checked", "check them by hand"
        )
    for sentence in packages.known_vulnerable(versions):
        yield Finding(Level.WARN, sentence, "apt-get upgrade")
    for package in packages.MINIMUM:
        if package in versions:
            yield Finding(Level.OK, f"{package} {versions[package]}")


def _devices() -> Iterator[Finding]:
    if Path("/dev/vtpmx").exists():
        yield Finding(Level.OK, "/dev/vtpmx is there")
    else:
        yield Finding(Level.WARN, "/dev/vtpmx is missing", "in a guest: modprobe tpm_vtpm_proxy")
    groups = Path("/sys/kernel/iommu_groups")
    if groups.is_dir() and any(groups.iterdir()):
        yield Finding(Level.OK, "an IOMMU is active")
    else:
        remedy = "for ivshmem in a VM: QEMU -device intel-iommu,intremap=on and kernel argument intel_iommu=on"
        yield Finding(Level.WARN, "no IOMMU is active", remedy)


def _memory() -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    if total < _MINIMUM_MIB:
        yield Finding(Level.FAIL, f"{total} MiB of memory", f"a manager needs {_MINIMUM_MIB} MiB")
    else:
        yield Finding(Level.OK, f"{total} MiB of memory")


def _manager(where: str) -> Iterator[Finding]:
    if not where:
        yield Finding(Level.WARN, "no manager was named", "name it with -m, or set VTPM_MANAGER")
        return
    for path in sockets(where):
        try:
            with Client.connect(path, timeout=10) as client:
                status = client.call("status")
            yield Finding(Level.OK, f"{path}: manager {status['version']}")
            for warning in status["warnings"]:
                yield Finding(Level.WARN, f"the manager says: {warning}")
        except VtpmManagerError as error:
            yield Finding(Level.FAIL, f"{path}: {error}")
