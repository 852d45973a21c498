"""Which VM a vTPM belongs to (R6): ``VtpmRecord.vm``, the VM's UUID as SMBIOS and QEMU's -uuid have it, "" = not bound.

Invariant: what is wired is wired for the VM that the record names. So a binding changes only while there is no channel,
and a channel is wired only for that VM; both are decided inside a commit, where nothing comes in between.
"""

from __future__ import annotations

import uuid
from dataclasses import replace

from manager_vm.errors import BoundError, BusyError, ConfigError, StateError, UnknownVtpmError
from manager_vm.protocol.lifecycle import State
from manager_vm.store.records import Contents, VtpmRecord
from manager_vm.vchan.address import Address, Kind

NOBODY = "none"
_MOVING = {State.ARRIVING, State.GONE}


def parse(text: str) -> str:
    """A VM's UUID in its canonical form, "" for "" and "none"; ConfigError for anything else."""
    if text in ("", NOBODY):
        return ""
    try:
        found = uuid.UUID(text)
    except ValueError:
        raise ConfigError(f"{text[:80]!r} is no UUID of a VM: use the one of its -uuid, or {NOBODY!r}") from None
    if found.int == 0:  # what QEMU reports of a VM that was given none
        raise ConfigError("a UUID of zeros is no VM's own: give the VM one with QEMU's -uuid")
    return str(found)


def demand(record: VtpmRecord, vm: str) -> None:
    """BoundError where the vTPM belongs to another VM than ``vm`` ("": the host has not said which it is)."""
    if record.vm and record.vm != vm:
        asked = f"VM {vm}" if vm else "a VM that the host has not named (--vm UUID)"
        raise BoundError(f"vTPM {record.name!r} belongs to VM {record.vm} and is not served to {asked}")


def demand_own(name: str, where: Address) -> None:
    """ConfigError where this is another vTPM's shim."""
    if where.kind is Kind.SHIM and where.argument != name:
        raise ConfigError(f"a shim's channel is named as its vTPM: shim:{name}, not {where}")


def bound(contents: Contents, vtpm: str, vm: str) -> Contents:
    """With another VM ("" = none) for the vTPM with this uuid; BusyError while a channel is wired to it."""
    record = contents.vtpms.get(vtpm)
    if record is None:
        raise UnknownVtpmError("the vTPM was destroyed meanwhile")
    if record.vm == vm:
        return contents
    if record.state in _MOVING:
        raise StateError(f"vTPM {record.name!r} moves: its VM can be changed when that is over")
    if record.channel:
        raise BusyError(f"vTPM {record.name!r} is attached to {record.channel}; 'detach {record.name}' first")
    return contents.with_vtpm(replace(record, vm=vm))
