"""``python -m load.compare FIRST/run.json SECOND/run.json``: what differs, and whether that is more than noise.

Exit status: 0; 2 where a file is not what a run writes. With ``--fail-above`` also 1, where a figure is worse beyond
noise by more than that, and 3, where a run is invalid or there is nothing to compare.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from load.compare.differences import Difference, Side, differences, remarks
from load.compare.page import comparison_page, comparison_text
from load.report.files import write
from load.report.results import BadResults, read_requests, read_run

REGRESSED, BAD_INPUT, UNKNOWN = 1, 2, 3


def compare(paths: Sequence[Path], out: Path, *, fail_above: float | None) -> int:
    """Write and print the comparison; return the exit status."""
    before, after = (Side(run := read_run(path), read_requests(path, run)) for path in paths)
    found = differences(before, after)
    said = remarks(before.run, after.run)
    summary = {"remarks": said, "differences": [{**asdict(item), "beyond_noise": item.beyond_noise} for item in found]}
    path = write(out, comparison_page(before.run, after.run, found, said), summary, [])
    print("\n".join([*said, comparison_text(found), str(path.resolve())]))
    valid = before.run.validity.valid and after.run.validity.valid
    return 0 if fail_above is None else judge(found, fail_above, valid=valid)


def judge(found: Sequence[Difference], bound: float, *, valid: bool) -> int:
    """Return the exit status where a bound was given."""
    if not valid or not found:
        return UNKNOWN
    return REGRESSED if any(item.regressed(bound) for item in found) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m load.compare", description=__doc__)
    parser.add_argument("runs", nargs=2, type=Path, metavar="run.json")
    parser.add_argument("--out", type=Path, help="folder of the page; `comparison` beside the second run when left out")
    parser.add_argument("--fail-above", type=float, metavar="SHARE", help="such as 0.1: fail where worse by more")
    options = parser.parse_args(arguments)
    out: Path = options.out or options.runs[1].parent / "comparison"
    try:
        return compare(options.runs, out, fail_above=options.fail_above)
    except BadResults as error:
        print(error, file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
