"""A circuit breaker: stops asking what does not answer, and finds out with one call at a time whether it does again."""

from collections import deque
from collections.abc import Callable
from enum import StrEnum

import msgspec

from service.config import BreakerSettings
from service.domain.clock import Clock

SLOTS = 10
"""Into which the window of the failure rate is divided."""
PROBE_S = 10.0
"""How long a probe keeps others from probing. What is repaired answers new calls while an old one may still hang."""
REFUSALS = 5
"""So many in a row open what has worked: one may be about that very request, or a name that its caller made up."""


class State(StrEnum):
    """What a breaker does with the next call."""

    CLOSED = "closed"
    """It passes."""
    OPEN = "open"
    """It does not, for a time."""
    HALF_OPEN = "half_open"
    """It does not while a probe is under way."""


class Permit:
    """One call that a breaker let through. Whoever made it says how it went; of a stream that broke off, both words."""

    __slots__ = ("_breaker", "_epoch", "_is_probe", "_success")

    def __init__(self, breaker: "Breaker", epoch: int, *, is_probe: bool) -> None:
        self._breaker = breaker
        self._epoch = epoch
        self._is_probe = is_probe
        self._success: Success | None = None

    def succeeded(self) -> None:
        """Say that an answer came, or is coming: the other side works."""
        self._success = self._breaker.note_success(self._epoch)

    def failed(self, cause: str) -> None:
        """Say that no answer came, or a broken one; also after :meth:`succeeded`, where it broke off later."""
        success, self._success = self._success, None
        self._breaker.note_failure(self._epoch, cause, taken_back=success)

    def refused(self, cause: str) -> None:
        """Say that the other side works, and does not want calls of this kind, or this one."""
        self._breaker.note_refusal(self._epoch, cause)

    def left(self) -> None:
        """Say that nothing was learnt: the call was not made, or was cancelled."""
        if self._is_probe:
            self._breaker.note_nothing(self._epoch)


class Success(msgspec.Struct, frozen=True):
    """What a success did, so that it can be taken back."""

    number: int
    row: int
    """Failures in a row that it ended."""


