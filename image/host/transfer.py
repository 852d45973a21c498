"""QEMU's live migration of one VM, either end: memory to or from a UNIX socket or a descriptor, its disk over NBD.

QEMU sends all memory once while the VM runs, and then waits until it is told to stop the VM: something can be done in
the VM just before. What keeps it waiting is a dirty bitmap that is to be migrated too, of a block device that nobody
uses ("hold"): QEMU sends bitmaps last, and is not done while one is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from image.host.qmp import Qmp
from image.host.vm import Vm
from manager_vm.errors import HostError

_DISK = "state"  # QEMU's drive, also the export's name
_JOB = "mirror"
_HOLD = "hold"
_BITMAPS, _PAUSE = "dirty-bitmaps", "pause-before-switchover"  # capabilities
_IDLE = 4 << 10  # bytes/s while QEMU waits: section headers
_FULL_SPEED = 1 << 40
_STOPS = 2_000_000  # ms, QEMU's most: a VM that may be stopped so long stops at once
HEARD = 0.1  # seconds in which what a manager and a guest told each other last is in their VMs, not between them
_POLL = 0.02
_PATIENCE = 300.0  # seconds for a disk, or in which no memory moves
_OVER = ("completed", "failed", "cancelled")


class Outgoing:
    """The source's end."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._qmp = vm.qmp

    def mirror_disk(self, nbd: Path) -> None:
        """Copy the state disk to the NBD server at this socket, and all that is written from then on."""
        target = f"nbd:unix:{nbd}:exportname={_DISK}"
        self._qmp.execute(
            "drive-mirror", device=_DISK, job_id=_JOB, target=target, sync="full", mode="existing", format="raw"
        )
        self._await(lambda: self._job().get("ready"), "the disk is copied")

    def start(self, uri: str, *, hold: bool = True) -> None:
        """Begin to send the memory while the VM runs, all of it once, in whatever time that takes. Then QEMU waits for
        ``stop``; without ``hold`` it stops the VM by itself.

        Whenever an emulating QEMU below 9.0 looks at what was written while the VM runs, and sends on, it misses later
        writes to pages that are in its TLB just then: the VM that arrives has damaged memory (measured: one in five
        panicked). So the VM stands still at the first look (some 10 ms), and there is no second one before it stops:
        QEMU 7.2 looks when what is left could be sent within ``downtime_limit``, which is nothing here.
        """
        if hold:
            _hold(self._qmp)
            self._qmp.execute("block-dirty-bitmap-add", node=_HOLD, name=_HOLD)
        _set(self._qmp, _PAUSE)
        self._qmp.execute("migrate-set-parameters", max_bandwidth=_FULL_SPEED, downtime_limit=0)
        running = self._qmp.execute("query-status")["running"]
        if running:
            self._qmp.execute("stop")
        try:
            self._qmp.execute("migrate", uri=uri)
            self._await(lambda: self._ram().get("dirty-sync-count", 0) > 0, "what is written is noted")
        finally:
            if running:
                self.go_on()

    def await_sent(self) -> None:
        """Until all memory is sent once. QEMU waits then: more rounds while the VM runs would last as long as what they
        save, and have no end where it writes faster than the link carries.
        """

        def sent() -> bool:
            ram = self._ram()
            looks = ram.get("dirty-sync-count", 1)  # a newer QEMU looks again, and has no end where the VM writes
            return bool(ram.get("transferred") and not ram["remaining"]) or looks > 1

        self._await(sent, "the memory is sent once", self._transferred)
        self._qmp.execute("migrate-set-parameters", max_bandwidth=_IDLE)

    def stop(self) -> None:
        """The VM stands still from now on; QEMU sends what it has written: within 0.1 s it begins."""
        self._qmp.execute("stop")
        self._qmp.execute("migrate-set-parameters", max_bandwidth=_FULL_SPEED, downtime_limit=_STOPS)
        self.await_stopped()

    def await_stopped(self) -> None:
        """Until it stands still and QEMU waits for ``finish``. HostError if its memory does not arrive: ``cancel``."""
        self._await(lambda: self._info()["status"] == "pre-switchover", "the memory is sent", self._transferred)

    def finish(self) -> None:
        """The VM has all it needs at the other side. HostError if not: then ``cancel``."""
        if self._job():
            self._qmp.execute("block-job-cancel", device=_JOB)  # of one that is ready: whole, as it is now
            self._await(lambda: not self._job(), "the disk is whole")
        self._qmp.execute("migrate-continue", state="pre-switchover")
        self._await(lambda: self._info()["status"] == "completed", "the memory has arrived", self._transferred)

    def cancel(self, *, resume: bool = True) -> None:
        """Stay here, and run on."""
        with suppress(HostError):
            self._qmp.execute("migrate_cancel")
            self._await(lambda: self._qmp.execute("query-migrate").get("status", "") in ("", *_OVER), "it is given up")
        with suppress(HostError):
            if self._job():
                self._qmp.execute("block-job-cancel", device=_JOB, force=True)
        _let_go(self._qmp)
        if resume:
            self.go_on()

    def go_on(self) -> None:
        """Let the processors run, also behind a migration that is complete: for the word that ends this copy."""
        if not self._qmp.execute("query-status")["running"]:
            self._qmp.execute("cont")

    def _info(self) -> dict[str, Any]:
        info = dict(self._qmp.execute("query-migrate"))
        if info.get("status") in ("failed", "cancelled"):
            raise HostError(
                f"the memory of {self._vm.spec.name} does not arrive: {info.get('error-desc', 'cancelled')}"
            )
        return info

    def _ram(self) -> dict[str, Any]:
        return dict(self._info().get("ram", {}))

    def _job(self) -> dict[str, Any]:
        return next((dict(job) for job in self._qmp.execute("query-block-jobs") if job["device"] == _JOB), {})

    def _transferred(self) -> int:
        """Bytes of memory."""
        return int(self._ram().get("transferred", 0))

    def _await(self, condition: Callable[[], Any], what: str, moved: Callable[[], int] = lambda: 0) -> None:
        """As long as ``moved`` grows: a slow link takes its time."""
        deadline, before = time.monotonic() + _PATIENCE, moved()
        while not condition():
            self._vm.check()
            if (now := moved()) != before:
                deadline, before = time.monotonic() + _PATIENCE, now
            if time.monotonic() > deadline:
                raise HostError(f"not within {_PATIENCE:.0f} s: {what}")
            time.sleep(_POLL)


