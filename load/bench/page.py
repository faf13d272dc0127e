"""``python -m load.bench.page RESULT`` puts a result into docs/performance.md: its table, its picture, its raw file."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from load.bench import claims, table
from load.bench.__main__ import values
from load.bench.plot import picture

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- made by load.bench.page: -->", "<!-- until here -->"


def section(result: Mapping[str, Any]) -> str:
    """Write what stands between the marks."""
    machine = result["machine"]
    where = f"{machine['cores']} cores of {machine['cpu']}, Linux {machine['kernel']}, Python {machine['python']}"
    when = f"load {machine['load_at_start']:.1f} before the start; {result['took_s']:.0f} s"
    lines = [
        f"Measured {result['started_at'][:10]}: {where}, {when}.",
        "",
        table.as_markdown(table.rows(result["labels"], result["figures"])),
        "",
        "![The same as bars](images/performance.svg)",
        "",
        *(f"- {verdict.text()}" for verdict in claims.judge(values(result))),
    ]
    if result["notes"]:
        lines += ["", "Said during the run:", "", *(f"- {note}" for note in result["notes"])]
    return "\n".join(lines)


def put(page: str, text: str) -> str:
    """Replace what stands between the marks of a page; raise ``ValueError`` where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} … {END}: put both on lines of their own")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main() -> int:
    """Write the page, the picture and the raw result."""
    parser = argparse.ArgumentParser(prog="python -m load.bench.page", description=__doc__)
    parser.add_argument("result", type=Path, help="a file that the benchmark wrote")
    text = parser.parse_args().result.read_text()
    result = json.loads(text)
    page = DOCS / "performance.md"
    page.write_text(put(page.read_text(), section(result)))
    (DOCS / "images" / "performance.svg").write_text(picture(result["labels"], result["figures"]))
    (DOCS / "performance.json").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
