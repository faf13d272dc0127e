"""How many calls a provider is asked at once: all that come, until it shows that they are too many.

Falls by a factor when the provider pushes back (429, 529, timeouts), and in proportion when first tokens come late;
grows slowly. Times to whole answers say nothing: they grow with the answer's length. After Netflix's Gradient2 (late
against usual times, a tolerance, a bounded step) and TCP's additive increase, multiplicative decrease.
"""

import math
from statistics import median

from service.domain.clock import Clock

LEAST = 4
"""Calls that may always run; where no more do, their number is not what the provider complains of."""
BACK_OFF = 0.7
"""What a push back leaves of the calls that run."""
WINDOW_S = 1.0
"""Within which push backs are one sign, over which times are looked at, and after which a limit grows."""
SAMPLES_AT_LEAST = 10
"""First tokens that a window needs to say anything."""
TOLERANCE = 2.0
"""How much later than usual first tokens may come."""
TOLERANCE_S = 0.25
"""The same in seconds, for providers whose usual time is short: on such scales times are this machine's own."""
LATE_WINDOWS = 3
"""In a row: one can be a burst, or a run of long prompts."""
USUAL_PART, LATE_PART = 0.1, 0.02
"""How much a window moves what is usual. Little where it is late: we get used to a lasting change within minutes."""
STEP_PART = 0.1
"""Growth in a window in which the limit was needed."""
FORGOTTEN_S = 60.0
"""Without a sign of trouble a limit is forgotten after so long."""


class AdaptiveLimit:
    """The limit of one provider in one process."""

    def __init__(self, *, clock: Clock, enabled: bool = True) -> None:
        self.enabled = enabled
        self._clock = clock
        self._limit = math.inf
        self._times: list[float] = []
        self._usual_s: float | None = None
        self._late_windows = 0
        self._most = 0
        """Calls at once since the last step."""
        self._was_needed = False
        """Whether it kept a call from beginning since then."""
        self._window_at = self._step_at = self._trouble_at = clock.monotonic()

    @property
    def value(self) -> float:
        """Calls that may run at once; infinite where nothing speaks against more."""
        return self._limit if self.enabled else math.inf

    def was_needed(self) -> None:
        """Take note that it kept a call from beginning."""
        self._was_needed = True

    def began(self, running: int) -> bool:
        """Take note of how many run, now that one more does. Return, as those below do, whether the limit changed."""
        self._most = max(self._most, running)
        if self._limit == math.inf:
            return False
        now = self._clock.monotonic()
        if now - self._step_at < WINDOW_S:
            return False
        before = self._limit
        if now - self._trouble_at >= FORGOTTEN_S:
            self._limit = math.inf
        elif self._was_needed and not self._late_windows:
            self._limit += max(1, math.floor(self._limit * STEP_PART))
        self._step_at = now
        self._most = running
        self._was_needed = False
        return self._limit != before

    def pushed_back(self, running: int) -> bool:
        """Take note that the provider says it has too much to do; those that run at the same time say it once."""
        now = self._clock.monotonic()
        if running <= LEAST or (now - self._trouble_at < WINDOW_S and self._limit < math.inf):
            return False
        return self._lower(min(self._limit, running) * BACK_OFF, now)

    def first_content(self, seconds: float) -> bool:
        """Take note of how long a first content took."""
        self._times.append(seconds)
        now = self._clock.monotonic()
        if now - self._window_at < WINDOW_S or len(self._times) < SAMPLES_AT_LEAST:
            return False
        typical_s = median(self._times)
        self._times.clear()
        self._window_at = now
        return self._look(typical_s, now)

    def _look(self, typical_s: float, now: float) -> bool:
        if self._usual_s is None:
            self._usual_s = typical_s
        bearable_s = max(self._usual_s * TOLERANCE, self._usual_s + TOLERANCE_S)
        is_late = typical_s > bearable_s
        self._usual_s += (typical_s - self._usual_s) * (LATE_PART if is_late else USUAL_PART)
        self._late_windows = self._late_windows + 1 if is_late else 0
        if self._late_windows < LATE_WINDOWS or self._most <= LEAST:
            return False
        return self._lower(min(self._limit, self._most) * max(0.5, bearable_s / typical_s), now)

    def _lower(self, limit: float, now: float) -> bool:
        before = self._limit
        self._limit = max(LEAST, math.floor(limit))
        self._trouble_at = self._step_at = now
        self._most = 0
        self._was_needed = False
        return self._limit != before
