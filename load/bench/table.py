"""The table of figures, as text."""

from collections.abc import Mapping, Sequence
from typing import Any

ROWS = (
    ("plain_us", "µs per plain request"),
    ("generate_us", "µs per /generate"),
    ("chat_us", "µs per /chat"),
    ("paced_chunk_us", "µs per chunk, paced"),
    ("burst_chunk_us", "µs per chunk, burst"),
    ("burst_fixed_us", "µs fixed per stream, burst"),
    ("idle_500_kib", "KiB per idle stream of 500"),
    ("idle_2000_kib", "KiB per idle stream of 2000"),
    ("open_2000_us", "µs to open one of 2000"),
    ("closed_after_s", "s until all left are closed"),
    ("added_first_p50_ms", "ms added to first token, p50"),
    ("added_first_p99_ms", "ms added to first token, p99"),
    ("added_total_p50_ms", "ms added to a stream, p50"),
    ("end_mib", "MiB after the run"),
    ("start_mib", "MiB at the start"),
    ("import_s", "s to import"),
    ("first_answer_s", "s to the first answer"),
    ("workers_ratio", "throughput, 2 workers : 1"),
    ("workers_ratio_by_cost", "the same, if cores were free"),
)
"""Name of a figure and what it says, in the order of the table."""

Figures = Mapping[str, Mapping[str, Mapping[str, Any]]]


def shown(figure: Mapping[str, Any] | None) -> str:
    """Say a figure, with the rig's own part behind it."""
    if figure is None:
        return "-"
    value, rig = figure["value"], figure.get("rig")
    return number(value) if rig is None else f"{number(value)} ({number(rig)})"


def number(value: float) -> str:
    """Say three figures of a number, and all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004


def rows(labels: Mapping[str, str], figures: Figures) -> list[list[str]]:
    """Return the cells of the table, its head first; rows of which nothing was measured are left out."""
    targets = [name for name in labels if figures.get(name)]
    found = [["", *(labels[name] for name in targets)]]
    for name, says in ROWS:
        cells = [figures[target].get(name) for target in targets]
        if any(cells):
            found.append([says, *map(shown, cells)])
    return found


def as_text(cells: Sequence[Sequence[str]]) -> str:
    """Lay the cells out in columns."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def as_markdown(cells: Sequence[Sequence[str]]) -> str:
    """Write the cells as a table of Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|---" * len(cells[0]) + "|", *lines[1:]])
