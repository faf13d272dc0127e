"""How many attempts may be made beyond one for each request, so that retries do not multiply an outage."""

from service.domain.clock import Clock

SLOT_S = 1.0
"""Over which a rate is looked at."""


class Budget:
    """A bucket of extra attempts, filled by requests, and by time where they are few.

    In any whole number of slots no more is spent than the greater of ``ratio`` of their requests and ``per_s`` of their
    time, slot by slot, and ``reserve`` from quieter times.
    """

    def __init__(
        self, *, ratio: float, per_s: float, reserve: float, clock: Clock, initial: float | None = None
    ) -> None:
        """It begins with ``initial``, or with the reserve."""
        self._ratio = ratio
        self._floor = per_s * SLOT_S
        self._reserve = reserve
        self._clock = clock
        self._balance = reserve if initial is None else initial
        self._slot = self._slot_now()
        self._earned = 0.0
        """In the slot that runs."""

    def earn(self) -> None:
        """Take note of a request."""
        self._turn()
        self._earned += self._ratio
        self._balance = min(self._reserve, self._balance + self._ratio)

    def spend(self) -> bool:
        """Pay for an attempt that is not the first; False if there is nothing left for it."""
        self._turn()
        if self._balance < 1.0:
            return False
        self._balance -= 1.0
        return True

    def _turn(self) -> None:
        """Fill up, for the slots that are over, what requests have not brought."""
        slot = self._slot_now()
        if slot == self._slot:
            return
        due = max(0.0, self._floor - self._earned) + (slot - self._slot - 1) * self._floor
        self._balance = min(self._reserve, self._balance + due)
        self._slot = slot
        self._earned = 0.0

    def _slot_now(self) -> int:
        return int(self._clock.monotonic() // SLOT_S)
