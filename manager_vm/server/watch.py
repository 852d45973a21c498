"""Notices swtpm processes that end by themselves, also while no guest talks to them."""

from __future__ import annotations

import logging
import threading

from manager_vm.errors import VtpmManagerError
from manager_vm.vtpm.registry import Registry

log = logging.getLogger(__name__)

_INTERVAL = 0.5  # seconds


class Watch:
    """A thread that looks at all processes twice a second (a waitpid each, microseconds)."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="watch", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still watches."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop watching."""
        self._closing.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._closing.wait(_INTERVAL):
            for vtpm in self._registry.all():
                run = vtpm.run
                if run is not None and run.died():
                    self._note(vtpm.name)

    def _note(self, name: str) -> None:
        try:
            self._registry.note_death(self._registry.get(name))
        except VtpmManagerError as error:
            log.error("vTPM %s: %s", name, error)
