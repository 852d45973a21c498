"""Guests of other hosts whose vTPMs come here: a channel for each, wired when its vTPM has arrived."""

from __future__ import annotations

import threading
from pathlib import Path

from image.host import wires
from image.host.guest import Guest
from image.host.links import Links
from image.host.vm import Vm
from image.host.wires import Carrier, Wire


class Visits:
    """``links``: to the manager that vTPMs come to. The wires' sockets stand in ``directory``."""

    def __init__(self, links: Links, directory: Path) -> None:
        self._links = links
        self._directory = directory
        self._wires: list[Wire] = []

    def plug(self, manager: Vm, guest: Guest, carrier: Carrier) -> str:
        """Give the guest a channel to this manager beside the one that it has; its address in the manager."""
        wire = wires.make(carrier, f"{guest.name}-visit", self._directory)
        self._wires.append(wire)
        channel = wire.plug_manager(manager)
        wire.plug_guest(guest.vm)
        return channel

    def expect(self, guest: Guest, channel: str) -> threading.Thread:
        """Wire the guest's vTPM to a channel as soon as it is here; the guest's boot is the one that it knows."""

        def request() -> None:
            self._links.host("attach", name=guest.name, channel=channel, boot=guest.boots.number, vm=guest.uuid)

        what = f"the vTPM of guest {guest.name} is not here yet"
        thread = threading.Thread(target=self._links.insist, args=(what, request, guest.closing), daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """Free what the wires need on the host; idempotent."""
        for wire in self._wires:
            wire.close()
        self._wires.clear()
