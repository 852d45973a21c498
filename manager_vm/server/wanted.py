"""Guests' commands for a vTPM that does not run: somebody may be able to make it run (``following``).

Channels only say that a command came. What is to be done may take long, and waits for another manager perhaps: a thread
for each vTPM does it, and one at a time for each; a guest asks again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from manager_vm.errors import VtpmManagerError

log = logging.getLogger(__name__)


class Wanted:
    """Thread-safe. ``serve`` with whether something can be done about a vTPM, by its name, and how."""

    def __init__(self) -> None:
        self._concerns: Callable[[str], bool] = lambda name: False
        self._handle: Callable[[str], None]
        self._threads: dict[str, threading.Thread] = {}
        self._complaints: dict[str, str] = {}
        self._lock = threading.Lock()

    def serve(self, concerns: Callable[[str], bool], handle: Callable[[str], None]) -> None:
        """From now on. ``concerns`` never waits."""
        self._handle, self._concerns = handle, concerns

    def ask(self, name: str) -> None:
        """A command came for this vTPM; never waits."""
        if not self._concerns(name):
            return
        with self._lock:
            if name not in self._threads:
                thread = threading.Thread(target=self._run, args=(name,), name=f"wanted {name}", daemon=True)
                self._threads[name] = thread
                thread.start()

    def close(self) -> None:
        """Nothing more; what is being done is finished first."""
        self._concerns = lambda name: False
        with self._lock:
            threads = list(self._threads.values())
        for thread in threads:
            thread.join()

    def _run(self, name: str) -> None:
        try:
            self._handle(name)
            self._complaints.pop(name, None)
        except VtpmManagerError as error:
            if self._complaints.get(name) != str(error):  # a guest asks again and again
                log.warning("vTPM %s: %s", name, error)
            self._complaints[name] = str(error)
        finally:
            with self._lock:
                del self._threads[name]
