"""What one guest does wrong, in the log: never so often that it fills the log or holds up other guests there."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)

BURST = 8  # lines at once
REFILL = 1.0  # seconds until one more line is allowed


class Complaints:
    """One guest's. ``about`` begins each line. Lines beyond the limit are counted and told with the next one."""

    def __init__(self, about: str) -> None:
        self._about = about
        self._allowed = float(BURST)
        self._last = time.monotonic()
        self._untold = 0

    def report(self, what: object) -> None:
        """Log ``what``, or count it."""
        if not self._may_speak():
            self._untold += 1
            return
        more = f" ({self._untold} more since the last line)" if self._untold else ""
        self._untold = 0
        log.warning("%s: %s%s", self._about, what, more)

    def tell_rest(self) -> None:
        """Say how many lines were left out, if any; to be called now and then."""
        if self._untold and self._may_speak():
            log.warning("%s: %d more complaints since the last line", self._about, self._untold)
            self._untold = 0

    def _may_speak(self) -> bool:
        now = time.monotonic()
        self._allowed = min(self._allowed + (now - self._last) / REFILL, BURST)
        self._last = now
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True
