"""The figures as a picture: bars on a logarithmic scale, since targets differ by a thousand times. SVG, of our own."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import log10
from typing import Any

from load.bench.table import number

PANELS = (
    ("plain_us", "µs per plain request"),
    ("paced_chunk_us", "µs per chunk, paced"),
    ("burst_chunk_us", "µs per chunk, burst"),
    ("burst_fixed_us", "µs fixed per stream"),
    ("idle_2000_kib", "KiB per idle stream"),
)
WIDTH, LABEL, VALUE = 760, 210, 90
BAR, GAP, HEAD = 16, 5, 30
OURS, OTHERS = "#0b6bcb", "#9aa5b1"

Figures = Mapping[str, Mapping[str, Mapping[str, Any]]]


def bar_width(value: float, least: float, most: float, room: float) -> float:
    """Return how long a bar is: the least is at a tenth of the scale, or less, so that it can be seen."""
    if value <= 0:
        return 0.0
    low = log10(least) - 0.5
    return room * (log10(value) - low) / (log10(most) - low)


def picture(labels: Mapping[str, str], figures: Figures) -> str:
    """Draw all panels below one another."""
    parts: list[str] = []
    top = 8
    for name, title in PANELS:
        values = [
            (target, label, figures[target][name]["value"])
            for target, label in labels.items()
            if target != "direct" and name in figures.get(target, {})
        ]
        if values:
            parts.extend(_panel(title, values, top))
            top += HEAD + len(values) * (BAR + GAP) + 12
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{top}" fill="#ffffff"/>', *parts, "</svg>\n"])


def _panel(title: str, values: Sequence[tuple[str, str, float]], top: int) -> Iterator[str]:
    yield f'<text x="8" y="{top + 16}" font-weight="600">{escape(title)} (logarithmic, less is better)</text>'
    positive = [value for _, _, value in values if value > 0] or [1.0]
    for row, (target, label, value) in enumerate(values):
        y = top + HEAD + row * (BAR + GAP)
        long = bar_width(value, min(positive), max(positive), WIDTH - LABEL - VALUE)
        colour = OURS if target.startswith("llm-api") else OTHERS
        yield f'<text x="{LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>'
        yield f'<rect x="{LABEL}" y="{y}" width="{long:.1f}" height="{BAR}" fill="{colour}"/>'
        yield f'<text x="{LABEL + long + 6:.1f}" y="{y + 12}">{number(value)}</text>'