class Breaker:
    """Opens after failures in a row, or at a rate; then lets single probes through, and closes after one that succeeds.

    It opens after refusals, too: after the first where nothing has ever succeeded, else after some in a row.
    What calls report that began before it opened or closed is passed over: it is about another time.
    """

    def __init__(
        self,
        settings: BreakerSettings,
        *,
        clock: Clock,
        random: Callable[[], float],
        on_change: Callable[["Breaker"], None],
    ) -> None:
        """``on_change`` is called after each change of :attr:`state`."""
        self._settings = settings
        self._clock = clock
        self._random = random
        self._on_change = on_change
        self._window: deque[_Slot] = deque(maxlen=SLOTS)
        self._row = 0
        self._refusals = 0
        """In a row."""
        self._successes = 0
        self._epoch = 0
        self._opened_epoch = 0
        self._openings = 0
        """In a row, without a longer time of peace between them."""
        self._closed_at = -float("inf")
        self._next_probe_at = 0.0
        self.state = State.CLOSED
        self.cause = ""
        """Why it is not closed."""
        self.is_refusal = False
        """Whether it is not closed because calls were refused, not for want of answers."""

    @property
    def wait_s(self) -> float:
        """Seconds until a call may pass; 0 if it may now. A probe that is under way may end the wait at any time."""
        if self.state is State.CLOSED:
            return 0.0
        wait_s = max(0.0, self._next_probe_at - self._clock.monotonic())
        return min(wait_s, self._settings.open_s) if self.state is State.HALF_OPEN else wait_s

    @property
    def idle_s(self) -> float:
        """Seconds for which a call could have passed, and none came; 0 if it is closed."""
        return 0.0 if self.state is State.CLOSED else max(0.0, self._clock.monotonic() - self._next_probe_at)

    def admit(self) -> Permit | None:
        """Let a call through, or not."""
        if self.state is State.CLOSED:
            return Permit(self, self._epoch, is_probe=False)
        now = self._clock.monotonic()
        if now < self._next_probe_at:
            return None
        self._next_probe_at = now + PROBE_S
        self._epoch += 1
        self._set(State.HALF_OPEN)
        return Permit(self, self._epoch, is_probe=True)

    def note_success(self, epoch: int) -> Success | None:
        """See :meth:`Permit.succeeded`."""
        if self.state is State.HALF_OPEN:
            # A probe that others overtook, since it took longer than they had to wait, proves as much as theirs.
            if epoch > self._opened_epoch:
                self._successes += 1
                self._close()
            return None
        if epoch != self._epoch:
            return None
        self._successes += 1
        success = Success(self._successes, self._row)
        self._row = self._refusals = 0
        self._slot().calls += 1
        return success

    def note_failure(self, epoch: int, cause: str, *, taken_back: Success | None = None) -> None:
        """See :meth:`Permit.failed`; ``taken_back`` is the success that was reported too early."""
        if epoch != self._epoch:
            return
        if self.state is State.HALF_OPEN:
            self._open(cause)
            return
        slot = self._slot()
        slot.failures += 1
        self._row += 1
        if taken_back is None:
            slot.calls += 1
        elif taken_back.number == self._successes:
            # Nothing has succeeded since, so that the row goes on where it was thought to have ended.
            self._row += taken_back.row
        if self._row >= self._settings.failures_in_a_row or self._fails_at_a_rate():
            self._open(cause)

    def note_refusal(self, epoch: int, cause: str) -> None:
        """See :meth:`Permit.refused`."""
        if epoch != self._epoch:
            return
        if not self._successes or (self.state is State.HALF_OPEN and self.is_refusal):
            self._open(cause, refused=True)
            return
        if self.state is State.HALF_OPEN:
            self._close()  # what did not answer does
        self._refusals += 1
        if self._refusals >= REFUSALS:
            self._open(cause, refused=True)

    def note_nothing(self, epoch: int) -> None:
        """See :meth:`Permit.left`."""
        if epoch == self._epoch and self.state is State.HALF_OPEN:
            self._next_probe_at = self._clock.monotonic()

    def _fails_at_a_rate(self) -> bool:
        oldest = self._slot_number() - SLOTS
        recent = [slot for slot in self._window if slot.number > oldest]
        calls = sum(slot.calls for slot in recent)
        failures = sum(slot.failures for slot in recent)
        return calls >= self._settings.calls_at_least and failures >= self._settings.failure_ratio * calls

    def _open(self, cause: str, *, refused: bool = False) -> None:
        settings = self._settings
        base_s, cap_s = (
            (settings.refused_s, settings.refused_max_s) if refused else (settings.open_s, settings.open_max_s)
        )
        now = self._clock.monotonic()
        if self.state is State.CLOSED and now - self._closed_at > 2 * cap_s:
            self._openings = 0
        rest_s = min(cap_s, base_s * 2.0 ** min(self._openings, SLOTS))
        self._openings += 1
        self._epoch += 1
        self._opened_epoch = self._epoch
        self.cause = cause
        self.is_refusal = refused
        # Up to a quarter earlier: the processes of a fleet, which opened together, must not probe together.
        self._next_probe_at = now + rest_s * (1 - self._random() / 4)
        self._set(State.OPEN)

    def _close(self) -> None:
        self._epoch += 1
        self._row = self._refusals = 0
        self._window.clear()
        self._closed_at = self._clock.monotonic()
        self.cause = ""
        self.is_refusal = False
        self._set(State.CLOSED)

    def _set(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self._on_change(self)

    def _slot(self) -> "_Slot":
        number = self._slot_number()
        if not self._window or self._window[-1].number != number:
            self._window.append(_Slot(number))
        return self._window[-1]

    def _slot_number(self) -> int:
        return int(self._clock.monotonic() * SLOTS / self._settings.window_s)


class _Slot:
    """The calls of one part of the window."""

    __slots__ = ("calls", "failures", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = 0
        self.failures = 0
