"""What operators ask about snapshots: which are kept, how many, and that a VM may come back with one's ticket."""

from __future__ import annotations

import logging
from typing import Any

from manager_vm.errors import BusyError, ConfigError, StateError
from manager_vm.store.manifest import Manifest
from manager_vm.store.records import VtpmRecord
from manager_vm.vtpm import snapshots
from manager_vm.vtpm.registry import Registry
from manager_vm.vtpm.steps import Disk

log = logging.getLogger(__name__)


class Snapshots:
    """Thread-safe."""

    def __init__(self, manifest: Manifest, registry: Registry, disk: Disk) -> None:
        self._manifest = manifest
        self._registry = registry
        self._disk = disk

    def listed(self, args: dict[str, Any]) -> dict[str, Any]:
        """Those of vTPM ``name``, oldest first; how many are kept, at most; which may come back."""
        return self._told(self._record(args))

    def keep(self, args: dict[str, Any]) -> dict[str, Any]:
        """Keep ``count`` of vTPM ``name`` from now on, 0 = none: there is no way back then."""
        count = args.get("count")
        if type(count) is not int or count < 0:
            raise ConfigError("name how many snapshots are to be kept by a number")
        record = self._record(args)
        snapshots.allow(self._disk, self._manifest, record.uuid, count)
        return self._told(self._record(args))

    def drop(self, args: dict[str, Any]) -> dict[str, Any]:
        """Give up ``snapshot`` of vTPM ``name``."""
        record = self._record(args)
        snapshots.drop(self._disk, self._manifest, record.uuid, _snapshot(args))
        return self._told(record)

    def revert(self, args: dict[str, Any]) -> dict[str, Any]:
        """Let the next VM that comes with the ticket of ``snapshot`` have vTPM ``name`` as it was then, once.

        ``now``: without any VM, for one whose disks were brought back while it was off: the vTPM is parked as it was.
        """
        record, wanted = self._record(args), _snapshot(args)
        if not self._disk.most:
            raise StateError("this manager lets no vTPM go back ('snapshots' in its configuration is 0)")
        if args.get("now") is True:
            self._demand_unused(record)
            self._registry.revert(record.name, wanted, group=record.group)
        else:
            self._manifest.commit(lambda contents: snapshots.permit(contents, record.uuid, wanted))
            log.info("vTPM %s: may go back to snapshot %s, once", record.name, wanted)
        return self._told(self._record(args))

    def _demand_unused(self, record: VtpmRecord) -> None:
        if self._registry.get(record.name).live:
            raise BusyError(
                f"a guest is using vTPM {record.name!r}: end its VM first, or come back with its saved image"
            )

    def _record(self, args: dict[str, Any]) -> VtpmRecord:
        name, group = args.get("name"), args.get("group")
        if not isinstance(name, str) or not name:
            raise ConfigError("name a vTPM")
        return self._registry.record(name, group if isinstance(group, str) else None)

    def _told(self, record: VtpmRecord) -> dict[str, Any]:
        found = snapshots.of(self._manifest.contents, record.uuid)
        rows = [{"snapshot": each.id, "taken": each.taken, "boot": each.boot} for each in found.kept]
        said = {"name": record.name, "keep": min(record.keep, self._disk.most), "most": self._disk.most}
        return {**said, "permitted": found.permitted, "reverted": record.reverted, "snapshots": rows}


def _snapshot(args: dict[str, Any]) -> str:
    wanted = args.get("snapshot")
    if not isinstance(wanted, str) or not wanted:
        raise ConfigError("name a snapshot by its id; 'snapshots NAME' lists them")
    return wanted
