"""The destination host of a guest that moves together with its vTPM (``guest_move`` is the source's side).

It waits until its manager has agreed on a key with the source's, and opens a tunnel under it; what then comes is from
the source's host. Post-condition of ``arrive``: the guest runs here and has its vTPM; or it does not run here, and can
be given up, which removes all of it (``give_back`` moves the vTPM back too).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from image.host import guest as guests
from image.host import requests, streams, wires
from image.host.guest import Guest
from image.host.host import Host
from image.host.machine import VmSpec
from image.host.requests import Server
from image.host.transfer import Incoming
from image.host.tunnel import Exit
from image.host.wires import Carrier
from manager_vm.crypto import Key
from manager_vm.errors import HostError, VtpmManagerError
from manager_vm.protocol.tunnel import Suite

log = logging.getLogger(__name__)

STREAMS = ("control", "ram")
NOTICE = 0.05  # seconds for a guest to notice that its port has hung up, before it is connected again
_LOOK = 0.1  # seconds between looks at the manager
_MOVE = 180.0  # seconds for a vTPM to move


class GuestLanding:
    """For one guest. ``vtpm``: uuid of its vTPM. ``at``: where the tunnel ends; port 0: a free one."""

    def __init__(self, host: Host, vtpm: str, at: tuple[str, int] = ("127.0.0.1", 0), suite: Suite = Suite.AES) -> None:
        self._host = host
        self._vtpm = vtpm
        self.address = at if at[1] else streams.free_port(at[0])
        self._suite = suite
        self._directory = host.directory / "guests"
        self._tasks = ExitStack()
        self._closing = threading.Event()
        self._guest: Guest | None = None
        self._incoming: Incoming
        self.arrived = threading.Event()  # the guest runs here
        self._thread = threading.Thread(target=self._wait, name="guest landing", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Idempotent. A guest that has arrived stays."""
        self._closing.set()
        self._thread.join()
        self._tasks.close()
        self._give_up()

    def __enter__(self) -> GuestLanding:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self) -> None:
        """Until the managers have agreed: then the tunnel is opened."""
        while not self._closing.wait(_LOOK):
            with suppress(VtpmManagerError):
                key = Key(self._host.links.host("guest_tunnel_take", timeout=5.0, vtpm=self._vtpm)["tunnel"])
                self._open(key)
                return

    def _open(self, key: Key) -> None:
        sockets = {stream: self._socket(stream) for stream in STREAMS}
        self._tasks.enter_context(Server(sockets["control"], requests.by(self._host.spawner, self._verbs())))
        self._tasks.enter_context(Exit(self.address, key, self._suite, sockets))

    def _socket(self, stream: str) -> Path:
        """Several guests may come at once."""
        return self._directory / f"{self._vtpm[:8]}.{stream}"

    # -- requests of the source's host ------------------------------------------------------------------------

    def _verbs(self) -> dict[str, Callable[..., Any]]:
        return {
            "hello": lambda: None,
            "prepare": self._prepare,
            "arrive": self._arrive,
            "give_back": self._give_back,
            "abort": self._give_up,
        }

    def _prepare(self, name: str, vm: str) -> None:
        """QEMU that waits for the guest's memory; its channel ends at the manager here."""
        host = self._host
        if self._guest is not None or name in host.guests:
            raise HostError(f"this host has a guest {name!r} already")
        guest = self._guest = Guest(self._spec(name, vm), host.accelerator, lambda guest: False, arrives=True)
        guest.wire = wires.make(Carrier.VIRTIO_SERIAL, name, self._directory)
        guest.channel = guest.wire.plug_manager(host.running_manager())
        guest.wire.plug_arriving(guest.vm)
        self._incoming = Incoming(guest.vm)
        self._incoming.listen(self._socket("ram"))

    def _spec(self, name: str, vm: str) -> VmSpec:
        """The machine that it will be here."""
        return guests.spec(name, self._host.images, self._directory, vm)

    def _arrive(self, boot: int) -> None:
        """All of its memory is here, and its vTPM: be its host. Which VM has come QEMU says, not the source."""
        guest = self._prepared()
        self._incoming.await_arrived()
        if guest.vm.qmp.execute("query-status")["status"] == "shutdown":
            raise HostError(f"guest {guest.name} was held at its reset when it left")
        guest.boots.adopt(boot)
        self._host.links.host("attach", name=guest.name, channel=guest.channel, boot=boot, vm=guest.vm.uuid)
        self._host.adopt(guest)
        guest.vm.go()
        self.arrived.set()
        time.sleep(NOTICE)
        assert guest.wire is not None
        guest.wire.join(guest.vm)
        log.info("guest %s has come with its vTPM", guest.name)

    def _give_back(self, order: bytes, to: str) -> None:
        """The guest does not run here and never will; its vTPM goes to the manager at ``to``."""
        name = self._prepared().name
        self._give_up()
        self._host.links.admin("migrate", timeout=_MOVE, name=name, order=order, to=to)

    def _give_up(self) -> None:
        """Nothing comes: what was prepared is gone. HostError if the guest runs here."""
        if self.arrived.is_set() or self._guest is None:
            if self.arrived.is_set() and not self._closing.is_set():
                raise HostError("the guest is here, and runs")
            return
        guest, self._guest = self._guest, None
        self._host.guests.pop(guest.name, None)
        guest.end()
        with suppress(VtpmManagerError):
            self._host.links.host("detach", name=guest.name)
        with suppress(VtpmManagerError):
            if guest.wire is not None:
                guest.wire.unplug(self._host.running_manager())
        guest.close()

    def _prepared(self) -> Guest:
        if self._guest is None or self.arrived.is_set():
            raise HostError("no guest is on its way to this host")
        return self._guest
