"""What each lifecycle event does to the process and the files. Each step ends *before* its commit: it returns the
record and keys to commit, and changes nothing that the committed record still needs.

After a step: on success the caller commits and then removes what no record names any more; on failure (or if
the commit fails) the caller drops the new run, and the old record is still true.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from manager_vm.errors import IntegrityError, QuarantinedError, StateError, StoreError, SwtpmError, SwtpmRefusedError
from manager_vm.keys.ek_ca import EkCa
from manager_vm.protocol.channel_server import SessionState
from manager_vm.protocol.lifecycle import Event, State, after
from manager_vm.store import atomic, blobs
from manager_vm.store.blobs import ParkedState, StoredBlob
from manager_vm.store.records import MAX_REASON, Contents, Snapshots, VtpmKeys, VtpmRecord
from manager_vm.vchan.address import Kind
from manager_vm.vtpm import statefile
from manager_vm.vtpm.manufacture import Firmware, manufacture
from manager_vm.vtpm.run import Launcher, Run

log = logging.getLogger(__name__)


_SEQ_SIZE = 7  # bytes of a random seq to begin with (below 2^63)
_PARK_SPACE = 1 << 20  # bytes; swtpm writes volatile state to its directory before it hands it out


@dataclass(frozen=True, slots=True)
class Disk:
    """Where steps put things: sealed blobs, and how runs are started.

    ``snapshots``: a directory for each vTPM that has some; ``most``: how many one may have, 0 = no way back here.
    """

    blobs: Path
    launcher: Launcher
    snapshots: Path
    most: int


@dataclass(frozen=True, slots=True)
class Result:
    """What to commit, the run that goes with it (None: none), and the session to continue.

    ``snapshots``: those of the vTPM from now on, None = as before.
    """

    record: VtpmRecord
    keys: VtpmKeys
    run: Run | None = None
    session: SessionState | None = None
    snapshots: Snapshots | None = None


def create(disk: Disk, ca: EkCa, uuid: str, name: str, uid: int, group: str, vm: str) -> Result:
    """Manufacture a vTPM: EKs, certificates by its group's CA; keep its permanent state as anchored blob. It is OFF."""
    run = Run.start(disk.launcher, uid)
    try:
        run.initialise()
        made = manufacture(run, ca)
        state = ParkedState(run.snapshot(SessionState()).permanent)
    finally:
        run.discard()
    stored = blobs.store(disk.blobs, uuid, state)
    record = VtpmRecord(
        uuid=uuid,
        name=name,
        state=State.OFF,
        uid=uid,
        blob=stored.file,
        blob_digest=stored.digest,
        ek_names=made.ek_names,
        certificates=made.certificates,
        group=group,
        vm=vm,
    )
    return Result(record, VtpmKeys(stored.key))


def resume(disk: Disk, record: VtpmRecord, keys: VtpmKeys) -> Result:
    """Continue a parked vTPM in a new run. The park is consumed by the commit."""
    state = blobs.load(disk.blobs, record.uuid, _stored(record, keys))
    run = Run.start(disk.launcher, record.uid)
    try:
        run.restore(state)
    except BaseException:
        run.discard()
        raise
    new = replace(record, state=State.RUNNING, run=run.name, resume=False, reason="", ticket="")
    return Result(new, replace(keys, run=run.key), run, state.session)


def kept_session(disk: Disk, record: VtpmRecord, keys: VtpmKeys) -> SessionState | None:
    """The session of one that waits to go on; None of others, and of one whose state is damaged: its resume says so."""
    if record.state not in (State.PARKED, State.ARRIVING):
        return None
    try:
        return blobs.load(disk.blobs, record.uuid, _stored(record, keys)).session
    except (IntegrityError, StoreError):
        return None


