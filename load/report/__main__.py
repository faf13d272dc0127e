"""``python -m load.report OUT/run.json …``: pages, pictures and JSON beside them, and the paths of pages printed.

With several runs, the page of each is made, and one of goodput against rate over all of them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from load.report.files import write_run, write_sweep
from load.report.results import BadResults, read_run

BAD_INPUT = 2
"""Exit status where a file is not what a run writes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Report; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m load.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="run.json", help="what runs have written")
    paths: list[Path] = parser.parse_args(arguments).runs
    try:
        pages = [write_run(path) for path in paths]
        if len(paths) > 1:
            runs = [read_run(path) for path in paths]
            pages.append(write_sweep(runs, paths[0].parent / "report-of-all", knee_per_s=None))
    except BadResults as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    for path in pages:
        print(path.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
