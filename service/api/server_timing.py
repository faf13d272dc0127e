"""The header ``Server-Timing`` (W3C Server Timing): where the time went until the answer began."""

from collections.abc import Iterable

from service.domain.timings import Timings


def server_timing(timings: Timings, *, began_at: float, now: float) -> Iterable[tuple[bytes, bytes]]:
    """Return the header, in milliseconds: limits, queue, upstream, and what was our own; none where nothing was asked.

    ``began_at`` and ``now`` are on the monotonic clock.
    """
    upstream = timings.upstream_until(now)
    if not (upstream or timings.queue or timings.limits):
        return ()
    own = max(0.0, now - began_at - timings.limits - timings.queue - upstream)
    parts = {"limits": timings.limits, "queue": timings.queue, "upstream": upstream, "own": own}
    value = ", ".join(f"{name};dur={seconds * 1_000:.2f}" for name, seconds in parts.items())
    return ((b"server-timing", value.encode()),)
