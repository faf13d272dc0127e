"""The page of several runs: what came of each rate, and the knee."""

from collections.abc import Sequence
from typing import Any

from load.report.html import page, picture, table, tag
from load.report.page import judged
from load.report.plots import Picture, Point, goodput_picture
from load.report.results import Run


def sweep_pictures(runs: Sequence[Run], knee_per_s: float | None) -> list[Picture]:
    """Draw goodput against rate."""
    points = [Point(run.asked_per_s, run.goodput.per_s, passed=run.passed, valid=run.validity.valid) for run in runs]
    drawn = goodput_picture(points, knee_per_s)
    return [] if drawn is None else [drawn]


def sweep_page(runs: Sequence[Run], pictures: Sequence[Picture], knee_per_s: float | None) -> str:
    """Return the page."""
    rows = [(*(row[key] for key in _COLUMNS),) for row in sweep_summary(runs, knee_per_s)["runs"]]
    knee = "not known: no search was made over these runs" if knee_per_s is None else f"{knee_per_s:.4g} requests/s"
    return page(
        "Load: goodput against rate",
        [
            tag("p", f"Knee: {knee}."),
            *(picture(shown) for shown in pictures),
            tag("h2", "Runs, by rate"),
            table(tuple(_COLUMNS.values()), rows),
        ],
    )


_COLUMNS = {
    "asked_per_s": "asked, 1/s",
    "goodput_per_s": "goodput, 1/s",
    "goodput_ratio": "share",
    "scenario": "scenario",
    "verdict": "verdict",
}


def sweep_summary(runs: Sequence[Run], knee_per_s: float | None) -> dict[str, Any]:
    """Return the page's figures."""
    return {
        "knee_per_s": knee_per_s,
        "runs": [
            {
                "asked_per_s": run.asked_per_s,
                "goodput_per_s": run.goodput.per_s,
                "goodput_ratio": run.goodput.ratio,
                "scenario": run.name,
                "verdict": judged(run)[1],
            }
            for run in sorted(runs, key=lambda run: run.asked_per_s)
        ],
    }
