"""Saved VMs: memory (with the hardware TPM's state in QEMU's stream), state disk and firmware variables, kept together.

Booting takes half a minute where the processor is emulated, restoring a third of a second. A saved VM belongs to
one image build and one machine; its directory's name says which.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from image.host import machine
from image.host.machine import VmSpec
from image.host.vm import Vm
from manager_vm.errors import HostError


@dataclass(frozen=True, slots=True)
class Saved:
    """A saved VM. Only ``find`` and ``save`` make one."""

    directory: Path

    @property
    def memory(self) -> Path:
        return self.directory / "memory"

    def copy_disks(self, state: Path, variables: Path, authority: Path) -> None:
        """Put copies of the disks where the restored VM will look for them, and the authority that it knows."""
        if (self.directory / authority.name).exists():
            shutil.copytree(self.directory / authority.name, authority, dirs_exist_ok=True)
        variables.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, target in (("state.img", state), ("variables.fd", variables)):
            if (self.directory / name).exists():
                _copy(self.directory / name, target)


def find(store: Path, spec: VmSpec, accelerator: str, make: Callable[[Path], None]) -> Saved:
    """The saved VM for this image and machine; ``make(directory)`` boots and saves it if there is none."""
    directory = store / f"{spec.name}-{_key(spec, accelerator)}"
    if not (directory / "memory").exists():
        for old in store.glob(f"{spec.name}-*"):
            shutil.rmtree(old)
        scratch = store / f".{spec.name}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        make(scratch)
        scratch.rename(directory)
    return Saved(directory)


def save(vm: Vm, target: Path, authority: Path | None = None) -> None:
    """Save a running VM into ``target``; it stays stopped. ``authority``: the directory of who may drive it."""
    if authority is not None:
        shutil.copytree(authority, target / authority.name)
    vm.save(target / "memory.part")
    if vm.spec.state_disk is not None:
        _copy(vm.spec.state_disk, target / "state.img")
    if vm.spec.firmware:
        _copy(vm.spec.variables, target / "variables.fd")
    (target / "memory.part").rename(target / "memory")


def _key(spec: VmSpec, accelerator: str) -> str:
    """What must be the same for a saved VM to be restored: image, machine, accelerator, firmware, QEMU."""
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True).stdout
    parts = [(spec.image / "image.json").read_text(), version, machine.MACHINE, accelerator]
    parts += [str(spec.memory_mib), str(spec.firmware), str(spec.slots), Path(machine.__file__).read_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _copy(source: Path, target: Path) -> None:
    """A sparse copy."""
    done = subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(source), str(target)], capture_output=True)
    if done.returncode:
        raise HostError(f"cannot copy {source}: {done.stderr.decode().strip()}; is the disk full?")
