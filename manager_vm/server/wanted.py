"""Guests' commands for a vTPM that does not run: somebody may be able to make it run (``following``).

Channels only say that a command came; a thread does what is to be done, once for as many as have come meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from manager_vm.errors import VtpmManagerError

log = logging.getLogger(__name__)


class Wanted:
    """Thread-safe. ``serve`` with what to do about a vTPM, by its name."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}  # in their order
        self._change = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._complaints: dict[str, str] = {}

    def ask(self, name: str) -> None:
        """A command came for this vTPM; never waits."""
        with self._change:
            self._names[name] = None
            self._change.notify()

    def serve(self, handle: Callable[[str], None]) -> None:
        """From now on ``handle`` is called, by one thread."""
        self._thread = threading.Thread(target=self._run, args=(handle,), name="wanted", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Idempotent; what is being done is finished first."""
        with self._change:
            self._closing = True
            self._change.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self, handle: Callable[[str], None]) -> None:
        while (name := self._next()) is not None:
            try:
                handle(name)
                self._complaints.pop(name, None)
            except VtpmManagerError as error:
                if self._complaints.get(name) != str(error):  # a guest asks again and again
                    log.warning("vTPM %s: %s", name, error)
                self._complaints[name] = str(error)

    def _next(self) -> str | None:
        with self._change:
            while not self._names and not self._closing:
                self._change.wait()
            if self._closing:
                return None
            name = next(iter(self._names))
            del self._names[name]
            return name
