"""How fast turns come at a provider, or at one of its models, in one process."""

from collections import deque

HANDED = 32
"""Turns from which the pace is measured."""
HANDED_AT_LEAST = 4
LEARNING_PART = 0.1
"""How much one call moves the typical duration of calls."""


class Pace:
    """How fast turns come, of late."""

    def __init__(self) -> None:
        self._handed: deque[float] = deque(maxlen=HANDED)
        """When waiting began, and when each turn came since."""
        self._typical_s = 0.0
        """How long a call takes."""

    def backlog_begins(self, now: float) -> None:
        """Measure anew: before, nobody waited."""
        self._handed.clear()
        self._handed.append(now)

    def handed(self, now: float) -> None:
        """Take note of a turn."""
        self._handed.append(now)

    def took(self, seconds: float) -> None:
        """Take note of how long a call took."""
        self._typical_s += (seconds - self._typical_s) * LEARNING_PART

    def interval_s(self, now: float, *, running: int, waiting: int) -> float:
        """Return the seconds between two turns: as measured, else as calls end."""
        turns = len(self._handed) - 1
        if waiting and turns >= HANDED_AT_LEAST:
            return (now - self._handed[0]) / turns
        return self._typical_s / max(1, running)
