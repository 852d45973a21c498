"""The one command that a vTPM executes for its channel: a guest's, or a question of our own."""

from __future__ import annotations

import logging
import math
import select
import time
from collections.abc import Callable

from manager_vm.errors import StoreError, SwtpmError
from manager_vm.protocol.channel_server import Action, ChannelServer
from manager_vm.vtpm.vtpm import Vtpm
from manager_vm.wire.channel import Reason

log = logging.getLogger(__name__)

# what follows: the answer, why it was not executed, or None where nobody knows what became of it
Outcome = bytes | Reason | None
Then = Callable[[Outcome], list[Action]]


class Execution:
    """Belongs to one channel's thread, but for ``hasten``. ``deadline``: seconds per command."""

    def __init__(self, vtpm: Vtpm, poller: select.poll, deadline: float) -> None:
        self._vtpm = vtpm
        self._poller = poller
        self._deadline = deadline
        self._until: float | None = None
        self._latest = math.inf  # no command executes after this
        self._then: Then = lambda outcome: []

    @property
    def running(self) -> bool:
        """Whether swtpm has a command; ``fetch`` when its descriptor is ready, or ``left`` is over."""
        return self._until is not None

    def hasten(self, grace: float) -> None:
        """Nothing new begins; what executes has ``grace`` seconds left."""
        self._latest = time.monotonic() + grace

    def left(self, most: float) -> float:
        """Seconds until ``fetch`` is due even if nothing happens, at most ``most``."""
        if self._until is None:
            return most
        return min(most, max(min(self._until, self._latest) - time.monotonic(), 0.0))

    def begin(self, automaton: ChannelServer, command: bytes, locality: int, then: Then) -> list[Action]:
        """Run a command for ``automaton``; what follows at once, [] if swtpm has it now."""
        if self.running or self._latest < math.inf:  # the manager stops, or asks something itself: the seq stays free
            return then(Reason.QUIESCED)
        self._then = then
        try:
            outcome = self._vtpm.begin(automaton, command, locality)
        except SwtpmError as error:
            return self._give_up(str(error))
        if outcome is not None:
            return then(outcome)
        self._until = time.monotonic() + self._deadline
        self._poller.register(self._vtpm.fileno(), select.POLLIN)
        return []

    def fetch(self) -> list[Action]:
        """Take the answer, if it is complete; what follows from it."""
        fd = self._vtpm.fileno()
        try:
            response = self._vtpm.finish()
        except (SwtpmError, StoreError) as error:
            self._poller.unregister(fd)
            return self._give_up(str(error))
        if response is not None:
            self._poller.unregister(fd)
            self._until = None
            actions = self._then(response)
            self._vtpm.release()
            return actions
        if self._until is not None and time.monotonic() >= min(self._until, self._latest):
            self._poller.unregister(fd)
            return self._give_up(self._overdue())
        return []

    def _overdue(self) -> str:
        if time.monotonic() >= self._latest:
            return "the manager stops and a command still executes; swtpm was killed"
        return f"a command took longer than {self._deadline:.0f} s; swtpm was killed"

    def _give_up(self, cause: str) -> list[Action]:
        log.error("vTPM %s: %s", self._vtpm.name, cause)
        self._until = None
        self._vtpm.give_up()
        actions = self._then(None)
        self._vtpm.release()
        return actions
