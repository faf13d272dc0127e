"""From what a pod carried to what the chart is told. Arithmetic alone."""

from dataclasses import dataclass
from math import ceil

from load.capacity.pod import Observed

CPU_STEP_M, MEMORY_STEP_MI = 10, 16
"""What requests are rounded up to: millicores, MiB."""
MEMORY_SPARE, MEMORY_LIMIT = 1.2, 2.0
"""Requested, and at most, as a multiple of what was used."""
CPU_PERCENT = 80
"""Of the CPU at the knee, which is what is requested: above the target by streams, so that CPU is the second to ask."""
STREAM_SPARE = 1.5
"""The longest stream that a stop waits for, as a multiple of the longest seen."""
STREAM_STEP_S, STREAM_MIN_S = 5, 30
PODS_SPARE = 1.5
PODS_MIN = 2
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Plan:
    """Values of the chart."""

    target_per_s: float
    """Requests each second for which a pod is planned."""
    streams_per_pod: int
    requests_per_pod: int
    cpu_m: int
    memory_request_mi: int
    memory_limit_mi: int
    longest_stream_s: int
    pods_max: int | None


def planned(
    knee_per_s: float,
    at_knee: Observed,
    *,
    longest_stream_s: float,
    fraction: float,
    planned_per_s: float | None = None,
) -> Plan:
    """Return the values for pods that work at a fraction of the knee; zero leaves a metric out."""
    target = fraction * knee_per_s
    return Plan(
        target_per_s=target,
        streams_per_pod=_below(at_knee.streams, fraction),
        requests_per_pod=_below(at_knee.requests, fraction),
        cpu_m=_stepped(at_knee.cores * 1000, CPU_STEP_M),
        memory_request_mi=_stepped(at_knee.memory_bytes / MIB * MEMORY_SPARE, MEMORY_STEP_MI),
        memory_limit_mi=_stepped(at_knee.memory_bytes / MIB * MEMORY_LIMIT, MEMORY_STEP_MI),
        longest_stream_s=max(STREAM_MIN_S, _stepped(longest_stream_s * STREAM_SPARE, STREAM_STEP_S)),
        pods_max=None if planned_per_s is None else max(PODS_MIN, ceil(planned_per_s / target * PODS_SPARE)),
    )


def _below(measured: float, fraction: float) -> int:
    """Return a target that is never above what was measured: of less than one at a time there is no target."""
    return int(measured * fraction)


def _stepped(value: float, step: int) -> int:
    return max(step, ceil(value / step) * step)
