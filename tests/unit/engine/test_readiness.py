"""The readiness check: what one minimal call, or real traffic, says about whether traffic should come."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.config import DrainSettings, ModelSettings, ReadinessSettings
from service.domain.clock import ManualClock
from service.domain.generation import GenerationRequest, Message
from service.domain.principal import ANONYMOUS, RequestContext
from service.engine.catalogue import ModelCatalogue
from service.engine.drain import Drain
from service.engine.generation import GenerationService
from service.engine.readiness import ReadinessCheck, Verdict
from service.errors import ServiceError, UpstreamMisconfigured, UpstreamThrottled, UpstreamTimeout, UpstreamUnavailable
from service.providers.fake import FakeProvider, Script
from service.telemetry.metrics import Metrics
from tests.support.fake_app import DEADLINE_S, soon, until

READY = Verdict(ready=True, status="ready")
REFUSED = UpstreamMisconfigured("the key is refused")
OUTAGES = [UpstreamUnavailable("gone"), UpstreamThrottled("slower"), UpstreamTimeout("late")]


@dataclass
class Bench:
    provider: FakeProvider = field(default_factory=FakeProvider)
    clock: ManualClock = field(default_factory=ManualClock)
    metrics: Metrics = field(default_factory=lambda: Metrics(CollectorRegistry()))

    def __post_init__(self) -> None:
        routes = {"routes": [{"provider": "fake"}]}
        models = {name: ModelSettings.model_validate(routes) for name in ("first", "other")}
        self.generation = GenerationService(
            catalogue=ModelCatalogue(models),
            providers={"fake": self.provider},
            total_timeouts_s={"fake": 60},
            metrics=self.metrics,
            clock=self.clock,
        )

    def check(self, model: str | None = "first", **settings: Any) -> ReadinessCheck:
        return ReadinessCheck(
            generation=self.generation,
            settings=ReadinessSettings.model_validate(settings),
            model=model,
            drain=Drain(DrainSettings()),
            metrics=self.metrics,
            clock=self.clock,
        )

    def fails_with(self, error: ServiceError | None) -> None:
        self.provider.script = Script(before=error)

    async def traffic(self) -> None:
        request = GenerationRequest(model="other", messages=(Message.of_text("user", "Hi"),))
        await self.generation.complete(request, RequestContext("r", ANONYMOUS))

    @property
    def gauge(self) -> float | None:
        return self.metrics.registry.get_sample_value("llm_api_ready")


@pytest.fixture
def bench() -> Bench:
    return Bench()


def unready(error: ServiceError) -> Verdict:
    return Verdict(ready=False, status="unready", reason=f"{error.code}: {error.message}")


def degraded(error: ServiceError) -> Verdict:
    return Verdict(ready=True, status="degraded", reason=f"{error.code}: {error.message}")


def test_before_the_first_look_it_is_starting(bench: Bench) -> None:
    assert bench.check().verdict == Verdict(ready=False, status="starting")
    assert bench.gauge == 0
    assert bench.provider.calls == []


async def test_one_minimal_call_makes_it_ready(bench: Bench) -> None:
    check = bench.check()
    await check.refresh()
    assert check.verdict == READY
    assert bench.gauge == 1
    (call,) = bench.provider.calls
    request = call.request
    assert isinstance(request, GenerationRequest)
    assert (request.model, request.max_tokens, request.temperature) == ("first", 16, 0.0)


async def test_the_model_of_the_settings_is_the_one_that_is_asked(bench: Bench) -> None:
    await bench.check(model="first", mode="key").refresh()
    check = ReadinessCheck(
        generation=bench.generation,
        settings=ReadinessSettings(model="other"),
        model="first",
        drain=Drain(DrainSettings()),
        metrics=bench.metrics,
        clock=bench.clock,
    )
    await check.refresh()
    assert [call.request.model for call in bench.provider.calls] == ["first", "other"]


async def test_a_refused_key_keeps_it_unready(bench: Bench) -> None:
    check = bench.check()
    bench.fails_with(REFUSED)
    await check.refresh()
    assert check.verdict == unready(REFUSED)
    await check.refresh()
    assert check.verdict == unready(REFUSED)
    assert bench.gauge == 0


async def test_a_key_that_is_refused_after_it_worked_leaves_it_degraded(bench: Bench) -> None:
    check = bench.check()
    await check.refresh()
    bench.fails_with(REFUSED)
    bench.clock.advance(60)
    await check.refresh()
    assert check.verdict == degraded(REFUSED)


async def test_a_key_that_never_worked_is_refused_behind_an_outage_too(bench: Bench) -> None:
    check = bench.check()
    bench.fails_with(UpstreamUnavailable("gone"))
    await check.refresh()
    assert check.verdict.status == "degraded"
    bench.fails_with(REFUSED)
    await check.refresh()
    assert check.verdict == unready(REFUSED)


@pytest.mark.parametrize("error", OUTAGES, ids=lambda error: error.code)
async def test_an_outage_leaves_it_ready_and_degraded(bench: Bench, error: ServiceError) -> None:
    check = bench.check()
    bench.fails_with(error)
    await check.refresh()
    assert check.verdict == degraded(error)
    assert bench.gauge == 1


@pytest.mark.parametrize("error", [*OUTAGES, REFUSED], ids=lambda error: error.code)
async def test_in_strict_mode_any_failure_makes_it_unready(bench: Bench, error: ServiceError) -> None:
    check = bench.check(mode="strict")
    await check.refresh()
    bench.fails_with(error)
    bench.clock.advance(60)
    await check.refresh()
    assert check.verdict == unready(error)
    assert bench.gauge == 0


@pytest.mark.parametrize("mode", ["key", "strict"])
async def test_it_recovers(bench: Bench, mode: str) -> None:
    check = bench.check(mode=mode)
    for error in (REFUSED, UpstreamUnavailable("gone")):
        bench.fails_with(error)
        bench.clock.advance(60)
        await check.refresh()
        assert check.verdict.status != "ready"
        bench.fails_with(None)
        bench.clock.advance(60)
        await check.refresh()
        assert check.verdict == READY


async def test_real_traffic_since_the_last_look_saves_the_call(bench: Bench) -> None:
    check = bench.check()
    await check.refresh()
    bench.clock.advance(1)
    await bench.traffic()
    assert len(bench.provider.calls) == 2
    bench.fails_with(UpstreamUnavailable("gone"))
    bench.clock.advance(59)
    await check.refresh()
    assert len(bench.provider.calls) == 2
    assert check.verdict == READY
    bench.clock.advance(60)
    await check.refresh()
    assert len(bench.provider.calls) == 3
    assert check.verdict.status == "degraded"


async def test_its_own_call_is_no_evidence(bench: Bench) -> None:
    check = bench.check()
    for number in range(1, 4):
        await check.refresh()
        assert len(bench.provider.calls) == number


async def test_traffic_heals_a_failed_verdict(bench: Bench) -> None:
    check = bench.check(mode="strict")
    bench.fails_with(UpstreamUnavailable("gone"))
    await check.refresh()
    bench.fails_with(None)
    bench.clock.advance(1)
    await bench.traffic()
    await check.refresh()
    assert check.verdict == READY
    assert len(bench.provider.calls) == 2


@pytest.mark.parametrize(("model", "mode"), [("first", "passive"), ("first", "off"), (None, "key"), (None, "strict")])
async def test_without_a_call_to_make_it_is_ready_at_once(bench: Bench, model: str | None, mode: str) -> None:
    check = bench.check(model, mode=mode)
    assert check.verdict == READY
    assert bench.gauge == 1
    async with check.running():
        assert asyncio.all_tasks() == {asyncio.current_task()}
    assert bench.provider.calls == []


async def test_passive_tells_of_failed_traffic_and_of_its_end(bench: Bench) -> None:
    check = bench.check(mode="passive")
    bench.fails_with(UpstreamUnavailable("gone"))
    with pytest.raises(UpstreamUnavailable):
        await bench.traffic()
    assert check.verdict == Verdict(ready=True, status="degraded", reason="upstream_unavailable: gone")
    bench.fails_with(None)
    await bench.traffic()
    assert check.verdict == READY


async def test_while_it_runs_it_looks_at_once_and_stops_with_its_context(bench: Bench) -> None:
    check = bench.check()
    bench.provider.script = Script(stepped=True)
    async with asyncio.timeout(DEADLINE_S), check.running():
        call = await bench.provider.call()
        assert check.verdict.status == "starting"
        call.step(3)
        await until(lambda: check.verdict == READY)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_call_that_is_under_way_ends_with_the_context(bench: Bench) -> None:
    bench.provider.script = Script(stepped=True)
    async with bench.check().running():
        call = await bench.provider.call()
        await soon(call.waiting)
    assert call.cancelled


async def test_it_looks_again_after_its_interval(bench: Bench) -> None:
    async with bench.check(interval_s=0.001).running():
        await asyncio.wait_for(bench.provider.call(2), DEADLINE_S)


async def test_a_defect_does_not_freeze_the_verdict(bench: Bench) -> None:
    check = bench.check(interval_s=0.001)
    bench.provider.scripts.append(Script(before=ZeroDivisionError("defect")))  # type: ignore[arg-type] # no ServiceError
    async with check.running():
        await until(lambda: check.verdict == READY)
    assert bench.metrics.registry.get_sample_value("llm_api_unhandled_errors_total", {"place": "readiness"}) == 1