def park(
    disk: Disk, record: VtpmRecord, run: Run, session: SessionState, *, resume: bool = False, ticket: str = ""
) -> Result:
    """Keep all state of a running vTPM in a new sealed blob. The process is to be ended after the commit."""
    stored = blobs.store(disk.blobs, record.uuid, _snapshot(disk, run, session))
    new = replace(
        record,
        state=State.PARKED,
        run="",
        blob=stored.file,
        blob_digest=stored.digest,
        resume=resume,
        reason="",
        ticket=ticket,
    )
    return Result(new, VtpmKeys(stored.key))


@dataclass(frozen=True, slots=True)
class Boot:
    """A reset of a vTPM's VM. ``shut_down``: TPM2_Shutdown was the last that its guest did."""

    number: int
    firmware: Firmware = Firmware.OURS
    shut_down: bool = False

    @classmethod
    def of(cls, record: VtpmRecord, number: int, session: SessionState) -> Boot:
        """Boot ``number`` of the VM at the channel that the record names; ``session``: of the boot before."""
        firmware = Firmware.GUESTS if record.channel.startswith(f"{Kind.SHIM}:") else Firmware.OURS
        return cls(number, firmware, session.shut_down)


def power_on(disk: Disk, record: VtpmRecord, keys: VtpmKeys, run: Run | None, boot: Boot) -> Result:
    """_TPM_Init for this boot: in the running process, or from what the disk holds."""
    if run is not None and not run.died():
        try:
            run.power_cycle(boot.firmware, shut_down=boot.shut_down)
            return Result(replace(record, boot=boot.number, reason=""), keys, run, _new_session())
        except SwtpmError as error:
            log.warning("vTPM %s: %s; it is killed and started from its file", record.name, error)
            run.kill()
        except BaseException:
            run.kill()  # neither the old nor the new boot: it counts as dead
            raise
    new_run = Run.start(disk.launcher, record.uid)
    try:
        _load_for_power_on(disk, record, keys, new_run, boot)
    except BaseException:
        new_run.discard()
        raise
    new = replace(record, state=State.RUNNING, run=new_run.name, boot=boot.number, resume=False, reason="", ticket="")
    return Result(new, replace(keys, run=new_run.key), new_run, _new_session())


class Loss(StrEnum):
    """What may be lost so that a vTPM can leave its quarantine."""

    NOTHING = ""
    RUN = "run"  # what happened since the last anchored blob
    STATE = "state"  # everything: what is left can only be destroyed


_LOSSES = {
    Loss.NOTHING: "released, its state is whole",
    Loss.RUN: "released without its last run: all since the last anchored state is lost",
    Loss.STATE: "released although its state is lost: it can only be destroyed",
}


def release(disk: Disk, record: VtpmRecord, keys: VtpmKeys, event: Event, loss: Loss) -> Result:
    """Out of quarantine: what is needed to go on is verified again; QuarantinedError, and no change, if it is damaged.

    What it was before is what it is again, but where something is lost it is FAILED: only a reset leads on. The record
    keeps a mark for ever.
    """
    state = after(record.name, record.state, event) if loss is Loss.NOTHING else State.FAILED
    if loss is not Loss.STATE:
        _verify(disk, record, keys, loss)
    said = _LOSSES[loss]
    mark = f"{datetime.now(UTC).isoformat(timespec='seconds')}: {said}; it was quarantined because {record.reason}"
    mark = f"{mark} | {record.released}" if record.released else mark
    why = said if state is State.FAILED else ""
    new = replace(record, state=state or State.FAILED, reason=why, before="", released=mark[:MAX_REASON])
    if loss is Loss.RUN:
        new, keys = replace(new, run=""), VtpmKeys(keys.blob)
    return Result(new, keys)


