"""A guest VM that is held at every reset until the manager has acknowledged it.

QEMU stops at a reset instead of performing it; the boot number is advanced and reported; only then does the guest
start from its reset vector. So the vTPM's _TPM_Init lies between the last old and the first new instruction.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from image.host.boots import BootCounter
from image.host.machine import VmSpec
from image.host.vm import Vm
from image.host.wires import Wire
from manager_vm.errors import HostError

log = logging.getLogger(__name__)

Report = Callable[["Guest"], bool]


class Guest:
    """``report(guest)`` returns when the manager has acknowledged the guest's boot, or False when it was given up."""

    def __init__(
        self, spec: VmSpec, accelerator: str, report: Report, *, restore: Path | None = None, arrives: bool = False
    ) -> None:
        self.name = spec.name
        self.vm = Vm(spec, accelerator, restore=restore, arrives=arrives)
        self.uuid = self.vm.uuid
        self.wire: Wire | None = None  # None: its TPM is QEMU's, behind the host's shim
        self.channel = ""  # the wire's address in the manager
        self.boots = BootCounter(spec.directory / "boot")
        self.held = False  # at a reset that the manager has not acknowledged
        self.closing = threading.Event()
        self._report = report
        self._thread = threading.Thread(target=self._watch, name=f"guest {spec.name}", daemon=True)
        self._thread.start()

    def reports_to(self, report: Report) -> None:
        """Another host's manager hears of its boots from now on."""
        self._report = report

    def power_on(self) -> None:
        """Report a new boot, then let the processors run. The VM must be paused."""
        self.boots.advance()
        if self._report(self):
            self.vm.go()

    def end(self) -> None:
        """End the VM. A report that is being repeated is given up."""
        self.closing.set()
        self.vm.close()
        self._thread.join()

    def close(self) -> None:
        """End the VM and free its wire."""
        self.end()
        if self.wire is not None:
            self.wire.close()

    def _watch(self) -> None:
        while (event := self.vm.qmp.next_event(None)) is not None:
            if event["event"] == "SHUTDOWN":
                try:
                    self._stopped(event["data"]["reason"])
                except HostError as error:
                    log.error("guest %s: %s", self.name, error)

    def _stopped(self, reason: str) -> None:
        if reason == "guest-reset":
            self.held = True
            number = self.boots.advance()
            log.info("guest %s: held at its reset (boot %d)", self.name, number)
            if self._report(self):
                self._release()
            self.held = False
        elif reason in ("guest-shutdown", "guest-panic"):
            log.info("guest %s: %s", self.name, "powered off" if reason == "guest-shutdown" else "its kernel panicked")
            self.vm.qmp.execute("quit")

    def _release(self) -> None:
        """Perform the reset that QEMU held, and hold the next one again."""
        self.vm.qmp.execute("set-action", reboot="reset")
        self.vm.qmp.execute("system_reset")
        self.vm.qmp.execute("set-action", reboot="shutdown")
        self.vm.go()
        while (event := self.vm.qmp.next_event(None)) is not None and event["event"] != "RESUME":
            pass  # firmware asks for one reset in several ways: what came before this reset was this reset


def spec(name: str, images: Path, directory: Path, vm: str = "") -> VmSpec:
    """A guest's machine below ``directory``. ``vm``: its UUID, kept there; "": the one that is kept, else a new one."""
    return replace(unmodified(name, images, directory, vm), hold_resets=True)


def unmodified(name: str, images: Path, directory: Path, vm: str = "") -> VmSpec:
    """The same for one whose resets nobody has to hold: its TPM reports them."""
    own = directory / name
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = own / "uuid"
    if not vm:
        vm = kept.read_text() if kept.exists() else str(uuid.uuid4())
    kept.write_text(vm)
    return VmSpec(name, images / "guest", own, uuid=vm)
