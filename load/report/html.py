"""The few pieces of HTML that pages of results are made of. Text from files comes in here, and is escaped here."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from load.report.plots import Picture

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Of the page: it loads nothing from anywhere, and runs nothing."""
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } pre { background: #f6f6f6; padding: .7rem; overflow: auto; font-size: .85rem; }
.good { color: #1a7f37; font-weight: 600; } .bad { color: #b42318; font-weight: 600; }
.verdict { padding: .6rem 1rem; border-left: 4px solid; background: #f6f6f6; }
"""


@dataclass(frozen=True, slots=True)
class Html:
    """Markup: what is not of this type is text, and is escaped."""

    text: str


Cell = Html | str | float | None


def text(value: Cell) -> str:
    """Return a value as markup; a dash where there is none."""
    match value:
        case Html():
            return value.text
        case None:
            return "-"
        case float():
            return escape(f"{value:.4g}")
        case _:
            return escape(str(value))


def tag(name: str, value: Cell, css: str = "") -> Html:
    """Return an element."""
    attribute = f' class="{escape(css)}"' if css else ""
    return Html(f"<{name}{attribute}>{text(value)}</{name}>")


def joined(parts: Iterable[Html]) -> Html:
    """Return parts one after the other."""
    return Html("\n".join(part.text for part in parts))


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Html:
    """Return a table."""
    top = "".join(tag("th", name).text for name in head)
    body = "\n".join(f"<tr>{''.join(tag('td', cell).text for cell in row)}</tr>" for row in rows)
    return Html(f"<table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table>")


def listed(items: Iterable[Cell]) -> Html:
    """Return a list."""
    inner = "".join(tag("li", item).text for item in items)
    return Html(f"<ul>{inner}</ul>")


def verdict(good: bool, words: str) -> Html:  # noqa: FBT001 - it reads as it is said
    """Return what a page begins with."""
    return tag("p", words, f"verdict {'good' if good else 'bad'}")


def picture(shown: Picture) -> Html:
    """Return a picture, inside of the page."""
    data = base64.b64encode(shown.png).decode()
    return Html(f'<img alt="{escape(shown.title)}" src="data:image/png;base64,{data}">')


def page(title: str, parts: Iterable[Html]) -> str:
    """Return a whole page."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{tag("h1", title).text}
{joined(parts).text}
</body>
</html>
"""
