"""Ways back to an earlier state of a vTPM, for VMs that were saved: kept where wanted, used when permitted.

A VM's saved image has a ticket, which names a park. What consumes the park (a command, a boot, ``start``) makes the
ticket void; with ``VtpmRecord.keep`` a copy of it is kept before, the oldest makes room. A void ticket brings nothing
back by itself: an admin permits one snapshot, once, and the record counts for ever how often that was used.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime

from manager_vm.errors import IntegrityError, StateError, StoreError, TrustError, UnknownVtpmError
from manager_vm.protocol.lifecycle import Event, State
from manager_vm.store import atomic, blobs
from manager_vm.store.blobs import StoredBlob
from manager_vm.store.manifest import Manifest
from manager_vm.store.records import Contents, Snapshot, Snapshots, VtpmKeys, VtpmRecord
from manager_vm.vtpm import changes
from manager_vm.vtpm.steps import Disk, Result

log = logging.getLogger(__name__)

_CONSUMES = (Event.RESUME, Event.POWER_ON)


def of(contents: Contents, uuid: str) -> Snapshots:
    """Those of the vTPM with this uuid."""
    return contents.snapshots.get(uuid, Snapshots())


def keep(disk: Disk, manifest: Manifest, record: VtpmRecord, event: Event) -> None:
    """Before a park that a ticket names is consumed. Where it cannot be kept the vTPM goes on all the same."""
    room = min(record.keep, disk.most)
    if event not in _CONSUMES or record.state is not State.PARKED or not record.ticket or not room:
        return
    try:
        take(disk, manifest, record, record.ticket)
    except (StoreError, TrustError) as error:
        log.warning("vTPM %s: the park that its VM's ticket names is not kept: %s", record.name, error)


def take(disk: Disk, manifest: Manifest, record: VtpmRecord, id_: str) -> None:
    """Keep the parked state that the record names as snapshot ``id_``; the oldest make room. Durable on return."""
    contents, room = manifest.contents, min(record.keep, disk.most)
    if any(each.id == id_ for each in of(contents, record.uuid).kept):
        return
    key = contents.keys[record.uuid].blob
    state = blobs.load(disk.blobs, record.uuid, StoredBlob(record.blob, record.blob_digest, key))
    directory = disk.snapshots / record.uuid
    atomic.make_directory(disk.snapshots)
    atomic.make_directory(directory)
    stored = blobs.store(directory, record.uuid, state)
    taken = datetime.now(UTC).isoformat(timespec="seconds")
    new = Snapshot(id_, stored.file, stored.digest, stored.key, taken, record.boot)
    manifest.commit(
        lambda found: _cut(changes.with_snapshots(found, record.uuid, _with(found, record, new)), record, room)
    )
    _remove_unnamed(disk, record.uuid, manifest.contents)
    log.info("vTPM %s: its state is kept as snapshot %s", record.name, id_)


def allow(disk: Disk, manifest: Manifest, uuid: str, count: int) -> None:
    """Keep so many snapshots from now on; those that are too many go, the oldest first. StateError above the limit."""
    if count > disk.most:
        told = f"at most {disk.most}" if disk.most else "none ('snapshots' in its configuration)"
        raise StateError(f"this manager keeps {told} of a vTPM")

    def change(contents: Contents) -> Contents:
        record = replace(_record(contents, uuid), keep=count)
        return _cut(contents.with_vtpm(record), record, count)

    manifest.commit(change)
    _remove_unnamed(disk, uuid, manifest.contents)


def drop(disk: Disk, manifest: Manifest, uuid: str, id_: str) -> None:
    """Give one up: nobody can come back to it."""

    def change(contents: Contents) -> Contents:
        found, gone = of(contents, uuid), _named(contents, uuid, id_)
        kept = tuple(each for each in found.kept if each is not gone)
        permitted = "" if found.permitted == gone.id else found.permitted
        return changes.with_snapshots(contents, uuid, Snapshots(kept, permitted))

    manifest.commit(change)
    _remove_unnamed(disk, uuid, manifest.contents)


def permit(contents: Contents, uuid: str, id_: str) -> Contents:
    """The next VM that comes with this snapshot's ticket gets it, once. It replaces an earlier permission."""
    return changes.with_snapshots(contents, uuid, replace(of(contents, uuid), permitted=_named(contents, uuid, id_).id))


