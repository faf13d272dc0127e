"""How long to wait before another attempt."""

from collections.abc import Callable
from dataclasses import dataclass

MOST_DOUBLINGS = 32
"""Beyond any cap; further ones would only overflow."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Full jitter: any time up to a ceiling that doubles, so that those who failed together do not come back together.

    Marc Brooker, "Timeouts, retries, and backoff with jitter", Amazon Builders' Library.
    """

    base_s: float
    """Ceiling of the first wait."""
    cap_s: float
    """Ceiling of all waits."""
    random: Callable[[], float]
    """Gives numbers from 0 up to 1."""

    def wait_s(self, retry: int, *, at_least_s: float = 0.0) -> float:
        """Return the seconds before a retry, the first being 1.

        ``at_least_s`` is what the other side asked for: the jitter comes on top, or all would return in that moment.
        """
        ceiling = min(self.cap_s, self.base_s * 2.0 ** min(retry - 1, MOST_DOUBLINGS))
        return at_least_s + self.random() * ceiling