class Incoming:
    """The destination's end, of a VM that was made with ``arrives``. Its processors wait for ``go``."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._qmp = vm.qmp

    def export_disk(self, path: Path) -> None:
        """Take blocks at this socket, over NBD."""
        address = {"type": "unix", "data": {"path": str(path)}}
        self._qmp.execute("nbd-server-start", addr=address)
        self._qmp.execute("nbd-server-add", device=_DISK, writable=True)

    def close_export(self) -> None:
        """No more blocks."""
        with suppress(HostError):
            self._qmp.execute("nbd-server-stop")

    def listen(self, path: Path) -> None:
        """Take the memory at this socket."""
        _hold(self._qmp)
        self._qmp.execute("migrate-incoming", uri=f"unix:{path}")

    def read(self, fd: int) -> None:
        """Take the memory from a descriptor."""
        self._qmp.pass_fd("memory", fd)
        self._qmp.execute("migrate-incoming", uri="fd:memory")

    def await_arrived(self) -> None:
        """Until all is there; HostError if it is not whole."""
        deadline = time.monotonic() + _PATIENCE
        while (status := self._qmp.execute("query-status")["status"]) == "inmigrate":
            self._vm.check()
            if time.monotonic() > deadline:
                raise HostError(f"the memory of {self._vm.spec.name} does not arrive: {status}")
            time.sleep(_POLL)
        _let_go(self._qmp)


def _set(qmp: Qmp, capability: str, *, on: bool = True) -> None:
    qmp.execute("migrate-set-capabilities", capabilities=[{"capability": capability, "state": on}])


def _hold(qmp: Qmp) -> None:
    """A block device that nobody uses, at either end, whose bitmaps go along."""
    _let_go(qmp)
    qmp.execute("blockdev-add", **{"driver": "null-co", "node-name": _HOLD, "size": 1 << 16})
    _set(qmp, _BITMAPS)


def _let_go(qmp: Qmp) -> None:
    """It is not there any more, nor its bitmap; who saves this VM to a file is not kept waiting."""
    with suppress(HostError):
        _set(qmp, _BITMAPS, on=False)
        _set(qmp, _PAUSE, on=False)
    with suppress(HostError):
        qmp.execute("blockdev-del", **{"node-name": _HOLD})
