"""What metrics do beyond counting: exemplars, the lag of the event loop, what is there from the start."""

import asyncio
import time
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from service import __version__
from service.telemetry.event_loop import EVERY_S, watching_event_loop
from service.telemetry.metrics import OUTCOMES, Component, Metrics

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def exposed(metrics: Metrics) -> str:
    text: bytes = generate_latest(metrics.registry)  # type: ignore[no-untyped-call]
    return text.decode()


def test_a_first_token_names_the_trace_it_was_seen_in(metrics: Metrics) -> None:
    metrics.note_first_token("sse", 0.4, 0.3, trace_id=TRACE)
    lines = [line for line in exposed(metrics).splitlines() if TRACE in line]
    assert [line.partition("{")[0] for line in lines] == [
        "llm_api_time_to_first_token_seconds_bucket",
        "llm_api_overhead_seconds_bucket",
    ]


def test_processes_that_share_files_of_metrics_keep_no_exemplars(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere")
    metrics.note_first_token("ws", 0.4, 0.0, trace_id=TRACE)
    assert TRACE not in exposed(metrics)
    assert metrics.registry.get_sample_value("llm_api_time_to_first_token_seconds_count", {"transport": "ws"}) == 1


async def test_an_event_loop_that_is_held_up_is_seen(metrics: Metrics) -> None:
    held_s = 4 * EVERY_S
    async with watching_event_loop(metrics):
        await asyncio.sleep(0)
        time.sleep(held_s)  # noqa: ASYNC251 - which is what it is about
        for _ in range(5):
            await asyncio.sleep(0)
    value = metrics.registry.get_sample_value
    assert value("llm_api_event_loop_lag_seconds_count") == 1
    assert (value("llm_api_event_loop_lag_seconds_sum") or 0) >= held_s - EVERY_S - 0.1


def test_each_configured_model_begins_at_zero(metrics: Metrics) -> None:
    metrics.show_models({"one": ["first", "second"]})
    value = metrics.registry.get_sample_value
    for provider in ("first", "second"):
        assert value("llm_api_cost_usd_total", {"provider": provider, "model": "one"}) == 0
        for outcome in OUTCOMES:
            labels = {"provider": provider, "model": "one", "outcome": outcome}
            assert value("llm_api_upstream_requests_total", labels) == 0
    assert value("llm_api_unpriced_requests_total", {"model": "one"}) == 0


def test_the_version_that_runs_is_told(metrics: Metrics) -> None:
    (family,) = metrics.build_info.collect()
    assert [sample.labels["version"] for sample in family.samples] == [__version__]


def test_a_process_says_what_it_is_for() -> None:
    for component in get_args(Component):
        (family,) = Metrics(CollectorRegistry(), component=component).build_info.collect()
        assert [sample.labels["component"] for sample in family.samples] == [component]
