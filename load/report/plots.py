"""Pictures of runs, as PNG."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from load.report.results import Distribution, Request, Run

MINOR = "25"
"""First digits at which a logarithmic axis has a figure, beside powers of ten."""
SIZE_IN = (9.0, 3.6)
DPI = 110
BINS_T, BINS_S = 120, 60
"""Cells of a picture of latencies, along time and along latency."""
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    # The best place is looked for among all points, which takes seconds for a long run.
    "legend.loc": "upper left",
    # Routes and scenarios come from files: a dollar sign in their names begins no formula.
    "text.parse_math": False,
}
COLOURS = {"p50": "#1f77b4", "p90": "#ff7f0e", "p99": "#d62728"}
LATENCIES = {"ttft_s": "Time to first token", "e2e_s": "Whole answer", "tpot_s": "Time per output token"}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture, and what it shows in words."""

    name: str
    title: str
    png: bytes


@dataclass(frozen=True, slots=True)
class Point:
    """A run as a point of the curve of goodput against rate, each second."""

    asked_per_s: float
    goodput_per_s: float
    passed: bool
    valid: bool


def pictures(run: Run, requests: Sequence[Request]) -> list[Picture]:
    """Draw one run; what there are no figures for is left out."""
    drawn = [
        _drawn("ttft-over-time", "Time to first token over time", _over_time(run, requests, "ttft_s")),
        _drawn("e2e-over-time", "Whole answers over time", _over_time(run, requests, "e2e_s")),
        _drawn("itl-over-time", "Gaps between contents over time", _over_time(run, [], "itl_s")),
        _drawn("throughput", "Requests each second", _throughput(run)),
        _drawn("in-flight", "Requests in flight", _in_flight(run)),
        _drawn("schedule-delay", "How late the generator was", _lateness(run)),
        _drawn("distribution", "Share of requests that took at most so long", _distribution(requests)),
    ]
    return [picture for picture in drawn if picture is not None]


def goodput_picture(points: Sequence[Point], knee_per_s: float | None) -> Picture | None:
    """Draw goodput against rate of several runs, and the knee where it is known."""
    if not points:
        return None

    def draw(axes: Axes) -> None:
        top = max(point.asked_per_s for point in points)
        axes.plot([0, top], [0, top], ":", color="#999", label="all that was asked")
        for label, colour, marker, wanted in _KINDS:
            chosen = [point for point in points if wanted(point)]
            if chosen:
                x, y = [point.asked_per_s for point in chosen], [point.goodput_per_s for point in chosen]
                axes.plot(x, y, marker, color=colour, label=label)
        if knee_per_s is not None:
            axes.axvline(knee_per_s, color="#2ca02c", linestyle="--", label=f"knee, {knee_per_s:.4g}/s")
        axes.set(xlabel="asked, 1/s", ylabel="goodput, 1/s")
        axes.legend()

    return _drawn("goodput", "Goodput against rate", draw)


Draw = Callable[[Axes], None]
_KINDS: tuple[tuple[str, str, str, Callable[[Point], bool]], ...] = (
    ("held", "#2ca02c", "o", lambda point: point.passed),
    ("an objective was missed", "#d62728", "X", lambda point: point.valid and not point.passed),
    ("invalid: the generator lagged", "#999999", "s", lambda point: not point.valid),
)


def _drawn(name: str, title: str, draw: Draw | None) -> Picture | None:
    if draw is None:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE_IN, dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(title, loc="left", fontweight="bold")
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return Picture(name, title, file.getvalue())


def _over_time(run: Run, requests: Iterable[Request], metric: str) -> Draw | None:
    """Show each request's latency as a cell of a histogram over time, and percentiles of each second as lines."""
    dots = [(item.intended_s, value) for item in requests if (value := getattr(item, metric)) and value > 0]
    lines = {name: _line(run, metric, name) for name in COLOURS}
    if not dots and not any(lines.values()):
        return None

    def draw(axes: Axes) -> None:
        axes.set_yscale("log")
        _plain_figures(axes.yaxis)
        if dots:
            _density(axes, *zip(*dots, strict=True))
        for name, points in lines.items():
            if points:
                axes.plot(*zip(*points, strict=True), color=COLOURS[name], linewidth=1.2, label=name)
        axes.set(xlabel="due at, s", ylabel="s")
        if any(lines.values()):
            axes.legend(ncols=3)

    return draw


def _plain_figures(axis: Axis) -> None:
    """Write 0.05 where a logarithmic axis would write a formula, which texts here are not taken for."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in MINOR else ""))


def _density(axes: Axes, times_s: Sequence[float], values_s: Sequence[float]) -> None:
    low, high = min(values_s) * 0.9, max(values_s) * 1.1
    bins = (np.linspace(min(times_s), max(times_s) + 1e-9, BINS_T), np.geomspace(low, high, BINS_S))
    axes.hist2d(times_s, values_s, bins=list(bins), cmap="Greys", norm=LogNorm(vmin=0.5), cmin=1)


def _line(run: Run, metric: str, percentile: str) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for second in run.timeline:
        distribution: Distribution = getattr(second, metric)
        value = getattr(distribution, percentile)
        if value:
            found.append((second.t_s, value))
    return found


def _throughput(run: Run) -> Draw | None:
    if not run.timeline:
        return None

    def draw(axes: Axes) -> None:
        times = [second.t_s for second in run.timeline]
        for name, colour in _COUNTS.items():
            axes.step(times, [getattr(second, name) for second in run.timeline], where="post", color=colour, label=name)
        axes.set(xlabel="s", ylabel="1/s", ylim=(0, None))
        axes.legend(ncols=len(_COUNTS))

    return draw


_COUNTS = {"asked": "#999999", "completed": "#1f77b4", "goodput": "#2ca02c", "failed": "#d62728"}


def _in_flight(run: Run) -> Draw | None:
    if not run.timeline:
        return None

    def draw(axes: Axes) -> None:
        axes.plot([second.t_s for second in run.timeline], [second.in_flight for second in run.timeline])
        axes.set(xlabel="s", ylabel="requests", ylim=(0, None))

    return draw


def _lateness(run: Run) -> Draw | None:
    known = [(item.t_s, item.schedule_delay_p50_s * 1000) for item in run.timeline if item.schedule_delay_p50_s]
    if not known:
        return None

    def draw(axes: Axes) -> None:
        axes.plot(*zip(*known, strict=True), color="#9467bd")
        axes.set(xlabel="s", ylabel="median, ms", ylim=(0, None))

    return draw


def _distribution(requests: Sequence[Request]) -> Draw | None:
    values = {
        title: sorted(value for item in requests if (value := getattr(item, metric)) and value > 0)
        for metric, title in LATENCIES.items()
    }
    if not any(values.values()):
        return None

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        _plain_figures(axes.xaxis)
        for title, ordered in values.items():
            if ordered:
                axes.step(ordered, np.arange(1, len(ordered) + 1) / len(ordered), where="post", label=title)
        axes.set(xlabel="s", ylabel="share", ylim=(0, 1.01))
        axes.legend()

    return draw
