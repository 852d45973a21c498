"""QEMU's live migration of one VM, either end: memory to or from a UNIX socket or a descriptor, its disk over NBD.

The memory stream can be held back (``trickle``), so that something can be done in the VM just before it is stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from image.host.vm import Vm
from manager_vm.errors import HostError

_DISK = "state"  # QEMU's drive, also the export's name
_JOB = "mirror"
_TRICKLE = 4 << 10  # bytes/s: a page that is zero takes 9 bytes
_FULL_SPEED = 1 << 40
_FIRST_SPEED, _SLOWER = 128 << 20, 32 << 20  # bytes/s of the first round of a VM that is emulated
_SLOWER_FROM = 96 << 20  # bytes of memory that are left then
_STOPS = 2_000_000  # ms, QEMU's most: a VM that may be stopped so long stops at once
_SOON = (4 << 20, 32 << 20)  # bytes of memory that are left when the last round is near, at least and at most
_AHEAD = 1.0  # seconds of the stream, likewise: a busy machine looks late
_POLL = 0.02
_PATIENCE = 300.0  # seconds for a disk, or in which no memory moves
_OVER = ("completed", "failed", "cancelled")


class Outgoing:
    """The source's end."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._qmp = vm.qmp
        self._emulated = False

    def mirror_disk(self, nbd: Path) -> None:
        """Copy the state disk to the NBD server at this socket, and all that is written from then on."""
        target = f"nbd:unix:{nbd}:exportname={_DISK}"
        self._qmp.execute(
            "drive-mirror", device=_DISK, job_id=_JOB, target=target, sync="full", mode="existing", format="raw"
        )
        self._await(lambda: self._job().get("ready"), "the disk is copied")

    def start(self, uri: str) -> None:
        """Begin to send the memory while the VM runs; it stops, and waits for ``finish``, when little is left.

        Whenever an emulating QEMU below 9.0 looks at what was written while the VM runs, and sends on, it misses later
        writes to pages that are in its TLB just then: the VM that arrives has damaged memory (measured: one in five
        panicked). So the VM stands still at the first look (some 10 ms), and there is no second one before it stops:
        the first round is slow enough for its end to be seen.
        """
        wanted = [{"capability": "pause-before-switchover", "state": True}]
        self._qmp.execute("migrate-set-capabilities", capabilities=wanted)
        self._emulated = not self._qmp.execute("query-kvm")["enabled"]
        speed = _FIRST_SPEED if self._emulated else _FULL_SPEED
        self._qmp.execute("migrate-set-parameters", max_bandwidth=speed, downtime_limit=1)
        running = self._qmp.execute("query-status")["running"]
        if running:
            self._qmp.execute("stop")
        try:
            self._qmp.execute("migrate", uri=uri)
            self._await(lambda: self._ram().get("dirty-sync-count", 0) > 0, "what is written is noted")
        finally:
            if running:
                self.go_on()

    def await_last_round(self) -> None:
        """Until little memory is left to be sent."""
        fast = self._emulated

        def near() -> bool:
            nonlocal fast
            ram = self._ram()
            ahead = ram.get("mbps", 0.0) * 125_000 * _AHEAD
            left = ram.get("remaining", 1 << 62) if ram.get("transferred") else 1 << 62
            if fast and left < _SLOWER_FROM:
                self._qmp.execute("migrate-set-parameters", max_bandwidth=_SLOWER)
                fast = False
            return bool(left < min(max(ahead, _SOON[0]), _SOON[1]) or ram.get("dirty-sync-count", 1) > 1)

        self._await(near, "most of the memory is sent", self._transferred)

    def trickle(self, on: bool) -> None:
        """Hold the stream back, or let go of the VM: it stops then, however much it has written meanwhile.

        The manager serves nobody any more. More rounds while it runs would last as long as what they save, and have no
        end where the VM writes faster than the link carries. HostError if the memory that arrives could be damaged.
        """
        self._qmp.execute("migrate-set-parameters", max_bandwidth=_TRICKLE)
        self._check_looks()
        if not on:  # QEMU takes it up after 0.1 s: what is left must not be sent before, and looked at again
            self._qmp.execute("migrate-set-parameters", downtime_limit=_STOPS)

    def _check_looks(self) -> None:
        """There was one only, if this QEMU emulates: it takes seconds to the next from here (``start`` says why)."""
        if self._emulated and self._ram().get("dirty-sync-count", 1) > 1:
            raise HostError(
                f"QEMU looked twice at what {self._vm.spec.name} writes, and this one (emulating) would send damaged"
                " memory: the machine is too busy to see the end of the first round; try again"
            )

    def await_stopped(self) -> None:
        """Until the VM has stopped and its migration waits for ``finish``."""
        self._await(lambda: self._info()["status"] == "pre-switchover", "the VM has stopped")

    def finish(self) -> None:
        """The VM stops, the rest is sent. HostError if it did not arrive: the VM runs on here then."""
        self.await_stopped()
        self._qmp.execute("migrate-set-parameters", max_bandwidth=_FULL_SPEED)
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
