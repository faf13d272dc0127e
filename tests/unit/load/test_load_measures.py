import pytest

from load.measures import Gaps, Record, percentile, summary
from load.results import Measured, run_document
from load.scenario import Bounds, Scenario
from load.validity import EXIT_BREACH, EXIT_INVALID, Sent, exit_code, reasons_against


def _record(**fields: object) -> Record:
    return Record(**{"route": "stream", "intended_s": 1.0, "sent_s": 1.0, **fields})  # type: ignore[arg-type]


def test_a_request_is_measured_from_its_intended_time() -> None:
    one = _record(sent_s=1.5, end_s=4.0, output_tokens=5)
    gaps = one.observe([2.0, 2.25, 3.5, 4.0], stall_s=1.0)
    assert gaps == [0.25, 1.25, 0.5]
    assert (one.ttft_s, one.tpot_s, one.e2e_s, one.delay_s) == (1.0, 0.5, 3.0, 0.5)
    assert (one.chunks, one.max_gap_s, one.stalls) == (4, 1.25, 1)


def test_one_token_has_no_time_per_token() -> None:
    one = _record(output_tokens=1)
    one.observe([2.0], stall_s=1)
    assert one.tpot_s is None
    assert _record().ttft_s is None


@pytest.mark.parametrize(
    ("bounds", "good"),
    [({}, True), ({"ttft_s": 1}, True), ({"ttft_s": 0.9}, False), ({"tpot_s": 0.4}, False), ({"max_gap_s": 1}, False)],
)
def test_goodput_asks_for_all_bounds(bounds: dict[str, float], good: bool) -> None:  # noqa: FBT001 - a case
    one = _record(end_s=4.0, output_tokens=5)
    one.observe([2.0, 2.25, 3.5, 4.0], stall_s=1.0)
    assert one.is_good(Bounds.model_validate(bounds)) is good
    one.outcome = "cut"
    assert not one.is_good(Bounds())


def test_percentiles_are_nearest_rank() -> None:
    values = [float(number) for number in range(1, 11)]
    assert [percentile(values, percent) for percent in (0, 50, 90, 91, 100)] == [1, 5, 9, 10, 10]
    assert summary([3, None, 1])["mean"] == 2
    assert summary([])["p50"] is None


def test_gaps_keep_their_percentiles_within_half_a_percent_and_add_up() -> None:
    both, one, other = Gaps(), Gaps(), Gaps()
    for number in range(1, 1001):
        both.add(number / 1000)
        (one if number % 2 else other).add(number / 1000)
    one.merge(Gaps.unpacked(other.packed()))
    for percent in (50, 90, 99, 100):
        assert both.percentile(percent) == pytest.approx(percent / 100, rel=0.0051)
    assert one.classes == both.classes
    assert one.summary()["mean"] == pytest.approx(0.5005)
    assert Gaps().percentile(50) is None


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (Sent(1000, 990, 0.010), []),
        (Sent(1000, 989, 0.001), ["only 989 of 1000"]),
        (Sent(1000, 1000, 0.0101), ["10.1 ms late"]),
        (Sent(1000, 0, None), ["only 0 of 1000"]),
        (Sent(0, 0, None), ["nothing was asked"]),
        (Sent(10, 10, 0, unsendable=1), ["could not be sent"]),
    ],
)
def test_the_gate(sent: Sent, said: list[str]) -> None:
    reasons = reasons_against(sent)
    assert len(reasons) == len(said)
    assert all(words in reason for words, reason in zip(said, reasons, strict=True))


def test_exit_codes_tell_an_invalid_run_from_a_breach() -> None:
    assert exit_code(valid=True, slo_held=True) == 0
    assert exit_code(valid=True, slo_held=False) == EXIT_BREACH
    assert exit_code(valid=False, slo_held=True) == exit_code(valid=False, slo_held=False) == EXIT_INVALID


def _scenario(*slo: dict[str, object]) -> Scenario:
    arrivals = {"kind": "constant", "rate_per_s": 1, "duration_s": 4}
    return Scenario.model_validate({"name": "x", "mix": {"stream": 1}, "arrivals": arrivals, "slo": slo})


def _measured(scenario: Scenario, outcomes: list[str]) -> Measured:
    run = Measured(scenario, "2026-01-01T00:00:00Z", 1, [0.0, 1.0, 2.0, 3.0])
    for second, outcome in enumerate(outcomes):
        one = _record(intended_s=float(second), sent_s=second + 0.001, end_s=second + 1.5, outcome=outcome)
        one.observe([second + 0.25, second + 0.5], stall_s=1)
        run.records.append(one)
    return run


def test_a_run_is_put_together() -> None:
    document = run_document(_measured(_scenario(), ["completed", "cut", "completed", "http_503"]))
    assert document["validity"] == {"valid": True, "reasons": []}
    route = document["routes"]["stream"]
    assert (route["asked"], route["completed"], route["failed"], route["cut"]) == (4, 2, {"cut": 1, "http_503": 1}, 1)
    assert route["ttft_s"]["p99"] == 0.25
    assert document["goodput"] == {"per_s": 0.5, "ratio": 0.5}
    assert [second["in_flight"] for second in document["timeline"]] == [1, 1, 1, 1, 0]
    assert document["slo"]["results"][0]["value"] == 0.5
    assert not document["slo"]["held"]


def test_what_a_lost_worker_never_sent_makes_the_run_invalid_and_counts_as_failed() -> None:
    document = run_document(_measured(_scenario(), ["completed", "completed"]))
    assert not document["validity"]["valid"]
    assert document["generator"]["achieved_ratio"] == 0.5
    assert document["slo"]["results"][0]["value"] == 0.5


def test_an_objective_that_nothing_measured_is_not_held() -> None:
    scenario = _scenario({"metric": "ttft_s", "percentile": 99, "bound": 1, "routes": ["v1_stream"]})
    document = run_document(_measured(scenario, ["completed"] * 4))
    assert [(one["value"], one["held"]) for one in document["slo"]["results"]] == [(None, False), (0, True)]
