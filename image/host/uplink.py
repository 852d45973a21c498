"""The manager VM's card in the network between hosts: plugged at each start, its addresses said over the host link."""

from __future__ import annotations

import time
from pathlib import Path

from image.host.links import Links
from image.host.network import Card
from image.host.vm import Vm
from manager_vm.errors import StateError, UnreachableError

_TAKEN_UP = 30.0  # seconds for the VM's kernel to find a plugged card
_PAUSE = 0.5
_SAY = 5.0  # seconds for the answer: what is lost while a VM wakes up is said again


class Uplink:
    """``links``: to the manager. ``path``: QEMU's socket of the card. Without ``card`` there is no network."""

    def __init__(self, links: Links, path: Path) -> None:
        self.path = path
        self.card: Card | None = None
        self._links = links

    def plug(self, manager: Vm) -> None:
        """Plug the card and have the manager set it up. StateError: its kernel does not find it; UnreachableError."""
        if self.card is None:
            return
        manager.plug_card("card", self.card)
        deadline = time.monotonic() + _TAKEN_UP
        while True:
            try:
                return self.say()
            except (StateError, UnreachableError):
                if time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE)

    def unplug(self, manager: Vm) -> None:
        """Take the card out; nothing happens if it is not there."""
        if self.card is not None:
            manager.unplug_card("card")

    def say(self) -> None:
        """Tell the manager what its card has: after each start of its daemon too."""
        if self.card is not None:
            card = self.card
            addresses = list(card.addresses)
            self._links.host("network", timeout=_SAY, mac=card.mac, addresses=addresses, gateway=card.gateway)

    def close(self) -> None:
        """Idempotent."""
        self.path.unlink(missing_ok=True)
