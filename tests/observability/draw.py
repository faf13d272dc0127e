"""``python -m tests.observability.draw`` plays the scene for a while, and draws the dashboards into ``docs/images``."""

import asyncio
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from observability.dashboards import DASHBOARDS
from observability.panels import Panel
from observability.pictures import Series, drawn, labelled
from tests.observability.scene import Scene, played
from tests.observability.test_live import VARIABLES

IMAGES = Path(__file__).parents[2] / "docs" / "images"
MORE_ROUNDS = 8
STEP_S = 1
WINDOW = "15s"


def series_of(scene: Scene, panel: Panel) -> Sequence[Series]:
    """Ask for the whole time of the scene."""
    found = []
    for query in panel.queries:
        expr = query.expr
        for name, value in {**VARIABLES, "$__rate_interval": WINDOW}.items():
            expr = expr.replace(name, value)
        data = scene.prometheus.get("query_range", query=expr, start=scene.began_at, end=time.time(), step=STEP_S)
        for series in data["result"]:
            points = tuple((float(at), float(value)) for at, value in series["values"] if value not in {"NaN", "+Inf"})
            if points:
                found.append(Series(labelled(query.legend, series["metric"]) or "value", points))
    return sorted(found, key=lambda series: -math.fsum(value for _, value in series.points))


def main() -> None:
    """Draw."""
    with tempfile.TemporaryDirectory() as folder, played(Path(folder)) as scene:
        for _ in range(MORE_ROUNDS):
            asyncio.run(scene.play())
        for dashboard in DASHBOARDS:
            path = IMAGES / f"{dashboard.uid}.svg"
            path.write_text(drawn(dashboard, lambda panel: series_of(scene, panel)), encoding="utf-8")
            print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
