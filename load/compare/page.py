"""A comparison as a page, and as a table for a terminal."""

from collections.abc import Sequence

from load.compare.differences import CONFIDENCE, Difference
from load.report.html import Cell, Html, listed, page, table, tag
from load.report.results import Run

HEAD = ("route", "figure", "first", "second", "change", f"difference, {CONFIDENCE:.0%} interval", "")


def comparison_page(before: Run, after: Run, found: Sequence[Difference], remarks: Sequence[str]) -> str:
    """Return the page."""
    rows: list[list[Cell]] = [[*cells(item)[:-1], tag("span", word(item), _css(item))] for item in found]
    return page(
        f"Load: {before.name}, compared",
        [
            tag("p", f"First: begun {before.started_at}. Second: begun {after.started_at}. Latencies in seconds."),
            listed(remarks) if remarks else Html(""),
            table(HEAD, rows),
        ],
    )


def comparison_text(found: Sequence[Difference]) -> str:
    """Return the table in columns."""
    rows = [HEAD, *(cells(item) for item in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def cells(item: Difference) -> tuple[str, ...]:
    """Return a difference as the texts of a row."""
    return (
        "".join(character if character.isprintable() else "?" for character in item.route),
        item.figure,
        f"{item.before:.4g}",
        f"{item.after:.4g}",
        f"{item.change:+.1%}",
        f"{item.low:+.4g} to {item.high:+.4g}",
        word(item),
    )


def word(item: Difference) -> str:
    """Return what the difference is."""
    if not item.beyond_noise:
        return "noise"
    return "worse" if item.worse else "better"


def _css(item: Difference) -> str:
    return {"noise": "", "worse": "bad", "better": "good"}[word(item)]
