"""vtpm.binding, vtpm.changes: which VM a vTPM belongs to, decided where commits are made."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest

from manager_vm.errors import BoundError, BusyError, ConfigError, StateError, UnknownVtpmError
from manager_vm.protocol.lifecycle import State
from manager_vm.store import packing
from manager_vm.store.records import Contents, VtpmRecord
from manager_vm.vtpm import binding, changes

OURS, OTHER = "6f2c0a51-5a0e-4f0c-8f5b-0d7f0c6f2f11", "11111111-2222-4333-8444-555555555555"
RECORD = VtpmRecord("u", "web", State.RUNNING, 1000, "blob", bytes(32), {}, {}, vm=OURS)


def having(record: VtpmRecord) -> Contents:
    return Contents(1, b"ca", b"key").with_vtpm(record)


@pytest.mark.parametrize(("text", "vm"), [("", ""), ("none", ""), (OURS, OURS), (OURS.upper(), OURS)])
def test_a_vms_uuid_has_one_form(text: str, vm: str) -> None:
    assert binding.parse(text) == vm


@pytest.mark.parametrize("text", ["None", "web1", OURS[:-1], "00000000-0000-0000-0000-000000000000"])
def test_what_names_no_vm_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        binding.parse(text)


@pytest.mark.parametrize("vm", [OTHER, ""])
def test_a_commit_wires_a_bound_vtpm_for_its_vm_only_and_unwires_it_always(vm: str) -> None:
    with pytest.raises(BoundError, match=f"'web' belongs to VM {OURS}"):
        changes.wire(having(RECORD), "u", "ivshmem", vm)
    wired = changes.wire(having(RECORD), "u", "ivshmem", OURS)
    assert wired.vtpms["u"].channel == "ivshmem"
    assert changes.wire(wired, "u", "").vtpms["u"].channel == ""
    free = having(replace(RECORD, vm=""))
    assert changes.wire(free, "u", "ivshmem", vm).vtpms["u"].channel == "ivshmem"


def test_a_binding_changes_only_where_nothing_is_wired_and_nothing_moves() -> None:
    assert binding.bound(having(RECORD), "u", OTHER).vtpms["u"].vm == OTHER
    assert binding.bound(having(RECORD), "u", "").vtpms["u"].vm == ""
    wired = having(replace(RECORD, channel="ivshmem"))
    assert binding.bound(wired, "u", OURS) is wired
    with pytest.raises(BusyError, match="detach web"):
        binding.bound(wired, "u", "")
    for state in (State.ARRIVING, State.GONE):
        with pytest.raises(StateError, match="moves"):
            binding.bound(having(replace(RECORD, state=state)), "u", OTHER)
    with pytest.raises(UnknownVtpmError):
        binding.bound(having(RECORD), "w", OTHER)


def test_a_binding_survives_its_bytes_and_a_record_of_before_has_none() -> None:
    contents = having(RECORD)
    assert packing.unpack(packing.pack_open(contents), packing.pack_secret(contents)).vtpms["u"].vm == OURS
    before = msgpack.unpackb(packing.pack_open(contents))
    del before["vtpms"][0]["vm"]
    old = packing.unpack(msgpack.packb(before), packing.pack_secret(contents))
    assert old.vtpms["u"] == replace(RECORD, vm="")
