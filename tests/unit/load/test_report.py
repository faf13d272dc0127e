"""The report of a run: what is on the page, that it needs nothing else, and that no text of a file is markup in it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from typing_extensions import override

from load.report.__main__ import BAD_INPUT, main
from load.report.plots import _plain_figures
from tests.support import load_runs

PNG = b"\x89PNG\r\n\x1a\n"
PICTURES = {
    "ttft-over-time",
    "e2e-over-time",
    "itl-over-time",
    "throughput",
    "in-flight",
    "schedule-delay",
    "distribution",
}


class Page(HTMLParser):
    """Gathers elements, and the text of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(text)

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "td":
            self.cells.append("")

    @override
    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data.strip()


def report(path: Path) -> str:
    assert main([str(path)]) == 0
    return (path.parent / "report" / "report.html").read_text()


def test_the_page_is_told_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(load_runs.write(tmp_path))
    assert capsys.readouterr().out == f"{tmp_path}/report/report.html\n"


def test_pictures_stand_beside_the_page_and_inside_of_it(tmp_path: Path) -> None:
    page = Page(report(load_runs.write(tmp_path)))
    files = {path.stem: path.read_bytes() for path in (tmp_path / "report").glob("*.png")}
    assert files.keys() == PICTURES
    assert all(content.startswith(PNG) for content in files.values())
    images = [attributes for name, attributes in page.elements if name == "img"]
    assert len(images) == len(PICTURES)
    assert all(str(attributes["src"]).startswith("data:image/png;base64,") for attributes in images)
    assert all(attributes["alt"] for attributes in images)


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    page = Page(report(load_runs.write(tmp_path)))
    assert not {name for name, _ in page.elements} & {"script", "link", "iframe", "object", "form", "a"}
    assert not [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in {"src", "href"} and not str(value).startswith("data:")
    ]
    policies = [
        attributes["content"] for name, attributes in page.elements if name == "meta" and "content" in attributes
    ]
    assert any("default-src 'none'" in str(policy) for policy in policies)


def test_text_from_files_is_no_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&$x_{$"
    path = load_runs.write(tmp_path, name=evil)
    tree = json.loads(path.read_text())
    tree["routes"] = {evil: {**tree["routes"]["/stream"], "failed": {evil: 1}}}
    tree["validity"] = {"valid": False, "reasons": [evil]}
    tree["slo"]["results"][0] |= {"name": evil, "metric": evil, "percentile": evil}
    tree["scenario"]["more"] = evil
    path.write_text(json.dumps(tree))
    text = report(path)
    assert "<script" not in text
    assert evil in Page(text).cells
    assert "&lt;script&gt;" in text


def test_the_page_and_the_json_have_the_figures_of_the_run(tmp_path: Path) -> None:
    made = load_runs.requests(seconds=10, rate=10, good=0.9)
    path = load_runs.write(tmp_path, made, seconds=10)
    run = json.loads(path.read_text())
    cells = Page(report(path)).cells
    p99 = run["routes"]["/stream"]["ttft_s"]["p99"]
    assert f"{p99 * 1000:.4g}" in cells
    assert f"{run['goodput']['ratio']:.2%}" in cells
    summary = json.loads((tmp_path / "report" / "report.json").read_text())
    assert summary["passed"] is True
    assert summary["asked_per_s"] == 10
    assert summary["routes"]["/stream"]["ttft_s"]["p99"] == p99


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"valid": False}, "Invalid: it says nothing about the service. the median request was sent 50 ms late"),
        ({"held": False}, "Objectives were missed: ttft"),
        ({}, "Valid, and every objective held"),
    ],
)
def test_the_verdict_comes_first(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    text = report(load_runs.write(tmp_path, **changes))
    found = re.search(r'<p class="verdict (good|bad)">(.*)</p>', text)
    assert found is not None
    assert found[2] == words
    assert (found[1] == "good") is not changes


def test_axes_have_figures_and_no_formulas() -> None:
    figure = Figure()
    axes = figure.add_subplot()
    axes.set_yscale("log")
    axes.set_ylim(0.03, 0.3)
    _plain_figures(axes.yaxis)
    figure.draw_without_rendering()
    labels = [label.get_text() for label in axes.yaxis.get_majorticklabels() + axes.yaxis.get_minorticklabels()]
    assert {"0.05", "0.1", "0.2"} <= set(labels)
    assert not [label for label in labels if "$" in label]


def test_a_run_without_an_answer_has_a_report(tmp_path: Path) -> None:
    made = load_runs.requests(seconds=5, good=0)
    report(load_runs.write(tmp_path, made, seconds=5, held=False))
    assert not (tmp_path / "report" / "ttft-over-time.png").exists()
    assert (tmp_path / "report" / "throughput.png").exists()


def test_several_runs_have_a_page_of_goodput_against_rate(tmp_path: Path) -> None:
    paths = [
        load_runs.write(tmp_path / str(rate), load_runs.requests(rate=rate), held=held, valid=valid)
        for rate, held, valid in ((10, True, True), (40, False, True), (80, True, False))
    ]
    assert main([str(path) for path in paths]) == 0
    folder = tmp_path / "10" / "report-of-all"
    assert (folder / "goodput.png").read_bytes().startswith(PNG)
    runs = json.loads((folder / "report.json").read_text())["runs"]
    assert [item["asked_per_s"] for item in runs] == [10, 40, 80]
    assert [item["verdict"].partition(":")[0] for item in runs] == [
        "Valid, and every objective held",
        "Objectives were missed",
        "Invalid",
    ]


def broken(tmp_path: Path, change: dict[str, Any]) -> str:
    path = load_runs.write(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return str(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": 2}, "version is 2, and 1 is read here"),
        ({"duration_s": 0}, "duration_s: input should be greater than 0"),
        ({"routes": {"/x": {"asked": "many"}}}, "routes./x.asked"),
        ({"requests": "../elsewhere.jsonl"}, "must be the name of a file beside"),
        ({"requests": "absent.jsonl"}, "absent.jsonl cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], named: str
) -> None:
    assert main([broken(tmp_path, change)]) == BAD_INPUT
    assert named in capsys.readouterr().err


def test_a_bad_line_is_named_by_its_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = load_runs.write(tmp_path)
    lines = (tmp_path / "requests.jsonl").read_text().splitlines()
    (tmp_path / "requests.jsonl").write_text("\n".join([lines[0], lines[1][:40]]))
    assert main([str(path)]) == BAD_INPUT
    assert "requests.jsonl:2: " in capsys.readouterr().err
