"""A vTPM that leaves for another manager, or comes from one: what that does to process, files and record.

Whether it may is the hand-over's to say (``protocol/handover``): every change of a record comes with the change of its
move, in one commit (``also``). Post-condition as of the registry's verbs: if the commit fails, all is as before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from manager_vm import crypto
from manager_vm.errors import MigrationError, StateError, SwtpmError, UnknownVtpmError
from manager_vm.keys import identity
from manager_vm.protocol.channel_server import ChannelServer
from manager_vm.protocol.lifecycle import Event, State, after
from manager_vm.store import blobs, final_state, moves
from manager_vm.store.blobs import ParkedState, StoredBlob
from manager_vm.store.final_state import FinalState
from manager_vm.store.manifest import Manifest
from manager_vm.store.marks import Recovered
from manager_vm.store.records import Contents, VtpmKeys, VtpmRecord
from manager_vm.vtpm import changes, room, snapshots, steps
from manager_vm.vtpm.registry import Registry
from manager_vm.vtpm.run import Run
from manager_vm.vtpm.steps import Disk
from manager_vm.vtpm.vtpm import Vtpm
from manager_vm.wire.channel import Reason

log = logging.getLogger(__name__)

Also = Callable[[Contents], Contents]
_PATIENCE = 10.0  # seconds that a move waits for the command that executes

_RETURNS = {State.OFF: Event.RETURN_OFF, State.PARKED: Event.RETURN_PARKED, State.RUNNING: Event.RETURN_PARKED}


class Departure:
    """A vTPM that executes nothing any more and has not been given up yet. Made by ``Transit.leaving`` only."""

    def __init__(self, transit: Transit, vtpm: Vtpm, record: VtpmRecord, final: FinalState) -> None:
        self._transit = transit
        self._vtpm = vtpm
        self._record = record
        self._state = final.state
        self._kept: StoredBlob | None = None
        self.data = final_state.pack(final)
        self.digest = crypto.digest(self.data)

    def tombstone(self, also: Also) -> None:
        """The point of no return: it is GONE, and kept for the case that the destination never becomes it."""
        self._transit.bury(self._vtpm, self._record, self.keep(), also)
        self._kept = None

    def keep(self) -> StoredBlob:
        """Its state as a sealed blob, for the tombstone: best made while the other side works."""
        if self._kept is None:
            self._kept = self._transit.keep(self._record, self._state)
        return self._kept

    def discard(self) -> None:
        """It was not given up. Idempotent."""
        if self._kept is not None and self._kept.file != self._record.blob:
            self._transit.drop(self._record, self._kept)
        self._kept = None


class Arrival:
    """Room for a vTPM that comes: a name, a uid, a process that waits. Made by ``Transit.arriving`` only."""

    def __init__(self, transit: Transit, uid: int, run: Run) -> None:
        self._transit = transit
        self._uid = uid
        self._run: Run | None = run

    def prepare(self, final: FinalState, generation: int, also: Also) -> None:
        """It is whole, durable, and not runnable here. MigrationError (resume-failed) if swtpm does not take it."""
        assert self._run is not None
        self._transit.admit(self._uid, self._run, final, generation, also)
        self._run = None

    def discard(self) -> None:
        """Nothing came of it. Idempotent."""
        if self._run is not None:
            self._run.discard()
            self._run = None


class Transit:
    """Thread-safe, as the registry is."""

    def __init__(self, manifest: Manifest, registry: Registry, disk: Disk) -> None:
        self._manifest = manifest
        self._registry = registry
        self._disk = disk

    # -- the source -----------------------------------------------------------------------------------------

    @contextmanager
    def leaving(self, uuid: str) -> Iterator[Departure]:
        """Quiesce a vTPM for this block. If it is not given up within, it goes on as if nothing had been."""
        vtpm = self._vtpm(uuid)
        with vtpm.changing(Reason.QUIESCED, _PATIENCE):
            record = self._record(uuid)
            after(vtpm.name, record.state, Event.LEAVE)
            final = final_state.of(self._manifest.contents, record, self._state(vtpm, record))
            if record.ticket:  # its VM runs
                final = replace(final, status=State.RUNNING)
            departure = Departure(self, vtpm, record, final)
            try:
                yield departure
            finally:
                departure.discard()

    def keep(self, record: VtpmRecord, state: ParkedState) -> StoredBlob:
        """``Departure.keep``: the blob that there is, or a new one of what ran."""
        if record.state is State.RUNNING:
            return blobs.store(self._disk.blobs, record.uuid, state)
        return StoredBlob(record.blob, record.blob_digest, self._manifest.contents.keys[record.uuid].blob)

    def drop(self, record: VtpmRecord, stored: StoredBlob) -> None:
        """A blob that no record will name."""
        steps.remove_files(self._disk, replace(record, blob=stored.file, run=""), record)

    def bury(self, vtpm: Vtpm, record: VtpmRecord, stored: StoredBlob, also: Also) -> None:
        """``Departure.tombstone``."""
        new = replace(record, state=State.GONE, run="", blob=stored.file, blob_digest=stored.digest, resume=False)
        new = replace(new, before=str(record.state), reason="")
        self._commit(lambda c: also(changes.put(c, new, VtpmKeys(stored.key))), new, record)
        if vtpm.run is not None:
            vtpm.run.close()
        vtpm.run, vtpm.state = None, State.GONE
        steps.remove_files(self._disk, record, new)

    def erase(self, uuid: str, also: Also) -> None:
        """The destination has it, a generation further: keys go with the commit, files after it."""
        generation = self._record(uuid).generation + 1
        self._remove(uuid, Event.ERASE, lambda c: also(moves.remember(c, uuid, generation)))

    def take_back(self, uuid: str, also: Also, declared: Recovered | None = None) -> None:
        """The destination has signed that it never will be it; or an admin has ``declared`` that it is gone: a mark for
        ever, and a generation above the destination's. What ran goes on from where it was.
        """
        vtpm = self._vtpm(uuid)
        with vtpm.changing(Reason.QUIESCED, _PATIENCE):
            record = self._record(uuid)
            before = State(record.before)
            state = after(vtpm.name, record.state, _RETURNS[before])
            new = replace(record, state=state or State.PARKED, before="", resume=before is State.RUNNING)
            if declared is not None:
                new = replace(new, generation=record.generation + 2, recovered=(*record.recovered, declared))
            self._manifest.commit(lambda c: also(changes.put(c, new)))
            vtpm.state = new.state
        if before is State.RUNNING:
            self._registry.start(vtpm.name, power_on=False)

    # -- the destination ------------------------------------------------------------------------------------

    @contextmanager
    def arriving(self, name: str) -> Iterator[Arrival]:
        """Room for a vTPM, for this block. BusyError, ConfigError, StoreError where there is none."""
        with self._registry.reserve(name) as uid:
            room.for_new(self._disk.blobs, len(self._registry.all()))
            arrival = Arrival(self, uid, Run.start(self._disk.launcher, uid))
            try:
                yield arrival
            finally:
                arrival.discard()

    def admit(self, uid: int, run: Run, final: FinalState, generation: int, also: Also) -> None:
        """``Arrival.prepare``. The run is ours from here on: it is discarded if this fails."""
        try:
            _load(run, final)
        except SwtpmError as error:
            run.discard()
            raise MigrationError(f"swtpm does not take the state that came: {error}", "resume-failed") from error
        record, keys = self._stored(uid, run, final, generation)
        self._commit(lambda c: also(changes.welcomed(c, record, keys)), record, None)
        if not record.run:
            run.discard()
        vtpm = Vtpm(record.uuid, record.name, State.ARRIVING, record.boot)
        vtpm.run = run if record.run else None
        vtpm.channel = ChannelServer(final.state.session)
        self._registry.add(vtpm)

    def activate(self, uuid: str, also: Also) -> None:
        """The source has given it up, and that is durable here: what ran there runs, and then a commit contains it.

        Commands are served meanwhile: while the record says ARRIVING nothing but a death can befall it, and of that the
        registry takes notice when the record says RUNNING.
        """
        vtpm = self._vtpm(uuid)
        with vtpm.changing(Reason.QUIESCED, _PATIENCE):
            record, waited = self._record(uuid), vtpm.run
            served = vtpm.state is not State.ARRIVING  # a commit failed before: it is what it is
            serves = waited is not None and (served or not waited.died())
            new = changes.arrived(record, serves=serves, waited=waited is not None)
            if serves and not served:
                vtpm.state = State.RUNNING
        if not serves:
            self._settle(vtpm, record, new, also)
        else:
            self._manifest.commit(lambda c: also(changes.settled(c, new)))
        if new.resume:
            self._registry.start(vtpm.name, power_on=False)

    def _settle(self, vtpm: Vtpm, record: VtpmRecord, new: VtpmRecord, also: Also) -> None:
        """The commit about one that serves nobody: it is what the record says from then on."""
        with vtpm.changing(Reason.QUIESCED, _PATIENCE):
            self._manifest.commit(lambda c: also(changes.settled(c, new)))
            if vtpm.run is not None:
                vtpm.run.close()
                vtpm.run = None
            vtpm.state = new.state
            steps.remove_files(self._disk, record, new)

    def turn_away(self, uuid: str, also: Also) -> None:
        """It never will be here: nothing of it is left."""
        self._remove(uuid, Event.TURNED_AWAY, also)

    # -- both -----------------------------------------------------------------------------------------------

    def _remove(self, uuid: str, event: Event, also: Also) -> None:
        vtpm = self._vtpm(uuid)
        with vtpm.changing(Reason.QUIESCED, _PATIENCE):
            record = self._record(uuid)
            after(vtpm.name, record.state, event)
            self._manifest.commit(lambda c: also(identity.release(c.without_vtpm(uuid), uuid)))
            if vtpm.run is not None:
                vtpm.run.close()
                vtpm.run = None
            self._registry.forget(vtpm)
            steps.remove_files(self._disk, record, None)
            snapshots.remove(self._disk, uuid)

    def _state(self, vtpm: Vtpm, record: VtpmRecord) -> ParkedState:
        if record.state is not State.RUNNING:
            keys = self._manifest.contents.keys[record.uuid]
            return blobs.load(self._disk.blobs, record.uuid, StoredBlob(record.blob, record.blob_digest, keys.blob))
        if vtpm.run is None or vtpm.run.died():
            raise StateError(f"vTPM {record.name!r} has just died; there is nothing to move")
        return vtpm.run.snapshot(vtpm.channel.state)

    def _stored(self, uid: int, run: Run, final: FinalState, generation: int) -> tuple[VtpmRecord, VtpmKeys]:
        try:
            stored = blobs.store(self._disk.blobs, final.uuid, final.state)
        except BaseException:
            run.discard()
            raise
        runs = final.status is State.RUNNING
        record = VtpmRecord(
            state=State.ARRIVING,
            uid=uid,
            blob=stored.file,
            blob_digest=stored.digest,
            run=run.name if runs else "",
            generation=generation,
            before=str(final.status),
            issuer=final.issuer,
            **final_state.carried(final),
        )
        return record, VtpmKeys(stored.key, run.key if runs else None)

    def _commit(self, change: Also, new: VtpmRecord, old: VtpmRecord | None) -> None:
        try:
            self._manifest.commit(change)
        except BaseException:
            steps.remove_files(self._disk, new, old)
            raise

    def _vtpm(self, uuid: str) -> Vtpm:
        found = next((vtpm for vtpm in self._registry.all() if vtpm.uuid == uuid), None)
        if found is None:
            raise UnknownVtpmError(f"there is no vTPM {uuid} here")
        return found

    def _record(self, uuid: str) -> VtpmRecord:
        record = self._manifest.contents.vtpms.get(uuid)
        if record is None:
            raise UnknownVtpmError(f"vTPM {uuid} has just been removed")
        return record


def _load(run: Run, final: FinalState) -> None:
    """Into the process that waits; of one without power nothing is executed, it is only read."""
    if final.state.volatile:
        run.restore(final.state)
    else:
        run.restore_permanent(final.state.permanent)
        run.initialise()
