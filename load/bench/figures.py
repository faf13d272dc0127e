"""From windows to figures: medians over rounds, and a stream's cost as a line through two lengths."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from load.bench.windows import Window, invalidity

SHORT, LONG = 64, 256
"""Chunks of the two streams whose difference is the cost of a chunk."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of one target: the median of its rounds, the least and the greatest, and the rig's own part beside."""

    value: float
    low: float
    high: float
    rounds: int
    rig: float | None = None
    """What the rig itself took for the same, in the same windows."""

    def as_json(self) -> dict[str, float | int | None]:
        """Return it as the file has it."""
        return asdict(self)


def figure(values: Sequence[float], rig: Sequence[float] = ()) -> Figure:
    """Make a figure of the values of the rounds; at least one."""
    return Figure(median(values), min(values), max(values), len(values), median(rig) if rig else None)


def line(short: float, long: float) -> tuple[float, float]:
    """Return what a stream costs beside its chunks, and what each chunk costs, from the costs of two lengths."""
    per_chunk = (long - short) / (LONG - SHORT)
    return short - SHORT * per_chunk, per_chunk


def valid(windows: Iterable[Window], target: str, workload: str) -> list[Window]:
    """Return the windows of one kind that count."""
    return [
        window
        for window in windows
        if window.target == target and window.workload == workload and invalidity(window) is None
    ]


def per_request(windows: Sequence[Window], target: str, workload: str) -> Figure | None:
    """Return the cost of one request; None where no window counts."""
    found = valid(windows, target, workload)
    if not found:
        return None
    return figure([window.us_per_request for window in found], [window.rig_us_per_request for window in found])


def per_stream(windows: Sequence[Window], target: str, pace: str) -> tuple[Figure, Figure] | None:
    """Return the fixed cost of a stream and that of a chunk; None where a length has no window that counts.

    The n-th windows of both lengths are taken together: they are of the same round, unless one was discarded.
    """
    shorts = valid(windows, target, f"{pace}-{SHORT}")
    longs = valid(windows, target, f"{pace}-{LONG}")
    if not shorts or not longs:
        return None

    def lines(cost: Callable[[Window], float]) -> list[tuple[float, float]]:
        return [line(cost(short), cost(long)) for short, long in zip(shorts, longs, strict=False)]

    costs, rigs = lines(lambda window: window.us_per_request), lines(lambda window: window.rig_us_per_request)
    fixed = figure([cost[0] for cost in costs], [rig[0] for rig in rigs])
    return fixed, figure([cost[1] for cost in costs], [rig[1] for rig in rigs])


def costs_of(windows: Sequence[Window], target: str) -> Mapping[str, Figure]:
    """Return all figures of CPU time of a target, in microseconds."""
    found = {
        f"{workload}_us": made
        for workload in ("plain", "generate", "chat")
        if (made := per_request(windows, target, workload)) is not None
    }
    for pace in ("paced", "burst"):
        pair = per_stream(windows, target, pace)
        if pair is not None:
            found[f"{pace}_fixed_us"], found[f"{pace}_chunk_us"] = pair
    return found
