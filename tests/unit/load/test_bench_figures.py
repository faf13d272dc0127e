"""The arithmetic of the benchmark, on cases worked by hand."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from load.bench import claims, figures, table
from load.bench.claims import Claim
from load.bench.page import BEGIN, END, put
from load.bench.plot import bar_width, picture
from load.bench.processes import TICKS_PER_S, cpu_s, parse_rollup, parse_stat, pss_bytes, running, tree_of
from load.bench.windows import Window, invalidity, is_rigs_fault


def window(workload: str = "plain", requests: int = 10, cpu_us: float = 1000.0, **more: Any) -> Window:
    given: dict[str, Any] = {"failed": 0, "rig_us": 100.0, "seconds": 1.0, **more}
    return Window("llm-api", workload, requests, cpu_us=cpu_us, **given)


def test_stat_of_a_name_with_blanks_and_parentheses() -> None:
    line = "42 (a b) c) d) S 7 42 42 0 -1 4194304 1 2 3 4 100 20 3 4 20 0 1 0 99 0 0"
    assert parse_stat(line).parent == 7
    assert parse_stat(line).cpu_ticks == 127


def test_tree_holds_children_of_children_and_no_one_else() -> None:
    assert tree_of(2, {2: 1, 3: 2, 4: 3, 5: 1, 6: 5}) == {2, 3, 4}


def test_rollup_is_in_bytes() -> None:
    lines = ["Rss:  900 kB", "Pss:  12 kB", "Pss_Anon:  5 kB"]
    assert parse_rollup(lines, "Pss:") == 12 * 1024


def test_cpu_time_of_a_child_is_counted(tmp_path: Path) -> None:
    spin = "import time; exec('while time.process_time() < 0.3: pass'); time.sleep(60)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"
    with running([sys.executable, "-c", program], log=tmp_path / "log") as process:
        deadline = time.monotonic() + 30
        while cpu_s(process.pid) < 0.3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert cpu_s(process.pid) >= 0.3
        assert pss_bytes(process.pid) > 1_000_000
        assert TICKS_PER_S >= 100


def test_a_streams_cost_is_a_line_through_two_lengths() -> None:
    # 400 fixed and 50 for each chunk.
    assert figures.line(400 + 64 * 50, 400 + 256 * 50) == pytest.approx((400, 50))


def test_costs_are_medians_over_rounds_with_the_rigs_part_beside() -> None:
    rounds = [window(cpu_us=cpu_us) for cpu_us in (1000, 3000, 2000)]
    found = figures.costs_of(rounds, "llm-api")["plain_us"]
    assert (found.value, found.low, found.high, found.rounds, found.rig) == (200, 100, 300, 3, 10)


def test_costs_of_streams() -> None:
    windows = [window("burst-64", 1, 400 + 64 * 5.0), window("burst-256", 1, 400 + 256 * 5.0)]
    found = figures.costs_of(windows, "llm-api")
    assert found["burst_chunk_us"].value == pytest.approx(5)
    assert found["burst_fixed_us"].value == pytest.approx(400)


def test_a_window_with_any_failed_request_does_not_count() -> None:
    bad = window(failed=1, report={"failures": {"status 500": 1}})
    assert invalidity(bad) == "1 of 10 requests failed: 1 x status 500"
    assert figures.costs_of([bad], "llm-api") == {}


def test_a_window_with_a_late_upstream_does_not_count() -> None:
    assert invalidity(window("paced-64", late_p99_us=10_000)) is None
    assert "late by 11 ms" in str(invalidity(window("paced-64", late_p99_us=11_000)))


@pytest.mark.parametrize(("p50", "p99", "counts"), [(1000, 10_000, True), (1001, 10_000, False), (1, 10_001, False)])
def test_an_open_window_with_a_lagging_generator_does_not_count(p50: int, p99: int, counts: bool) -> None:  # noqa: FBT001 - a parameter of the test
    lagging = window("open-llm-api", report={"lag_us": {"p50": p50, "p99": p99}})
    assert (invalidity(lagging) is None) is counts


def test_only_what_the_rig_spoilt_is_tried_again() -> None:
    assert is_rigs_fault(window("paced-64", late_p99_us=11_000))
    assert not is_rigs_fault(window("paced-64", late_p99_us=11_000, failed=1))
    assert not is_rigs_fault(window(requests=0))
    assert not is_rigs_fault(window())


def test_an_empty_window_does_not_count() -> None:
    assert invalidity(window(requests=0)) == "no request was finished"


def test_a_claim_holds_at_its_bound_and_is_missed_above_it() -> None:
    claim = Claim("plain_us", 0.5, "litellm", plus=10)
    assert claim.judge({"llm-api": {"plain_us": 60}, "litellm": {"plain_us": 100}}).held is True
    assert claim.judge({"llm-api": {"plain_us": 61}, "litellm": {"plain_us": 100}}).held is False


def test_what_was_not_measured_is_neither_held_nor_missed() -> None:
    verdict = Claim("plain_us", 0.5, "litellm").judge({"llm-api": {"plain_us": 60}})
    assert verdict.held is None
    assert verdict.text().startswith("NOT MEASURED")
    assert claims.exit_status([verdict]) == 3


def test_a_missed_claim_is_named_and_decides_the_exit_status() -> None:
    figures_seen = {"llm-api": {"burst_chunk_us": 9.0, "import_s": 1.0}}
    verdicts = claims.judge(figures_seen, [Claim("burst_chunk_us", plus=8), Claim("import_s", plus=2)])
    assert [verdict.text().split()[0] for verdict in verdicts] == ["MISSED", "held"]
    assert claims.exit_status(verdicts) == 1
    assert claims.exit_status(verdicts[1:]) == 0


def test_each_claim_names_figures_that_the_table_has() -> None:
    known = {name for name, _ in table.ROWS}
    assert {claim.mine for claim in claims.CLAIMS} | {claim.theirs for claim in claims.CLAIMS} <= known | {""}


def test_the_table_leaves_out_what_nothing_was_measured_of() -> None:
    cells = table.rows(
        {"a": "A", "b": "B", "c": "C"},
        {"a": {"plain_us": {"value": 1234.5, "rig": 20}}, "b": {"plain_us": {"value": 0.25}}},
    )
    assert cells == [["", "A", "B"], ["µs per plain request", "1,234 (20)", "0.25"]]


def test_a_page_gets_what_stands_between_its_marks_replaced() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert put(page, "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert put(put(page, "other"), "new") == put(page, "new")


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="on lines of their own"):
        put("nothing", "new")


def test_bars_are_logarithmic() -> None:
    short, middle, long = (bar_width(value, 10, 1000, 250) for value in (10, 100, 1000))
    assert middle - short == pytest.approx(long - middle)
    assert long == pytest.approx(250)
    assert bar_width(0, 10, 1000, 250) == 0


def test_the_picture_escapes_labels_and_leaves_out_direct() -> None:
    drawn = picture(
        {"direct": "the rig", "llm-api": "a < b"},
        {"direct": {"plain_us": {"value": 1.0}}, "llm-api": {"plain_us": {"value": 2.0}}},
    )
    assert "a &lt; b" in drawn
    assert "the rig" not in drawn
