"""A simulated hypervisor host: its hardware TPM, its manager VM, its guests and the wires between them.

``DIR/admin.sock`` and ``DIR/host.sock`` are the manager's links (``vtpmctl -m DIR``). Everything else lies below
DIR/manager, DIR/hwtpm, DIR/guests and DIR/authority. What a Host starts ends with it; the next Host on DIR has the
same hardware TPM.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from image.host import accel, hwtpm, provision, sparse, wires
from image.host import guest as guests
from image.host.guest import Guest
from image.host.guest_wiring import GuestWiring
from image.host.hwtpm import Arriving, HardwareTpm, Kind
from image.host.links import Links
from image.host.machine import VmSpec
from image.host.network import Card, Switch
from image.host.saved import Saved
from image.host.shims import Shims
from image.host.uplink import Uplink
from image.host.vendor import VENDOR_CA
from image.host.visits import Visits
from image.host.vm import Vm
from image.host.wires import Carrier
from manager_vm.errors import HostError, VtpmManagerError
from manager_vm.trust import local

log = logging.getLogger(__name__)

STATE_DISK = 64 << 20  # bytes of a new, blank state disk
_SLOTS = 16  # guests over ivshmem that the manager can have
_BOOT = 240.0  # seconds for the manager to serve
_STOP = 310.0  # seconds for it to park all vTPMs and end
_ATTACH = 30.0  # seconds for a plugged device to appear in the manager, or for one that has come to answer
_WATCH = 1.0  # seconds between looks at the manager


class Host:
    """``images``: what the image build made; another one counts from the manager's next power-on.

    ``firmware``: boot the manager through OVMF and its UKI. ``kind``: of its hardware TPM; ConfigError if that cannot
    be used.
    """

    def __init__(self, directory: Path, images: Path, *, firmware: bool = False, kind: Kind = Kind.EMULATOR) -> None:
        hwtpm.usable(kind)
        self.directory = directory.absolute()
        self.images = images.absolute()
        self._firmware = firmware
        self.manager: Vm | None = None
        self.guests: dict[str, Guest] = {}
        self._hwtpm: HardwareTpm | None = None
        self._started: object = None  # which run of the manager's daemon is wired
        self._lock = threading.RLock()  # wiring: one change at a time
        self._closing = threading.Event()
        (self.directory / "guests").mkdir(mode=0o700, parents=True, exist_ok=True)
        self.spawner = ThreadPoolExecutor(1, "spawner")  # lives as long as VMs that others ask for
        self.links = Links(self.directory)
        self.shims = Shims(self.links, self.directory / "shims", self.spawner)
        self._wiring = GuestWiring(self.links, self.guests)
        self.uplink = Uplink(self.links, self.directory / "card.sock")
        self.visits = Visits(self.links, self.directory / "guests")
        self.accelerator = accel.choose(self.images / "accelerator", self.images / "guest")
        self._watcher = threading.Thread(target=self._watch, name="host", daemon=True)
        self._watcher.start()

    @property
    def state_disk(self) -> Path:
        """The manager's."""
        return self.directory / "state.img"

    # -- the manager ----------------------------------------------------------------------------------------

    def manager_spec(self, tpm: Path | None) -> VmSpec:
        """The manager's VM."""
        return VmSpec(
            "manager",
            self.images / "manager",
            self.directory / "manager",
            firmware=self._firmware,
            ports=self.links.ports,
            state_disk=self.state_disk,
            slots=_SLOTS,
            hwtpm=tpm,
        )

    def start_manager(self, saved: Saved | None = None, *, arriving: Arriving = Arriving.RESTORE) -> Vm:
        """Power on (or restore) the manager VM, wait until it serves, wire all guests that there are.

        A restored VM finds its own hardware TPM, which replaces this host's for good, or (``arriving``) this host's.
        """
        with self._lock:
            manager = self.power_on_manager(saved, arriving=arriving)
            status = self.links.wait_answering(self._check, _BOOT)
            provision.provision(self.links, self.authority, self.images / "manager", status)
            self._started = self.links.wait_serving(self._check, _BOOT)["started"]
            provision.enrol(self.links, self.authority, self.directory / "hwtpm" / VENDOR_CA)
            self.uplink.plug(manager)
            for guest in self.guests.values():
                self._wiring.plug(guest, self.running_manager())
            self._await_wired()
        return manager

    def connect(self, switch: Switch, *addresses: str, gateway: str = "") -> None:
        """Give the manager VM a card in this network, now and at each start: other managers reach it there."""
        with self._lock:
            self.uplink.card = Card(self.uplink.path, switch.path, addresses, gateway)
            if self.manager is not None:
                self.uplink.plug(self.manager)

    def power_on_manager(
        self, saved: Saved | None = None, *, arriving: Arriving = Arriving.RESTORE, stub_arguments: str = ""
    ) -> Vm:
        """The manager's VM with processors that run; it may refuse to serve, and its console says why."""
        with self._lock:
            if self.manager is not None:
                raise HostError("the manager VM runs already; stop it first")
            if saved is not None:
                saved.copy_disks(self.state_disk, self.directory / "manager/variables.fd", self.authority)
            elif not self.state_disk.exists():
                sparse.make(self.state_disk, STATE_DISK)
            new = saved is not None and arriving is Arriving.RESTORE
            self._hwtpm = hwtpm.provide(self._hwtpm, self.directory / "hwtpm", arriving, new=new)
            spec = replace(self.manager_spec(self._hwtpm.socket), stub_arguments=stub_arguments)
            self.manager = Vm(spec, self.accelerator, restore=saved.memory if saved else None)
            self.manager.go()
        return self.manager

    def take_over(self, vm: Vm) -> None:
        """This VM, which has come from another host and serves, is the manager's from now on."""
        with self._lock:
            self.manager = vm
            self.links.key = local.open_or_make(self.authority).operator
            self._started = self.links.wait_serving(vm.check, _ATTACH)["started"]

    def plug_card(self) -> None:
        """The manager's VM has its card."""
        with self._lock:
            self.uplink.plug(self.running_manager())

    def wire(self) -> None:
        """Wire all guests now."""
        with self._lock:
            self._await_wired()

    def replug(self) -> None:
        """Guests' channels ended elsewhere: they end here again."""
        with self._lock:
            self._wiring.replug(self.running_manager())

    def adopt(self, guest: Guest) -> None:
        """This host hears of its boots from now on."""
        with self._lock:
            guest.reports_to(self._wiring.report)
            self.guests[guest.name] = guest

    def take_guest(self, guest: Guest) -> None:
        """A guest that has followed its vTPM: this host wires it and hears of its boots."""
        with self._lock:
            self.adopt(guest)
            if not guest.channel:
                self._wiring.plug(guest, self.running_manager())
            self._await_wired()

    def _check(self) -> None:
        """HostError if the manager VM or its TPM has ended."""
        self.hwtpm.check()
        self.running_manager().check()

    @property
    def authority(self) -> Path:
        """Directory of this host's authority and its operator, made when a manager needs one."""
        return self.directory / local.DIRECTORY

    @property
    def hwtpm(self) -> HardwareTpm:
        """The stand-in hardware TPM. It lives from the first start of the manager to the end of the host."""
        if self._hwtpm is None:
            raise HostError("the hardware TPM does not run; start the manager first")
        return self._hwtpm

    def stop_manager(self) -> None:
        """Press the manager's power button: every vTPM is parked. Guests' commands wait or fail meanwhile."""
        with self._lock:
            self.running_manager().power_down(_STOP)
            self.forget_manager()

    def kill_manager(self) -> None:
        """Pull the manager's plug."""
        with self._lock:
            self.running_manager().kill()
            self.forget_manager()

    def running_manager(self) -> Vm:
        """The manager's VM; HostError if there is none."""
        if self.manager is None or not self.manager.running():
            raise HostError("the manager VM does not run; start it first")
        return self.manager

    def forget_manager(self) -> None:
        """Its VM has ended."""
        self.manager = None
        for guest in self.guests.values():
            guest.channel = ""  # slots are handed out anew

    # -- guests ---------------------------------------------------------------------------------------------

    def add_guest(self, name: str, carrier: Carrier, saved: Saved | None = None, vm: str = "") -> Guest:
        """Start (or restore) a guest whose TPM is the manager's vTPM ``name``, which must exist. ``vm``: its UUID."""
        directory = self.directory / "guests"
        if carrier is Carrier.SHIM:
            return self.add_unmodified(name, vm)
        spec = guests.spec(name, self.images, directory, vm)
        guest = Guest(spec, self.accelerator, self._wiring.report, restore=saved.memory if saved else None)
        guest.wire = wires.make(carrier, name, directory)
        with self._lock:
            self.guests[name] = guest
            self._wiring.plug(guest, self.running_manager())
            guest.wire.plug_guest(guest.vm)
        guest.power_on()
        return guest

    def add_unmodified(self, name: str, vm: str = "", *, firmware: bool = False, arrives: bool = False) -> Guest:
        """A guest whose TPM is a device of QEMU's, from its first instruction. ``firmware``: through OVMF.

        ``arrives``: it waits for another QEMU's memory; its vTPM, which is not here, comes with that.
        """
        spec = replace(guests.unmodified(name, self.images, self.directory / "guests", vm), firmware=firmware)
        spec = replace(spec, hwtpm=self.shims.add(name, spec.uuid))
        guest = self.guests[name] = Guest(spec, self.accelerator, lambda guest: True, arrives=arrives)
        if not arrives:
            guest.vm.go()
        return guest

    def remove_guest(self, name: str) -> None:
        """End a guest and take its channel out of the manager."""
        with self._lock:
            guest = self.guests.pop(name)
        guest.end()  # first, and without the lock: while it is held at a reset it attaches again and again
        if guest.wire is None:
            self.shims.remove(name)
        with self._lock:
            running = self.manager is not None and self.manager.running()
            self._wiring.unplug(guest, self.manager if running else None)
        guest.close()

    # -- the watcher ----------------------------------------------------------------------------------------

    def _await_wired(self) -> None:
        """What is missing after a while is left to the watcher."""
        if not self._wiring.all_within(_ATTACH):
            self._started = None

    def _watch(self) -> None:
        """Wire everything again when the manager's daemon was restarted."""
        while not self._closing.wait(_WATCH):
            with suppress(VtpmManagerError), self._lock:
                if self.manager is None or not self.manager.running():
                    continue
                started = self.links.host("status", timeout=2.0)["started"]
                if started != self._started:
                    log.info("the manager's daemon was restarted; wiring its guests again")
                    wired = self._wiring.try_all()
                    self.uplink.say()
                    if wired:
                        self._started = started

    # -- end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End guests, manager and hardware TPM; idempotent."""
        self._closing.set()
        self.links.close()
        self._watcher.join()
        for guest in self.guests.values():
            guest.close()
        self.guests.clear()
        self.shims.close()
        self.visits.close()
        if self.manager is not None:
            self.manager.close()
        self.forget_manager()
        if self._hwtpm is not None:
            self._hwtpm.close()
            self._hwtpm = None
        self.uplink.close()
        self.spawner.shutdown()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
