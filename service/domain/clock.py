"""Time as a collaborator, so that tests can move it."""

import time
from typing import Protocol, Self

import msgspec


class Clock(Protocol):
    """Where time comes from."""

    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean anything. The same scale as the event loop's."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch (UTC)."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """See :class:`Clock`."""
        return time.monotonic()

    def wall(self) -> float:
        """See :class:`Clock`."""
        return time.time()


class ManualClock:
    """A clock that moves only when told to; for tests."""

    def __init__(self, *, monotonic: float = 1_000.0, wall: float = 1_800_000_000.0) -> None:
        self._monotonic = monotonic
        self._wall = wall

    def monotonic(self) -> float:
        """See :class:`Clock`."""
        return self._monotonic

    def wall(self) -> float:
        """See :class:`Clock`."""
        return self._wall

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self._monotonic += seconds
        self._wall += seconds


class Deadline(msgspec.Struct, frozen=True):
    """An instant on the monotonic clock; what passes it is of no use to the caller any more."""

    at: float
    """Monotonic seconds."""

    @classmethod
    def after(cls, seconds: float, clock: Clock) -> Self:
        """Make the deadline ``seconds`` from now."""
        return cls(clock.monotonic() + seconds)
