"""Draws dashboards as SVG from what Prometheus answers, for pages that no Grafana serves; knows no Prometheus."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from observability.panels import WIDTH, Dashboard, Panel

CELL_X, PANEL_Y, ROW_Y, GAP = 50, 190, 30, 8
"""Sizes in pixels: a column of the grid, a panel's height, a row's head, the space between panels."""
TOP, LEFT, RIGHT, LEGEND_Y = 34, 54, 12, 16
"""Inside a panel: what title, axis and legend take."""
LEGENDS_MAX = 3
COLOURS = ("#3274d9", "#e0752d", "#56a64b", "#a352cc", "#e02f44", "#f2cc0c", "#33a2e5", "#8f3bb8", "#73bf69", "#ff9830")
FIGURE_X = 100
"""From which width on a figure is written large."""
_UNITS: dict[str, tuple[str, float, str]] = {
    "percentunit": ("", 100, " %"),
    "s": ("", 1, " s"),
    "ms": ("", 1_000, " ms"),
    "bytes": ("", 2**-20, " MiB"),
    "currencyUSD": ("$", 1, ""),
    "reqps": ("", 1, "/s"),
    "ops": ("", 1, "/s"),
    "cps": ("", 1, "/s"),
    "x": ("", 1, " x"),
}
"""What stands before a value, by what it is multiplied, and what stands behind it."""
_PLAIN = 1_000
"""From which value on no digit behind the point is written."""
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#333}.t{font-weight:600;font-size:12px}.r{font-weight:600;font-size:14px}"
    ".a{fill:#777;font-size:10px}.b{font-size:30px;font-weight:600}.p{fill:#fff;stroke:#ddd}.g{stroke:#eee}"
    "polyline{fill:none;stroke-width:1.5}"
)


@dataclass(frozen=True, slots=True)
class Series:
    """One line."""

    name: str
    points: tuple[tuple[float, float], ...]
    """Seconds since the epoch, and values; without NaN."""


Ask = Callable[[Panel], Sequence[Series]]


def drawn(dashboard: Dashboard, ask: Ask) -> str:
    """Return a dashboard as one SVG; rows that are collapsed are left out."""
    body: list[str] = []
    y = GAP
    for row in dashboard.rows:
        if row.collapsed:
            continue
        body.append(f'<text class="r" x="{GAP}" y="{y + 20}">{escape(row.title)}</text>')
        y += ROW_Y
        x = 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + PANEL_Y
            body.append(f'<g transform="translate({x * CELL_X + GAP / 2} {y})">')
            body += _panel(panel, ask(panel) if panel.queries else ())
            body.append("</g>")
            x += panel.width
        y += PANEL_Y
    size = f'width="{WIDTH * CELL_X}" height="{y + GAP}" viewBox="0 0 {WIDTH * CELL_X} {y + GAP}"'
    title = f"<title>{escape(dashboard.title)}</title><style>{STYLE}</style>"
    background = '<rect width="100%" height="100%" fill="#f4f5f5"/>'
    lines = "\n".join(body)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{title}{background}\n{lines}\n</svg>\n'


def _panel(panel: Panel, series: Sequence[Series]) -> Iterator[str]:
    width, height = panel.width * CELL_X - GAP, PANEL_Y - GAP
    yield f'<rect class="p" width="{width}" height="{height}" rx="3"/>'
    yield f'<text class="t" x="10" y="20">{escape(panel.title)}</text>'
    if panel.kind == "text":
        for number, line in enumerate(panel.text.splitlines()[:8]):
            yield f'<text x="10" y="{44 + 16 * number}">{escape(_short(line, width // 6))}</text>'
    elif not series:
        yield f'<text class="a" x="{width / 2 - 20}" y="{height / 2}">no data</text>'
    elif panel.kind == "stat":
        yield from _figures(panel, series, width)
    else:
        yield from _lines(panel, series, width, height)


def _figures(panel: Panel, series: Sequence[Series], width: int) -> Iterator[str]:
    wide = width / len(series)
    for number, line in enumerate(series):
        value = line.points[-1][1]
        colour = next((colour for least, colour in reversed(panel.steps) if least is None or value >= least), "#333")
        x = 10 + number * wide
        size = 30 if wide > FIGURE_X else 14
        yield (
            f'<text class="b" style="fill:{colour};font-size:{size}px" x="{x:.0f}" y="100">'
            f"{formatted(value, panel.unit)}</text>"
        )
        yield f'<text class="a" x="{x:.0f}" y="120">{escape(_short(line.name, int(wide) // 6))}</text>'


def _lines(panel: Panel, series: Sequence[Series], width: int, height: int) -> Iterator[str]:
    times = [time for line in series for time, _ in line.points]
    begin, end = min(times), max(times)
    layers = list(_stacked(series)) if panel.stacked else list(series)
    most = panel.most or _round_up(max(value for line in layers for _, value in line.points))
    least = min(0.0, *(value for line in layers for _, value in line.points))
    bottom = height - LEGEND_Y * min(LEGENDS_MAX, len(series)) - 22

    def place(time: float, value: float) -> str:
        x = LEFT + (width - LEFT - RIGHT) * ((time - begin) / ((end - begin) or 1))
        y = bottom - (bottom - TOP) * min(1.0, (value - least) / ((most - least) or 1))
        return f"{x:.0f},{y:.1f}"

    for part in range(4):
        value = least + (most - least) * part / 3
        y = bottom - (bottom - TOP) * part / 3
        yield f'<line class="g" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.0f}" y2="{y:.0f}"/>'
        yield f'<text class="a" text-anchor="end" x="{LEFT - 4}" y="{y + 3:.0f}">{formatted(value, panel.unit)}</text>'
    for time, anchor, x in ((begin, "start", LEFT), (end, "end", width - RIGHT)):
        clock = datetime.fromtimestamp(time, UTC)
        yield f'<text class="a" text-anchor="{anchor}" x="{x}" y="{bottom + 14}">{clock:%H:%M:%S}</text>'
    for number, line in enumerate(layers):
        points = " ".join(place(time, value) for time, value in line.points)
        yield f'<polyline points="{points}" stroke="{COLOURS[number % len(COLOURS)]}"/>'
    for number, line in enumerate(series[:LEGENDS_MAX]):
        y = bottom + 20 + LEGEND_Y * number
        rest = f" and {len(series) - LEGENDS_MAX} more" if number == LEGENDS_MAX - 1 < len(series) - 1 else ""
        told = f"{_short(line.name, width // 8)}: {formatted(line.points[-1][1], panel.unit)}{rest}"
        yield f'<rect x="{LEFT}" y="{y}" width="9" height="9" fill="{COLOURS[number % len(COLOURS)]}"/>'
        yield f'<text x="{LEFT + 14}" y="{y + 9}">{escape(told)}</text>'


def _stacked(series: Sequence[Series]) -> Iterator[Series]:
    below: dict[float, float] = {}
    for line in series:
        points = []
        for time, value in line.points:
            below[time] = below.get(time, 0.0) + value
            points.append((time, below[time]))
        yield Series(line.name, tuple(points))


def formatted(value: float, unit: str) -> str:
    """Say a value as people read it in the unit."""
    if unit == "s" and abs(value) < 1:
        unit = "ms"
    before, factor, after = _UNITS.get(unit, ("", 1, ""))
    scaled = value * factor
    return f"{before}{scaled:,.0f}{after}" if abs(scaled) >= _PLAIN else f"{before}{scaled:.3g}{after}"


def _round_up(value: float) -> float:
    """Return the next figure of 1, 2 or 5 times a power of ten, for the top of an axis."""
    if value <= 0:
        return 1.0
    power: float = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def labelled(legend: str, labels: Mapping[str, str]) -> str:
    """Put the values of labels into a legend."""
    return re.sub(r"{{ *(\w+) *}}", lambda found: labels.get(found[1], ""), legend).strip()
