"""What a host tells its manager of its guests: which channel is whose, and which boot of each is running."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress

from image.host.guest import Guest
from image.host.links import Links
from image.host.vm import Vm
from manager_vm.errors import HostError, StateError, UnknownVtpmError, VtpmManagerError

log = logging.getLogger(__name__)

_PAUSE = 1.0  # seconds between two tries


class GuestWiring:
    """``links``: to the manager. ``guests``: those of the host, by name, as they come and go."""

    def __init__(self, links: Links, guests: Mapping[str, Guest]) -> None:
        self._links = links
        self._guests = guests

    def plug(self, guest: Guest, manager: Vm) -> None:
        """Plug the manager's end of the guest's channel."""
        if guest.wire is not None:
            guest.channel = guest.wire.plug_manager(manager)

    def unplug(self, guest: Guest, manager: Vm | None) -> None:
        """The guest's channel ends, in the manager too if its VM runs."""
        with suppress(VtpmManagerError):
            self._links.host("detach", name=guest.name)
        if guest.wire is not None and guest.channel and manager is not None:
            guest.wire.unplug(manager)

    def replug(self, manager: Vm) -> None:
        """Guests' channels ended in another VM: they end in this one again."""
        for guest in [each for each in self._guests.values() if each.channel]:
            self.unplug(guest, manager)
            self.plug(guest, manager)

    def attach(self, guest: Guest) -> None:
        """Wire the vTPM to its channel, say which VM is there, and name the running boot."""
        if not guest.channel:
            raise HostError(f"the channel of guest {guest.name} is not plugged into the manager yet")
        self._links.host("attach", name=guest.name, channel=guest.channel, boot=guest.boots.number, vm=guest.uuid)

    def report(self, guest: Guest) -> bool:
        """The guest is held: have the manager acknowledge its boot. The first report wires the channel too."""

        def request() -> None:
            try:
                self.attach(guest)
            except StateError:
                self._catch_up(guest)
                raise

        return self._links.insist(f"guest {guest.name} is held at its reset", request, guest.closing)

    def try_all(self) -> bool:
        """Try to attach every guest once; whether all are. One that cannot be keeps no other without its TPM."""
        missing = []
        for guest in list(self._guests.values()):
            try:
                if guest.wire is not None and guest.boots.number:
                    self.attach(guest)
            except StateError as error:
                log.warning("guest %s waits for its next reset: %s", guest.name, error)
            except UnknownVtpmError:
                log.info("the vTPM of guest %s is not here (any more): there is nothing to wire", guest.name)
            except VtpmManagerError as error:
                missing.append(f"guest {guest.name}: {error}")
        for line in missing:
            log.warning("%s; trying again", line)
        return not missing

    def all_within(self, patience: float) -> bool:
        """Wire all guests; whether all are after ``patience`` seconds at most."""
        deadline = time.monotonic() + patience
        while not self.try_all():
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)
        return True

    def _catch_up(self, guest: Guest) -> None:
        """An operator's ``start --power-on`` counts as a boot: ours must be a later one, or we wait for ever."""
        applied = next((each["boot"] for each in self._links.host("list") if each["name"] == guest.name), 0)
        if applied >= guest.boots.number:
            guest.boots.advance(applied)
