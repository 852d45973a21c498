"""How often something may be noted whose number somebody else decides. Pure: the clock's time is passed in."""

from __future__ import annotations


class Limit:
    """At most ``burst`` at once, one more each ``interval`` seconds; what is left out is counted. Not thread-safe."""

    def __init__(self, burst: int, interval: float) -> None:
        self._burst = burst
        self._interval = interval
        self._left = float(burst)
        self._then: float | None = None
        self._omitted = 0

    def allows(self, now: float) -> bool:
        """Whether one more may be noted; if not, it is counted."""
        if self._then is not None:
            self._left = min(self._left + (now - self._then) / self._interval, float(self._burst))
        self._then = now
        if self._left < 1:
            self._omitted += 1
            return False
        self._left -= 1
        return True

    def omitted(self) -> int:
        """How many were left out since the last call."""
        found, self._omitted = self._omitted, 0
        return found
