"""From what a pod told to the chart's values: arithmetic, by hand."""

import pytest
import yaml

from load.capacity.plan import planned
from load.capacity.pod import Observed, Sample, Unreadable, observed, parse
from load.capacity.runs import judged
from load.capacity.values import values_file
from load.report.results import Run
from tests.support import load_runs

MIB = 2**20
AT_KNEE = Observed(streams=100.0, requests=140.0, cores=0.503, memory_bytes=200 * MIB, restarted=False)


def test_the_plan_is_a_fraction_of_the_knee_with_headroom() -> None:
    plan = planned(40, AT_KNEE, longest_stream_s=41, fraction=0.65, planned_per_s=100)
    assert plan.target_per_s == pytest.approx(26)
    assert (plan.streams_per_pod, plan.requests_per_pod) == (65, 91)
    assert plan.cpu_m == 510
    assert (plan.memory_request_mi, plan.memory_limit_mi) == (240, 400)
    assert plan.longest_stream_s == 65
    assert plan.pods_max == 6


def test_targets_below_one_are_left_out_and_short_streams_get_the_least() -> None:
    idle = Observed(streams=0.0, requests=1.2, cores=0.0001, memory_bytes=MIB, restarted=False)
    plan = planned(1, idle, longest_stream_s=0.2, fraction=0.65)
    assert (plan.streams_per_pod, plan.requests_per_pod) == (0, 0)
    assert (plan.cpu_m, plan.memory_request_mi, plan.longest_stream_s, plan.pods_max) == (10, 16, 30, None)


def test_the_file_says_the_same_and_why() -> None:
    plan = planned(40, AT_KNEE, longest_stream_s=41, fraction=0.65, planned_per_s=100)
    text = values_file(
        plan, AT_KNEE, knee_per_s=40, bound="generator", fraction=0.65, longest_stream_s=41, check="Checked: so."
    )
    assert yaml.safe_load(text) == {
        "autoscaling": {
            "enabled": True,
            "maxReplicas": 6,
            "streamsPerPod": 65,
            "requestsPerPod": 91,
            "cpuPercent": 80,
        },
        "resources": {"requests": {"cpu": "510m", "memory": "240Mi"}, "limits": {"memory": "400Mi"}},
        "longestStreamSeconds": 65,
    }
    assert "such runs are invalid and count for nothing" in text
    assert "# Checked: so.\n" in text
    assert "100.0 streams were open on average at the knee" in text


def at(second: int, *, streams: float = 10, cpu_s: float = 0, memory: float = MIB, started_at_s: float = 1) -> Sample:
    return Sample(float(second), streams, streams + 2, cpu_s, memory, started_at_s)


def test_the_beginning_of_a_run_is_left_out_of_averages_but_not_of_the_most() -> None:
    samples = [at(second, streams=0, cpu_s=9, memory=9 * MIB) for second in range(2)]
    samples += [at(second, streams=10, cpu_s=9 + second * 0.5) for second in range(2, 8)]
    found = observed(samples)
    assert found == Observed(streams=10, requests=12, cores=0.5, memory_bytes=9 * MIB, restarted=False)


def test_a_restart_is_seen() -> None:
    assert observed([at(1), at(2), at(3, started_at_s=2), at(4, started_at_s=2)]).restarted


def test_too_few_readings_are_refused() -> None:
    with pytest.raises(Unreadable, match="--duration: 1 readings"):
        observed([at(1)])


TEXT = """\
# TYPE llm_api_streams_active gauge
llm_api_streams_active{transport="sse"} 3
llm_api_streams_active{transport="ws"} 4
# TYPE llm_api_http_requests_in_flight gauge
llm_api_http_requests_in_flight 9
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 1.5
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 1000
# TYPE process_start_time_seconds gauge
process_start_time_seconds 77
"""


def test_metrics_are_summed_over_their_labels() -> None:
    assert parse(TEXT, "http://pod", 1.0) == Sample(1.0, 7, 9, 1.5, 1000, 77)


def test_a_metric_without_a_series_is_zero_and_one_that_is_absent_is_named() -> None:
    lines = TEXT.splitlines(keepends=True)
    without = "".join(line for line in lines if not line.startswith("llm_api_streams_active{"))
    assert parse(without, "http://pod", 1.0).streams == 0
    absent = "".join(line for line in lines if "process_cpu" not in line)
    with pytest.raises(Unreadable, match="process_cpu_seconds_total is missing"):
        parse(absent, "http://pod", 1.0)


@pytest.mark.parametrize(
    ("valid", "held", "good", "restarted", "verdict"),
    [
        (True, True, 1.0, False, "held"),
        (False, True, 1.0, False, "invalid"),
        (False, False, 1.0, True, "invalid"),
        (True, False, 1.0, False, "breached"),
        (True, True, 0.9, False, "breached"),
        (True, True, 1.0, True, "breached"),
    ],
)
def test_a_rate_holds_only_if_everything_does(
    *, valid: bool, held: bool, good: float, restarted: bool, verdict: str
) -> None:
    run = Run.model_validate(load_runs.run(load_runs.requests(good=good), valid=valid, held=held))
    pod = Observed(streams=1, requests=1, cores=1, memory_bytes=1, restarted=restarted)
    assert judged(run, pod)[0] == verdict