def is_permitted(contents: Contents, uuid: str, id_: str) -> bool:
    """Whether a VM with the ticket of this park may have it back."""
    return bool(id_) and of(contents, uuid).permitted == id_


def revert(disk: Disk, manifest: Manifest, record: VtpmRecord, *, snapshot: str, ticket: str) -> Result:
    """A step (``steps``): parked as it was then. What it has become since is lost; the permission is used up."""
    contents = manifest.contents
    found = _named(contents, record.uuid, snapshot)
    source = StoredBlob(found.blob, found.digest, found.key)
    try:
        state = blobs.load(disk.snapshots / record.uuid, record.uuid, source)
    except IntegrityError as error:  # nothing is wrong with the vTPM
        raise StateError(f"snapshot {found.id} of vTPM {record.name!r} cannot come back: {error}") from error
    stored = blobs.store(disk.blobs, record.uuid, state)
    new = replace(record, state=State.PARKED, run="", blob=stored.file, blob_digest=stored.digest, resume=False)
    new = replace(new, reason="", ticket=ticket, reverted=record.reverted + 1)
    left = replace(of(contents, record.uuid), permitted="")
    log.warning("vTPM %s: goes back to snapshot %s of %s", record.name, found.id, found.taken)
    return Result(new, VtpmKeys(stored.key), session=state.session, snapshots=left)


def remove(disk: Disk, uuid: str) -> None:
    """All files of a vTPM that is not here any more: their keys went with a commit."""
    _remove_unnamed(disk, uuid, None)


def sweep(disk: Disk, contents: Contents) -> None:
    """Remove every file that no snapshot names. Only while nothing else is under way."""
    if disk.snapshots.exists():
        for directory in disk.snapshots.iterdir():
            _remove_unnamed(disk, directory.name, contents)


def _with(contents: Contents, record: VtpmRecord, new: Snapshot) -> Snapshots:
    found = of(contents, record.uuid)
    return replace(found, kept=(*found.kept, new))


def _cut(contents: Contents, record: VtpmRecord, room: int) -> Contents:
    found = of(contents, record.uuid)
    kept = found.kept[-room:] if room else ()
    permitted = found.permitted if any(each.id == found.permitted for each in kept) else ""
    return changes.with_snapshots(contents, record.uuid, Snapshots(kept, permitted))


def _named(contents: Contents, uuid: str, id_: str) -> Snapshot:
    record = _record(contents, uuid)
    for each in of(contents, uuid).kept:
        if each.id == id_:
            return each
    why = f"'snapshots {record.name}' lists those there are" if record.keep else "none are kept of it"
    raise StateError(f"vTPM {record.name!r} has no snapshot {id_[:64]!r}: {why}")


def _record(contents: Contents, uuid: str) -> VtpmRecord:
    record = contents.vtpms.get(uuid)
    if record is None:
        raise UnknownVtpmError("the vTPM was destroyed meanwhile")
    return record


def _remove_unnamed(disk: Disk, uuid: str, contents: Contents | None) -> None:
    """What stays is only disk space, for ``sweep``."""
    directory = disk.snapshots / uuid
    named = {each.blob for each in of(contents, uuid).kept} if contents is not None else set()
    try:
        if not named:
            atomic.remove_tree(directory)
        else:
            for path in directory.iterdir():
                if path.name not in named:
                    atomic.remove_tree(path)
    except (StoreError, FileNotFoundError) as error:
        log.warning("%s; it is not needed any more", error)
