"""Draining the ledger: what is said of it."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from service.domain.usage_page import FORCED_OUT, Page, SetAside, Taken, UsageLog
from service.errors import StoreUnavailable
from service.telemetry.metrics import Metrics
from service.worker.usage_sink import UsageDrain


class Empty:
    def __init__(self) -> None:
        self.heard: list[tuple[str, str | None]] = []

    async def ledger_id(self) -> str:
        return "a1"

    async def page(self, ledger_id: str, after: str) -> Page:
        del ledger_id, after
        return []

    async def sink_at(self, sink: str, position: str | None) -> None:
        self.heard.append((sink, position))


class Failing:
    """A sink that fails, and tells when it was asked."""

    def __init__(self, error: Exception | None, reason: str = "DataError") -> None:
        self.error = error
        self.reason = reason
        self.asked = asyncio.Event()

    async def drain(self, log: UsageLog) -> Taken:
        del log
        self.asked.set()
        if self.error is not None:
            raise self.error
        return Taken(2, (SetAside("1-0", self.reason),), "2-0")


@pytest.mark.parametrize(
    ("error", "ok"), [(None, 1), (StoreUnavailable("away"), 0), (ValueError("a record that nobody can read"), 0)]
)
async def test_a_drain_that_fails_says_so_whatever_the_reason(error: Exception | None, ok: int) -> None:
    metrics = Metrics(CollectorRegistry())
    sink = Failing(error)
    async with UsageDrain(log=Empty(), sink=sink, name="files", metrics=metrics).running():
        await sink.asked.wait()
        await asyncio.sleep(0)
    assert metrics.registry.get_sample_value("llm_api_usage_drain_ok", {"sink": "files"}) == ok


@pytest.mark.parametrize(("error", "position"), [(None, "2-0"), (StoreUnavailable("away"), None)])
async def test_the_ledger_hears_how_far_a_sink_is_and_that_there_is_one(
    error: Exception | None, position: str | None
) -> None:
    log = Empty()
    sink = Failing(error)
    async with UsageDrain(log=log, sink=sink, name="files", metrics=Metrics(CollectorRegistry())).running():
        await sink.asked.wait()
        await asyncio.sleep(0)
    assert log.heard == [("files", position)]


async def test_what_is_set_aside_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics(CollectorRegistry())
    sink = Failing(None)
    async with UsageDrain(log=Empty(), sink=sink, name="files", metrics=metrics).running():
        await sink.asked.wait()
        await asyncio.sleep(0)
    assert metrics.registry.get_sample_value("llm_api_usage_set_aside_total", {"sink": "files"}) == 1
    (line,) = [line for line in caplog.records if "set aside" in line.message]
    assert (vars(line)["position"], vars(line)["reason"]) == ("1-0", "DataError")


async def test_what_was_forced_out_is_told_by_the_sink_that_misses_it(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics(CollectorRegistry())
    sink = Failing(None, FORCED_OUT)
    async with UsageDrain(log=Empty(), sink=sink, name="files", metrics=metrics).running():
        await sink.asked.wait()
        await asyncio.sleep(0)
    assert not metrics.registry.get_sample_value("llm_api_usage_set_aside_total", {"sink": "files"})
    (line,) = [line for line in caplog.records if "records_max" in line.message]
    assert (vars(line)["position"], vars(line)["sink"]) == ("1-0", "files")
