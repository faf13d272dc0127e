"""One window of load on one target: what it did, what it cost, and whether it counts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

LATE_P99_US = 10_000
"""Most lateness of the upstream's paced chunks: later by half a gap of 20 ms, chunks come two at a time."""
LAG_P50_US, LAG_P99_US = 1_000, 10_000
"""Most delay between the intended and the real send of an open window: more, and the generator is what is measured."""


@dataclass(frozen=True, slots=True)
class Window:
    """The raw result, as it stands in the file of results."""

    target: str
    workload: str
    requests: int
    failed: int
    cpu_us: float
    """Of the target's process tree."""
    rig_us: float
    """Of the load generator and the upstream together."""
    seconds: float
    late_p99_us: int = 0
    report: Mapping[str, Any] = field(default_factory=dict)
    also_us: Mapping[str, float] = field(default_factory=dict)
    """CPU time of the target's other processes, such as its store."""

    @property
    def us_per_request(self) -> float:
        """CPU microseconds of the target for each request."""
        return self.cpu_us / self.requests

    @property
    def rig_us_per_request(self) -> float:
        """CPU microseconds of the rig for each request."""
        return self.rig_us / self.requests

    def as_json(self) -> dict[str, Any]:
        """Return it as the file has it, with the reason where it does not count."""
        return {**asdict(self), "invalid": invalidity(self)}


def is_rigs_fault(window: Window) -> bool:
    """Whether a window does not count though the target did its part: it may be tried again."""
    return not window.failed and window.requests > 0 and invalidity(window) is not None


def invalidity(window: Window) -> str | None:
    """Say why a window does not count; None if it does."""
    if window.failed:
        failures = ", ".join(f"{count} x {what}" for what, count in window.report.get("failures", {}).items())
        return f"{window.failed} of {window.requests} requests failed: {failures}"
    if not window.requests:
        return "no request was finished"
    if window.late_p99_us > LATE_P99_US:
        return f"the upstream's chunks were late by {window.late_p99_us / 1000:.0f} ms (p99)"
    lag = window.report.get("lag_us", {})
    if window.workload.startswith("open") and (lag["p50"] > LAG_P50_US or lag["p99"] > LAG_P99_US):
        return f"the generator was late by {lag['p50'] / 1000:.1f} ms (p50), {lag['p99'] / 1000:.1f} ms (p99)"
    return None