def _verify(disk: Disk, record: VtpmRecord, keys: VtpmKeys, loss: Loss) -> None:
    """That a power-on, or a resume, will find what it needs."""
    runs = bool(record.run) and keys.run is not None
    if loss is Loss.RUN and not runs:
        raise StateError(f"vTPM {record.name!r} has no run that could be discarded; only its blob is there")
    try:
        if runs and loss is Loss.NOTHING:
            _demand_run_file(disk, record)
            _salvage(disk, record, keys)
        else:
            blobs.load(disk.blobs, record.uuid, _stored(record, keys))
    except IntegrityError as error:
        option = "--discard-run" if runs and loss is Loss.NOTHING else "--discard-state"
        raise QuarantinedError(
            f"vTPM {record.name!r} stays quarantined: {error}; or accept the loss with {option} (see release --help)"
        ) from error


def remove_files(disk: Disk, record: VtpmRecord, keep: VtpmRecord | None) -> None:
    """Remove the files that ``record`` names and ``keep`` does not. What stays is only disk space, for ``sweep``."""
    if keep is None or record.blob != keep.blob:
        _remove(disk.blobs / record.blob)
    if record.run and (keep is None or record.run != keep.run):
        _remove(disk.launcher.runs / record.run)


def sweep(disk: Disk, contents: Contents) -> None:
    """Remove everything that no record names: what a crash left half-made. Only while nothing else is under way."""
    keep = {name for record in contents.vtpms.values() for name in (record.blob, record.run)}
    for directory in (disk.blobs, disk.launcher.runs):
        for path in directory.iterdir():
            if path.name not in keep:
                _remove(path)


def _remove(path: Path) -> None:
    try:
        atomic.remove_tree(path)
    except StoreError as error:
        log.warning("%s; it is not needed any more", error)


def _load_for_power_on(disk: Disk, record: VtpmRecord, keys: VtpmKeys, run: Run, boot: Boot) -> None:
    if record.run and keys.run is not None:
        _demand_run_file(disk, record)
        run.restore_permanent(_salvage(disk, record, keys))
        run.power_on(boot.firmware)
        return
    state = blobs.load(disk.blobs, record.uuid, _stored(record, keys))
    if state.volatile and record.state is State.PARKED:
        run.restore(state)
        run.power_cycle(boot.firmware, shut_down=state.session.shut_down)
    else:
        run.restore_permanent(state.permanent)
        run.power_on(boot.firmware)


def _demand_run_file(disk: Disk, record: VtpmRecord) -> None:
    if not _run_file(disk, record).exists():  # it was synced before the commit that names the run
        raise IntegrityError("the state file of the last run is missing; restore the newest copy of the state disk")


def _salvage(disk: Disk, record: VtpmRecord, keys: VtpmKeys) -> bytes:
    """The permanent state that a run left behind when it died; IntegrityError if its file is not that run's."""
    assert keys.run is not None
    old = Run.reopen(disk.launcher, record.uid, record.run, keys.run)
    try:
        old.initialise()
        return old.permanent()
    except SwtpmError as error:
        refused = isinstance(error, SwtpmRefusedError) and error.what == "INIT"
        if not refused and statefile.is_whole(_run_file(disk, record)):
            raise  # killed, not executed, too slow, no memory: that says nothing of the file
        raise IntegrityError(
            f"the state file of the last run is damaged or not of that run ({error}); restore a copy of the state disk"
        ) from error
    finally:
        old.close()


def _new_session() -> SessionState:
    """For a new boot: it cannot be known before, so nothing that an earlier boot left in a channel is ever executed."""
    return SessionState(last_seq=int.from_bytes(os.urandom(_SEQ_SIZE)))


def _run_file(disk: Disk, record: VtpmRecord) -> Path:
    return disk.launcher.runs / record.run / statefile.NAME


def _snapshot(disk: Disk, run: Run, session: SessionState) -> ParkedState:
    """All state of a running vTPM; StoreError if it is the disk that swtpm needs for this and cannot write."""
    try:
        return run.snapshot(session)
    except SwtpmError:
        atomic.demand_space(disk.blobs, _PARK_SPACE)
        raise


def _stored(record: VtpmRecord, keys: VtpmKeys) -> StoredBlob:
    return StoredBlob(record.blob, record.blob_digest, keys.blob)
