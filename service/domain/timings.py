"""Where the time of one generation goes; filled in while it runs."""

from dataclasses import dataclass


@dataclass(slots=True)
class Timings:
    """Seconds. What is left of the whole is our own."""

    limits: float = 0.0
    """Until the word on its limits."""
    queue: float = 0.0
    """Waiting for turns at providers, and before retries."""
    upstream: float = 0.0
    """While at least one call to a provider ran."""
    first_content: float | None = None
    """From the request to the first content of a stream."""
    calls_running: int = 0
    upstream_since: float = 0.0
    """Monotonic seconds at which the first of those that run began."""

    def call_begins(self, now: float) -> None:
        """Take note of a call that begins at ``now``, on the monotonic clock."""
        if not self.calls_running:
            self.upstream_since = now
        self.calls_running += 1

    def call_ends(self, now: float) -> None:
        """Take note of the end of one."""
        self.calls_running -= 1
        if not self.calls_running:
            self.upstream += now - self.upstream_since

    def upstream_until(self, now: float) -> float:
        """Return the seconds in calls so far, those that run included."""
        return self.upstream + (now - self.upstream_since if self.calls_running else 0.0)

    def others_until(self, now: float) -> float:
        """Return the seconds so far that were not our own; 0 where no provider was asked."""
        upstream = self.upstream_until(now)
        return self.limits + self.queue + upstream if upstream else 0.0
