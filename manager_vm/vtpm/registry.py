"""All vTPMs of this manager: the verbs, each as *step, commit, clean up* under the vTPM's lock.

Post-condition of every verb: on success the committed record says so; on failure the record is as before and
nothing half-made is left (what no record names is removed, at the latest at the next start).
"""

from __future__ import annotations

import functools
import logging
import threading
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

from manager_vm.errors import BusyError, IntegrityError, StateError, UnknownVtpmError, VtpmManagerError
from manager_vm.keys.ek_ca import EkCa
from manager_vm.protocol.channel_server import ChannelServer
from manager_vm.protocol.lifecycle import RELEASES, Event, State, after
from manager_vm.store.manifest import Manifest
from manager_vm.store.records import VtpmRecord
from manager_vm.trust.group import DEFAULT
from manager_vm.vtpm import boots, changes, room, snapshots, steps
from manager_vm.vtpm.reserve import Reservations
from manager_vm.vtpm.steps import Boot, Disk, Loss, Result
from manager_vm.vtpm.vtpm import Vtpm
from manager_vm.wire.channel import Reason

log = logging.getLogger(__name__)

Told = Callable[[], None]
_IGNORED: Told = lambda: None  # noqa: E731
_HOST_PATIENCE = 5.0  # seconds a report of the host side waits for a command: it is repeated, and others wait behind it


