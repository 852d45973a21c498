"""Names and uids of vTPMs that are being made: each is given once."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager

from manager_vm.errors import BusyError, ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Reservations:
    """Thread-safe. ``uid_base``: the first uid of vTPMs; ``limit``: how many there may be."""

    def __init__(self, uid_base: int, limit: int) -> None:
        self._uid_base = uid_base
        self._limit = limit
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}  # name -> uid

    @contextmanager
    def hold(self, name: str, names: Container[str], uids: Callable[[], set[int]]) -> Iterator[int]:
        """A free uid, and the name, for this block. At its end a vTPM that was made is in ``names`` and ``uids``.

        ConfigError for a name that cannot be one, BusyError for one that is in use, or where there are enough.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot be a vTPM's name: use 1 to 63 letters, digits, '.', '_' or '-', no sign first"
            )
        with self._lock:
            self._held[name] = self._free_uid(name, names, uids)
        try:
            yield self._held[name]
        finally:
            with self._lock:
                del self._held[name]

    def _free_uid(self, name: str, names: Container[str], uids: Callable[[], set[int]]) -> int:
        # what is held is looked at first: whoever is not there any more stands among the others already
        held = dict(self._held)
        if name in held or name in names:
            raise BusyError(f"there is a vTPM {name!r} already; choose another name or 'destroy {name}' first")
        used = set(held.values()) | uids()
        if len(used) >= self._limit:
            raise BusyError(f"this manager holds {self._limit} vTPMs, as many as its configuration allows (max_vtpms)")
        return next(uid for uid in range(self._uid_base, self._uid_base + self._limit) if uid not in used)
