"""Reports as files: a page, its pictures and its figures, in a folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from load.report.page import run_page, run_summary
from load.report.plots import Picture, pictures
from load.report.results import Run, read_requests, read_run
from load.report.sweep import sweep_page, sweep_pictures, sweep_summary


def write_run(path: Path) -> Path:
    """Write the report of a run into ``report/`` beside it; return the page's path."""
    run = read_run(path)
    shown = pictures(run, read_requests(path, run))
    return write(path.parent / "report", run_page(run, shown), run_summary(run), shown)


def write_sweep(runs: Sequence[Run], folder: Path, knee_per_s: float | None) -> Path:
    """Write goodput against rate of several runs; return the page's path."""
    shown = sweep_pictures(runs, knee_per_s)
    return write(folder, sweep_page(runs, shown, knee_per_s), sweep_summary(runs, knee_per_s), shown)


def write(folder: Path, page: str, summary: object, shown: Sequence[Picture]) -> Path:
    """Write a page with its pictures and figures beside it; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in shown:
        (folder / f"{picture.name}.png").write_bytes(picture.png)
    (folder / "report.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