class Registry:
    """Thread-safe. ``uid_base``: the first uid of vTPMs; ``limit``: how many there may be."""

    def __init__(self, manifest: Manifest, disk: Disk, *, uid_base: int, limit: int, patience: float) -> None:
        self._manifest = manifest
        self._disk = disk
        self._reservations = Reservations(uid_base, limit)
        self._patience = patience
        self._host_patience = min(patience, _HOST_PATIENCE)
        self._leaving: set[int] = set()  # uids of vTPMs being destroyed, whose process may still live
        self._lock = threading.Lock()
        self._vtpms: dict[str, Vtpm] = {}

    def get(self, name: str, group: str | None = None) -> Vtpm:
        """The vTPM with this name, and in this group if one is given; UnknownVtpmError otherwise.

        Who may do something to a vTPM was asked of its group: a name may have been given to another one since.
        """
        with self._lock:
            vtpm = self._vtpms.get(name)
        if vtpm is None or group not in (None, self._record(vtpm).group):
            raise UnknownVtpmError(f"there is no vTPM {name!r}; 'list' shows those there are")
        return vtpm

    def all(self) -> list[Vtpm]:
        """Every vTPM, by name."""
        with self._lock:
            return [self._vtpms[name] for name in sorted(self._vtpms)]

    def record(self, name: str, group: str | None = None) -> VtpmRecord:
        """The committed record of a vTPM."""
        return self._record(self.get(name, group))

    def _record(self, vtpm: Vtpm) -> VtpmRecord:
        record = self._manifest.contents.vtpms.get(vtpm.uuid)
        if record is None:
            raise UnknownVtpmError(f"vTPM {vtpm.name!r} has just been destroyed")
        return record

    def _uids(self) -> set[int]:
        return self._leaving | {record.uid for record in self._manifest.contents.vtpms.values()}

    def create(self, name: str, group: str = DEFAULT, vm: str = "") -> VtpmRecord:
        """Manufacture a new vTPM, for this VM alone if one is named; it is OFF until its VM is powered on."""
        owner = self._manifest.contents.group(group)
        ca = EkCa.load(owner.ca_key, owner.ca_certificate)
        with self._reservations.hold(name, self._vtpms, self._uids) as uid:
            room.for_new(self._disk.blobs, len(self._vtpms))
            result = steps.create(self._disk, ca, str(uuid.uuid4()), name, uid, group, vm)
            self._commit([(None, result)])
            with self._lock:
                self._vtpms[name] = Vtpm(result.record.uuid, name, State.OFF)
        log.info("vTPM %s: created (uid %d)", name, uid)
        return result.record

    def start(self, name: str, *, power_on: bool, group: str | None = None) -> VtpmRecord:
        """Resume a parked vTPM; with ``power_on`` _TPM_Init instead, refused while a guest's channel is live."""
        vtpm = self.get(name, group)
        if not power_on:
            return self._apply(vtpm, Event.RESUME, self._resume)
        if vtpm.live:
            raise BusyError(f"a guest is using vTPM {name!r}; a reset is reported by its host, never made under it")
        # a boot of its own: a guest that runs on is of an older one, and must not find PCRs that are zero again
        return self._apply(vtpm, Event.POWER_ON, lambda old: self._power_on(old, boots.operators(old.boot)))

    def stop(self, name: str, group: str | None = None, *, ticket: str = "", still: Told = _IGNORED) -> VtpmRecord:
        """Park it, all of its state, for ``start`` or a ticket. ``still``: told when it is still, and there is room."""
        step = functools.partial(self._park, ticket=ticket, still=still)
        return self._apply(self.get(name, group), Event.PARK, step)

    def report_boot(self, name: str, boot: int) -> VtpmRecord:
        """The host side says which boot of the VM is running. A new number is a reset; each is applied once."""
        boots.demand_number(boot)
        vtpm = self.get(name)
        if boot > self._record(vtpm).boot:
            log.info("vTPM %s: reset, boot %d", name, boot)
            return self._apply(vtpm, Event.POWER_ON, lambda old: self._power_on(old, boot), named=boot)
        with vtpm.changing(Reason.QUIESCED, self._host_patience):
            record = self._record(vtpm)
            boots.demand_running(record, boot)
            vtpm.named = boot
        return record

    def destroy(self, name: str, group: str | None = None) -> None:
        """Remove a vTPM for ever: its keys go with the commit, its files after it."""
        vtpm = self.get(name, group)
        with vtpm.changing(Reason.QUIESCED, self._patience):
            record = self._record(vtpm)
            after(name, record.state, Event.DESTROY)
            self._leaving.add(record.uid)
            self._manifest.commit(lambda contents: changes.destroy(contents, vtpm.uuid))
            vtpm.end()
            vtpm.state = State.OFF
            with self._lock:  # from here on its name and uid are free
                del self._vtpms[name]
            steps.remove_files(self._disk, record, None)
            snapshots.remove(self._disk, vtpm.uuid)
            self._leaving.discard(record.uid)
        log.info("vTPM %s: destroyed", name)

    def release(self, name: str, loss: Loss, group: str | None = None) -> VtpmRecord:
        """Out of quarantine, if its state is whole, or at the loss that an admin accepts (``steps.release``)."""
        vtpm = self.get(name, group)
        event = RELEASES.get(self._record(vtpm).before, Event.RELEASE)
        return self._apply(vtpm, event, lambda record: self._release(record, event, loss))

    def revert(self, name: str, snapshot: str, *, ticket: str = "", group: str | None = None) -> VtpmRecord:
        """Back to a snapshot (``snapshots.revert``): parked, for whoever has the ticket if there is one."""
        vtpm = self.get(name, group)
        step = functools.partial(snapshots.revert, self._disk, self._manifest, snapshot=snapshot, ticket=ticket)
        return self._apply(vtpm, Event.REVERT, step)

    def wire(self, name: str, channel: str, vm: str = "") -> VtpmRecord:
        """Remember which channel is this vTPM's ("" = none); BoundError if it belongs to another VM than ``vm``."""
        (vtpm := self.get(name)).named = 0
        self._manifest.commit(lambda contents: changes.wire(contents, vtpm.uuid, channel, vm))
        return self._record(vtpm)

    def note_death(self, vtpm: Vtpm) -> None:
        """The process ended by itself or was killed at its deadline: TPM_RC_FAILURE until the next reported reset."""
        with vtpm.changing(Reason.QUIESCED, self._patience):
            if vtpm.run is None or not vtpm.run.died():
                return
            if (record := self._record(vtpm)).state is State.ARRIVING:
                return  # its move finds out
            vtpm.run.close()
            vtpm.run = None
            if record.state is not State.RUNNING:
                return
            vtpm.state = State.FAILED
            reason = "its swtpm process died; every command answers TPM_RC_FAILURE until the guest is reset"
            log.error("vTPM %s: %s", vtpm.name, reason)
            new = replace(record, state=State.FAILED, reason=reason)
            self._manifest.commit(lambda contents: changes.put(contents, new))

    def reserve(self, name: str) -> AbstractContextManager[int]:
        """A free uid, and the name, for a block; BusyError or ConfigError if it cannot be had."""
        return self._reservations.hold(name, self._vtpms, self._uids)

    def add(self, vtpm: Vtpm) -> None:
        """One that has come; its record is committed."""
        with self._lock:
            self._vtpms[vtpm.name] = vtpm

    def forget(self, vtpm: Vtpm) -> None:
        """One that has gone; its record is no more."""
        with self._lock:
            self._vtpms.pop(vtpm.name, None)

    def recover(self) -> None:
        """Take up what the disk says: unclean deaths become FAILED, vTPMs that a shutdown has parked resume."""
        contents = self._manifest.commit(changes.fail_running)
        for record in contents.vtpms.values():
            vtpm = self._vtpms[record.name] = Vtpm(record.uuid, record.name, record.state, record.boot)
            vtpm.channel = ChannelServer(steps.kept_session(self._disk, record, contents.keys[record.uuid]))
        steps.sweep(self._disk, contents)
        snapshots.sweep(self._disk, contents)
        self.resume()

    def resume(self) -> None:
        """Go on with every vTPM that a shutdown has parked."""
        self._all_at_once([r for r in self._manifest.contents.vtpms.values() if r.resume], Event.RESUME, self._resume)

    def park_all(self) -> None:
        """Park every running vTPM with one commit, for ``resume``; the log says which could not be."""
        running = [r for r in self._manifest.contents.vtpms.values() if r.state is State.RUNNING]
        self._all_at_once(running, Event.PARK, lambda record: self._park(record, resume=True))

    def shut_down(self) -> None:
        """The same at the manager's end; the next start resumes them. No process is left, parked or not."""
        try:
            self.park_all()
        finally:
            for vtpm in self.all():
                vtpm.end()

    # -- steps, bound to this registry ----------------------------------------------------------------------

    def _resume(self, record: VtpmRecord) -> Result:
        return steps.resume(self._disk, record, self._manifest.contents.keys[record.uuid])

    def _release(self, record: VtpmRecord, event: Event, loss: Loss) -> Result:
        return steps.release(self._disk, record, self._manifest.contents.keys[record.uuid], event, loss)

    def _park(self, record: VtpmRecord, *, resume: bool = False, ticket: str = "", still: Told = _IGNORED) -> Result:
        vtpm = self.get(record.name)
        if vtpm.run is None or vtpm.run.died():
            raise StateError(f"vTPM {record.name!r} has just died; there is nothing to park")
        room.for_commit(self._disk.blobs, len(self._vtpms))
        still()
        return steps.park(self._disk, record, vtpm.run, vtpm.channel.state, resume=resume, ticket=ticket)

    def _power_on(self, record: VtpmRecord, boot: int) -> Result:
        vtpm, keys = self.get(record.name), self._manifest.contents.keys[record.uuid]
        return steps.power_on(self._disk, record, keys, vtpm.run, Boot.of(record, boot, vtpm.channel.state))

    def _apply(self, vtpm: Vtpm, event: Event, step: Callable[[VtpmRecord], Result], *, named: int = 0) -> VtpmRecord:
        """Step, commit, clean up, for one vTPM. ``named``: the boot that the host side has reported with this."""
        with vtpm.changing(Reason.QUIESCED, self._host_patience if named else self._patience):
            record = self._record(vtpm)
            after(vtpm.name, record.state, event)
            if named and named <= record.boot:  # another report was faster
                boots.demand_running(record, named)
                vtpm.named = named
                return record
            if event is Event.POWER_ON and record.state is State.RUNNING:
                vtpm.named = 0  # the process is reset in place: whatever becomes of it, the boot before is over
            snapshots.keep(self._disk, self._manifest, record, event)
            result = self._step(vtpm, record, step)
            self._commit([(record, result)])
            vtpm.adopt(result.run, result.record, result.session, resumed=event is Event.RESUME)
            if event is Event.POWER_ON:
                vtpm.named = named
            steps.remove_files(self._disk, record, result.record)
        return result.record

    def _commit(self, results: list[tuple[VtpmRecord | None, Result]]) -> None:
        """Make results durable in one commit; if it fails, what the steps made is dropped again.

        A run that a step has reset in place is neither the old boot nor the new one then: it is killed.
        """
        try:
            self._manifest.commit(lambda contents: changes.put_all(contents, [result for _, result in results]))
        except BaseException:
            for old, result in results:
                if result.run is not None and old is not None and result.run.name == old.run:
                    result.run.kill()
                elif result.run is not None:
                    result.run.close()
                steps.remove_files(self._disk, result.record, old)
            raise

    def _step(self, vtpm: Vtpm, record: VtpmRecord, step: Callable[[VtpmRecord], Result]) -> Result:
        try:
            return step(record)
        except IntegrityError as error:
            self._quarantine(vtpm, record, str(error))
            raise

    def _all_at_once(self, found: list[VtpmRecord], event: Event, step: Callable[[VtpmRecord], Result]) -> None:
        """One step for many vTPMs, one commit; one that fails is left as it was and disturbs no other."""
        done: list[tuple[VtpmRecord | None, Result]] = []
        with ExitStack() as held:
            for record in found:
                vtpm = self.get(record.name)
                try:
                    after(vtpm.name, record.state, event)
                    held.enter_context(vtpm.changing(Reason.QUIESCED, self._patience))
                    done.append((record, self._step(vtpm, record, step)))
                except VtpmManagerError as error:
                    log.error("vTPM %s: cannot %s: %s", vtpm.name, event, error)
            self._commit(done)
            for old, result in done:
                vtpm = self.get(result.record.name)
                vtpm.adopt(result.run, result.record, result.session, resumed=event is Event.RESUME)
                assert old is not None
                steps.remove_files(self._disk, old, result.record)

    def _quarantine(self, vtpm: Vtpm, record: VtpmRecord, reason: str) -> None:
        log.error("vTPM %s: quarantined: %s", vtpm.name, reason)
        new = changes.quarantined(record, reason)
        self._manifest.commit(lambda contents: changes.put(contents, new))
        vtpm.state = State.QUARANTINED
        vtpm.end()
