"""Real VMs that QEMU saves and brings back, with what their vTPM was then: files, and snapshots inside one QEMU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from image.host import accel
from image.host.machine import VmSpec
from image.host.vm import Vm
from manager_vm.errors import HostError
from tests.integration.conftest import managed, short_directory
from tests.integration.harness import Manager, until
from tests.integration.shim import Shim, shimmed
from tests.integration.test_following import VM
from tests.system import vms

DISK = "saves"  # a block node that has the VM's memory
EXTEND = "tpm2_pcrextend 16:sha256=" + "11" * 32


@pytest.fixture
def manager() -> Iterator[Manager]:
    with short_directory() as directory:
        (directory / "m").mkdir(mode=0o711)
        with managed(directory / "m", None, ()) as one:
            one.start().ctl("create", "v", "--vm", VM)
            yield one


@pytest.fixture
def shim(manager: Manager) -> Iterator[Shim]:
    with shimmed(manager, "v", VM) as one:
        yield one


def machine(shim: Shim, *, saved: Path | None = None) -> Vm:
    spec = VmSpec("guest", vms.IMAGES / "guest", shim.path.parent / "vm", hwtpm=shim.path, uuid=VM)
    return Vm(spec, accel.choose(shim.path.parent / "accelerator", vms.IMAGES / "guest"), restore=saved)


def booted(vm: Vm) -> Vm:
    vm.go()
    vm.agent.wait(400)
    return vm


def pcr(vm: Vm) -> str:
    return vm.agent.check("tpm2_pcrread sha256:16", 120).split()[-1]


def extended(vm: Vm) -> str:
    vm.agent.check(EXTEND, 120)
    return pcr(vm)


def finished(vm: Vm, job: str) -> None:
    """Wait for a job of QEMU's; HostError if it failed."""

    def state() -> dict[str, str] | None:
        found = next(each for each in vm.qmp.execute("query-jobs") if each["id"] == job)
        return found if found["status"] == "concluded" else None

    done = until(state, 60, job)
    vm.qmp.execute("job-dismiss", id=job)
    if "error" in done:
        raise HostError(f"{job}: {done['error']}")


def with_room_for_snapshots(vm: Vm) -> None:
    """A node for memory, which is nobody's disk."""
    size = 1 << 30
    path = vm.spec.directory / "saves.qcow2"
    path.touch(0o600)
    vm.qmp.execute("blockdev-add", **{"driver": "file", "node-name": "room", "filename": str(path)})
    vm.qmp.execute(
        "blockdev-create", **{"job-id": "room", "options": {"driver": "qcow2", "file": "room", "size": size}}
    )
    finished(vm, "room")
    vm.qmp.execute("blockdev-add", **{"driver": "qcow2", "node-name": DISK, "file": "room"})


def snapshot(vm: Vm, verb: str, tag: str) -> None:
    """savevm, loadvm; then the VM runs."""
    vm.qmp.execute(verb, **{"job-id": verb, "tag": tag, "vmstate": DISK, "devices": [DISK]})
    finished(vm, verb)
    if not vm.qmp.execute("query-status")["running"]:
        vm.go()


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_snapshot_of_a_running_vm_is_loaded_again_with_its_vtpm_when_an_admin_permits_it(
    shim: Shim, manager: Manager
) -> None:
    manager.ctl("snapshots", "v", "--keep", "2")
    with closing(booted(machine(shim))) as vm:
        with_room_for_snapshots(vm)
        before = extended(vm)
        snapshot(vm, "snapshot-save", "one")
        assert pcr(vm) == before
        (kept,) = manager.ctl("snapshots", "v")["snapshots"]
        after = extended(vm)
        manager.ctl("revert", "v", kept["snapshot"], "--yes")
        snapshot(vm, "snapshot-load", "one")
        vm.agent.close()
        assert pcr(vm) == before != after
        assert manager.show("v")["reverted"] == 1
        assert extended(vm) == after  # the same value once more, in the memory that came back
        with pytest.raises(HostError, match="snapshot-load"):
            snapshot(vm, "snapshot-load", "one")  # once
        assert "is void" in shim.log() and manager.show("v")["reverted"] == 1


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_vm_that_was_saved_to_a_file_is_restored_once_and_again_when_an_admin_permits_it(
    shim: Shim, manager: Manager, tmp_path: Path
) -> None:
    manager.ctl("snapshots", "v", "--keep", "1")
    file = tmp_path / "saved"
    with closing(booted(machine(shim))) as vm:
        before = extended(vm)
        vm.save(file)
    with closing(machine(shim, saved=file)) as vm:
        vm.go()
        assert pcr(vm) == before
        extended(vm)
    with pytest.raises(HostError):
        machine(shim, saved=file)
    manager.ctl("revert", "v", manager.ctl("snapshots", "v")["snapshots"][0]["snapshot"], "--yes")
    with closing(machine(shim, saved=file)) as vm:
        vm.go()
        assert pcr(vm) == before
    assert manager.show("v")["reverted"] == 1
