"""Doing one job: what it waits for, what it fails at, and what it tells while it runs."""

import asyncio
from contextlib import nullcontext
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from typing_extensions import override

from service.admission.base import LimitReached
from service.admission.memory import MemoryLimiter
from service.api.job_routes import JOB_ROUTES
from service.auth.authenticator import KeyAuthenticator
from service.auth.keys import hash_key
from service.config import AuthSettings, JobSettings, ModelSettings
from service.domain.clock import ManualClock
from service.domain.generation import Usage
from service.domain.job import DEADLINE_PASSED, Job, JobError, JobOutcome, JobStatus
from service.domain.principal import Principal, RequestContext
from service.engine.admission import Admission
from service.engine.catalogue import ModelCatalogue
from service.engine.generation import GenerationService
from service.engine.jobs import SETBACKS_S, WAIT_MAX_S, WAIT_S, JobRunner, JobService, NotYet
from service.errors import (
    CircuitOpen,
    Overloaded,
    ServiceError,
    StoreUnavailable,
    UpstreamInvalid,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from service.providers.fake import FakeProvider, Script
from service.storage.memory_jobs import MemoryJobStore
from service.telemetry.metrics import Metrics
from tests.support.attempts import PLAIN, attempts_over
from tests.support.ledger import unwritten_ledger

PRICE = {"input": 1, "output": 10, "as_of": "2026-11-01", "source": "a page"}
ALICE = "alice-key-0123456789"


class Bench:
    """A runner over one fake provider, and what it told."""

    def __init__(self, limits: dict[str, Any] | None = None, script: Script | None = None, **model: Any) -> None:
        self.clock = ManualClock(wall=1_800_000_000)
        metrics = Metrics(CollectorRegistry())
        self.limiter = MemoryLimiter(clock=self.clock)
        self.provider = FakeProvider(script=script or Script(usage=Usage(10, 5)))
        models = {"m*": ModelSettings.model_validate({"routes": [{"provider": "fake"}], **model})}
        self.generation = GenerationService(
            catalogue=ModelCatalogue(models),
            attempts=attempts_over(
                {"fake": self.provider}, sections={"fake": PLAIN}, metrics=metrics, clock=self.clock
            ),
            admission=Admission(limiter=self.limiter, shadow=False, metrics=metrics),
            ledger=unwritten_ledger(),
            metrics=metrics,
        )
        auth = AuthSettings.model_validate(
            {"enabled": True, "keys": {"alice": {"key": hash_key(ALICE), "limits": limits or {}}}}
        )
        authenticator = KeyAuthenticator(auth, self.clock)
        self.runner = JobRunner(routes=JOB_ROUTES, generation=self.generation, authenticator=authenticator)
        self.pieces: list[str | None] = []

    def job(self, **changed: Any) -> Job:
        plain = Job("job_1", "alice", "/generate", b'{"prompt":"Hi","model":"m1"}', created_at=self.clock.wall())
        return replace(plain, **changed)

    async def run(self, **changed: Any) -> JobOutcome:
        return await self.runner.run(self.job(**changed), self.pieces.append)


class LateStore(MemoryJobStore):
    """A store whose first answers come too late; what was asked of it is done."""

    late = 1

    @override
    async def submit(self, job: Job) -> Job:
        accepted = await super().submit(job)
        self.late -= 1
        if self.late >= 0:
            raise StoreUnavailable("late")
        return accepted


@pytest.mark.parametrize(("late", "accepts"), [(1, True), (2, False)])
async def test_a_submission_whose_answer_was_lost_is_made_once_more(late: int, accepts: bool) -> None:  # noqa: FBT001
    bench = Bench()
    store = LateStore(JobSettings(), bench.clock)
    store.late = late
    service = JobService(
        store=store, routes=JOB_ROUTES, generation=bench.generation, metrics=Metrics(CollectorRegistry())
    )
    context = RequestContext(request_id="req_1", principal=Principal("alice"))
    body = b'{"prompt":"Hi","model":"m1"}'
    with nullcontext() if accepts else pytest.raises(StoreUnavailable):
        assert (await service.submit("/generate", body, context)).status is JobStatus.QUEUED
    assert (await store.depth()).waiting["interactive"] == 1


async def test_a_job_is_answered_as_its_route_would() -> None:
    bench = Bench(price_usd_per_million_tokens=PRICE)
    outcome = await bench.run()
    assert outcome == JobOutcome(
        JobStatus.COMPLETE,
        answer=b'{"model":"m1","prompt_tokens":10,"completion_tokens":5,"finish_reason":"stop","request_id":"job_1",'
        b'"text":"Hello, world"}',
        usage=Usage(10, 5),
        cost_nano_usd=10 * 1_000 + 5 * 10_000,
    )
    assert "".join(piece or "" for piece in bench.pieces) == "Hello, world"


async def test_without_a_price_the_cost_is_not_known() -> None:
    assert (await Bench().run()).cost_nano_usd is None


async def test_a_job_waits_for_its_turn_at_a_limit() -> None:
    bench = Bench({"requests_per_minute": 2, "request_burst": 1})
    await bench.run()
    with pytest.raises(NotYet) as waiting:
        await bench.run()
    assert waiting.value.wait_s == 30
    bench.clock.advance(30)
    assert (await bench.run()).status is JobStatus.COMPLETE


async def test_a_job_waits_for_a_budget_and_asks_again_from_time_to_time() -> None:
    bench = Bench({"usd_per_day": Decimal("0.001")}, Script(usage=Usage(10, 95)), price_usd_per_million_tokens=PRICE)
    await bench.run(body=b'{"prompt":"Hi","model":"m1","max_tokens":50}')
    with pytest.raises(NotYet) as waiting:
        await bench.run(body=b'{"prompt":"Hi","model":"m1","max_tokens":50}')
    assert waiting.value.wait_s == WAIT_MAX_S
    assert isinstance(waiting.value.__cause__, LimitReached)


@pytest.mark.parametrize(
    ("error", "wait_s"),
    [
        (Overloaded("full", retry_after_s=2.5), 2.5),
        (CircuitOpen("rest", retry_after_s=9), 9),
        (UpstreamThrottled("slow down"), WAIT_S),
        (StoreUnavailable("away"), WAIT_S),
    ],
)
async def test_what_passes_is_waited_for(error: ServiceError, wait_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench({"requests_per_minute": 60})

    async def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(bench.limiter, "reserve", fail)
    with pytest.raises(NotYet) as waiting:
        await bench.run()
    assert waiting.value.wait_s == wait_s


@pytest.mark.parametrize(
    ("retry_after_s", "waits", "wait_s"),
    [(0.0, 0, 0.25), (0.0, 3, 2.0), (5.0, 3, 5.0), (5.0, 9, WAIT_MAX_S), (0.0, 10_000, 60)],
)
async def test_who_asks_in_vain_asks_less_and_less_often(retry_after_s: float, waits: int, wait_s: float) -> None:
    bench = Bench(script=Script(before=UpstreamThrottled("slow down", retry_after_s=retry_after_s)))
    with pytest.raises(NotYet) as waiting:
        await bench.run(waits=waits)
    assert waiting.value.wait_s == wait_s


async def test_a_stream_that_breaks_off_is_begun_again() -> None:
    bench = Bench()
    bench.provider.scripts.append(Script(pieces=("Hel", UpstreamInvalid("cut"))))
    outcome = await bench.run()
    assert outcome.status is JobStatus.COMPLETE
    assert bench.pieces[:2] == ["Hel", None]
    assert "".join(piece or "" for piece in bench.pieces[2:]) == "Hello, world"


@pytest.mark.parametrize("error", [UpstreamInvalid("cut"), UpstreamUnavailable("gone")])
async def test_a_provider_that_fails_is_given_time(error: ServiceError) -> None:
    bench = Bench(script=Script(before=error))
    for setbacks, wait_s in enumerate(SETBACKS_S):
        with pytest.raises(NotYet) as waiting:
            await bench.run(setbacks=setbacks)
        assert (waiting.value.wait_s, waiting.value.is_setback) == (wait_s, True)
    assert (await bench.run(setbacks=len(SETBACKS_S))).status is JobStatus.FAILED


async def test_a_stream_that_always_breaks_off_fails() -> None:
    bench = Bench(script=Script(pieces=("Hel", UpstreamInvalid("cut"))))
    outcome = await bench.run(setbacks=len(SETBACKS_S))
    assert outcome.status is JobStatus.FAILED
    assert outcome.error == JobError("upstream_invalid_response", "cut", retryable=True)
    assert len(bench.provider.calls) == 3


async def test_what_the_provider_rejects_fails_at_once() -> None:
    bench = Bench(script=Script(before=UpstreamRejected("the context is too long")))
    outcome = await bench.run()
    assert outcome.error == JobError("upstream_rejected", "the context is too long", retryable=False)
    assert len(bench.provider.calls) == 1


@pytest.mark.parametrize(
    ("changed", "code", "named"),
    [
        ({"principal": "bob"}, "permission_denied", "'bob'"),
        ({"body": b'{"prompt":"Hi","model":"m1","nonsense":1}'}, "invalid_request", "nonsense"),
        ({"body": b'{"prompt":"Hi","model":"new"}'}, "model_not_found", "new"),
    ],
)
async def test_what_only_a_newer_configuration_may_know_is_given_time(
    changed: dict[str, Any], code: str, named: str
) -> None:
    bench = Bench()
    for setbacks, wait_s in enumerate(SETBACKS_S):
        with pytest.raises(NotYet) as waiting:
            await bench.run(setbacks=setbacks, **changed)
        assert (waiting.value.wait_s, waiting.value.is_setback) == (wait_s, True)
    outcome = await bench.run(setbacks=len(SETBACKS_S), **changed)
    assert outcome.error is not None
    assert (outcome.error.code, named in outcome.error.detail) == (code, True)
    assert bench.provider.calls == []


async def test_a_line_of_a_batch_that_asks_for_an_unknown_model_fails_at_once() -> None:
    outcome = await Bench().run(id="batch_1/1", body=b'{"prompt":"Hi","model":"new"}')
    assert outcome.error is not None
    assert outcome.error.code == "model_not_found"


async def test_what_only_a_newer_version_knows_is_left_to_its_workers() -> None:
    with pytest.raises(NotYet):
        await Bench().run(route="/v9/everything")


async def test_a_deadline_ends_the_call() -> None:
    bench = Bench(script=Script(stepped=True))
    outcome = await bench.run(left_s=0.02)
    assert outcome == JobOutcome(JobStatus.EXPIRED, error=DEADLINE_PASSED)
    assert bench.provider.calls[0].closed.is_set()


async def test_a_job_that_is_cancelled_ends_its_call() -> None:
    bench = Bench(script=Script(stepped=True))
    task = asyncio.create_task(bench.run())
    call = await bench.provider.call()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.cancelled
