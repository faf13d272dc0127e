"""Admission: what is reserved before a call and settled after it, whatever becomes of the call."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.admission.base import LEVEL_UNIT, DemandTooLarge, LimitReached
from service.admission.memory import MemoryLimiter
from service.config import ModelSettings, Settings
from service.domain.clock import ManualClock
from service.domain.estimates import tokens_in
from service.domain.generation import (
    Chunk,
    Delta,
    EmbeddingRequest,
    FinishReason,
    GenerationRequest,
    Message,
    Tool,
    Usage,
)
from service.domain.limits import Limits, Scope, ScopeKind, quotas_of
from service.domain.principal import Principal, RequestContext
from service.engine.admission import DEFAULT_OUTPUT_TOKENS, OUTPUTS_KEPT, OUTPUTS_NEEDED, Admission, LearnedOutputs
from service.engine.catalogue import ModelCatalogue
from service.engine.generation import GenerationService
from service.errors import (
    CircuitOpen,
    InvalidRequest,
    PermissionDenied,
    ServiceError,
    UpstreamInvalid,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.providers.fake import FakeProvider, Script
from service.telemetry.metrics import Metrics
from tests.support.attempts import PLAIN, attempts_over
from tests.support.fake_app import soon
from tests.support.ledger import unwritten_ledger

PROMPT = "x" * 40
"""Ten tokens, by the estimate."""
PRICE = {"input": 1, "output": 10, "as_of": "2026-11-01", "source": "a page"}


@dataclass
class Bench:
    limits: Limits
    user_limits: Limits = field(default_factory=Limits)
    model: Mapping[str, Any] = field(default_factory=dict)
    shadow: bool = False
    script: Script = field(default_factory=lambda: Script(usage=Usage(10, 5)))
    backup: Script = field(default_factory=Script)
    """What the provider ``backup`` does, for a model that has a route to it."""
    provider_settings: Mapping[str, Any] = field(default_factory=lambda: PLAIN)

    def __post_init__(self) -> None:
        self.clock = ManualClock(wall=1_800_000_000)
        self.metrics = Metrics(CollectorRegistry())
        self.limiter = MemoryLimiter(clock=self.clock)
        self.provider = FakeProvider(script=self.script)
        self.spare = FakeProvider("backup", script=self.backup)
        self.contexts: list[RequestContext] = []
        self.admission = Admission(limiter=self.limiter, shadow=self.shadow, metrics=self.metrics)
        models = {"m*": ModelSettings.model_validate({"routes": [{"provider": "fake"}], **self.model})}
        self.service = GenerationService(
            catalogue=ModelCatalogue(models),
            attempts=attempts_over(
                {"fake": self.provider, "backup": self.spare},
                sections={"fake": self.provider_settings},
                metrics=self.metrics,
                clock=self.clock,
            ),
            admission=self.admission,
            ledger=unwritten_ledger(),
            metrics=self.metrics,
        )

    def context(self) -> RequestContext:
        principal = Principal("alice", limits=self.limits, user_limits=self.user_limits)
        self.contexts.append(RequestContext("r", principal))
        return self.contexts[-1]

    async def ask(self, **more: Any) -> None:
        await self.service.complete(question(**more), self.context())

    async def stream(self, *, chunks: int | None = None, **more: Any) -> None:
        """Stream to the end, or leave after so many chunks."""
        async with self.service.stream(question(**more), self.context()) as stream:
            seen = 0
            async for _ in stream:
                seen += 1
                if seen == chunks:
                    return

    def left(self, resource: str, kind: ScopeKind = "key", name: str = "alice") -> int:
        """Return what is left of a limit, whole."""
        limits = {"key": self.limits, "user": self.user_limits}.get(kind) or Limits(**self.model["limits"])
        (quota,) = (quota for quota in quotas_of(Scope(kind, name, limits)) if quota.resource == resource)
        level = self.limiter._level(quota)
        return level // LEVEL_UNIT if quota.per_minute else level

    def decisions(self) -> dict[tuple[str, str, str], float]:
        (family,) = self.metrics.rate_limit_decisions.collect()
        return {
            (sample.labels["scope"], sample.labels["resource"], sample.labels["decision"]): sample.value
            for sample in family.samples
            if sample.name.endswith("_total") and sample.value
        }


def question(**more: Any) -> GenerationRequest:
    return GenerationRequest(**{"model": "m1", "messages": (Message.of_text("user", PROMPT),), **more})


TOKENS = Limits(requests_per_minute=10, tokens_per_minute=2_000, concurrency=1)


async def test_tokens_are_settled_on_what_the_provider_says() -> None:
    bench = Bench(TOKENS)
    await bench.ask(max_tokens=100)
    assert bench.contexts[0].standing.balances[1].remaining == 2_000 - 110
    assert (bench.left("requests"), bench.left("tokens"), bench.left("concurrency")) == (9, 1_985, 1)
    assert bench.metrics.registry.get_sample_value("llm_api_token_reservation_ratio_sum") == 110 / 15


async def test_stream_holds_its_place_until_its_end() -> None:
    bench = Bench(TOKENS)
    async with bench.service.stream(question(), bench.context()) as chunks:
        with pytest.raises(LimitReached):
            await bench.ask()
        async for _ in chunks:
            pass
    assert (bench.left("requests"), bench.left("tokens"), bench.left("concurrency")) == (9, 1_985, 1)


async def test_stream_that_is_left_is_settled_on_what_came() -> None:
    bench = Bench(TOKENS, script=Script(pieces=("12345678", "x" * 100)))
    await bench.stream(chunks=1)
    assert (bench.left("tokens"), bench.left("concurrency")) == (2_000 - 10 - 2, 1)


async def test_stream_that_is_left_costs_at_least_what_the_provider_said_it_read() -> None:
    told = Chunk(first_usage=Usage(900, 1, cached_input_tokens=500))
    for first in (("12345678",), (Chunk(deltas=(Delta(text="12345678"),), first_usage=told.first_usage),)):
        pieces = ((told, *first) if isinstance(first[0], str) else first) + ("x" * 100,)
        bench = Bench(
            Limits(tokens_per_minute=2_000, usd_per_day=Decimal(1)),
            model={"price_usd_per_million_tokens": {**PRICE, "cached_input": "0.1"}},
            script=Script(pieces=pieces),
        )
        await bench.stream(chunks=1)
        assert bench.left("tokens") == 2_000 - 900 - 2
        assert bench.left("usd") == 1_000_000_000 - 400 * 1_000 - 500 * 100 - 2 * 10_000


async def test_long_tools_are_reserved_and_paid_for_by_who_leaves_too() -> None:
    bench = Bench(Limits(tokens_per_minute=200_000))
    tool = Tool("t", "d" * 400_000, {"type": "object"})
    await bench.stream(chunks=1, tools=(tool,), max_tokens=10)
    assert bench.contexts[0].standing.balances[0].remaining == 200_000 - 10 - tokens_in(tool.size_bytes) - 10
    assert bench.left("tokens") < 100_000


async def test_stream_that_breaks_is_settled_on_what_came() -> None:
    bench = Bench(TOKENS, script=Script(pieces=("12345678", UpstreamInvalid("cut"))))
    with pytest.raises(UpstreamInvalid):
        await bench.stream()
    assert bench.left("tokens") == 2_000 - 10 - 2


@pytest.mark.parametrize(
    ("failure", "charged"),
    [
        (UpstreamUnavailable("x"), 0),
        (UpstreamThrottled("x"), 0),
        (InvalidRequest.at("n", "x"), 0),
        (UpstreamTimeout("x"), 110),
        (UpstreamInvalid("x"), 110),
    ],
)
async def test_failure_costs_what_the_provider_may_bill(failure: ServiceError, charged: int) -> None:
    for streamed in (False, True):
        bench = Bench(TOKENS, script=Script(before=failure))
        with pytest.raises(type(failure)):
            await (bench.stream(max_tokens=100) if streamed else bench.ask(max_tokens=100))
        assert (bench.left("requests"), bench.left("tokens"), bench.left("concurrency")) == (9, 2_000 - charged, 1)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "charged"),
    [
        (UpstreamTimeout("slow"), UpstreamUnavailable("refused"), 110),
        (UpstreamUnavailable("refused"), UpstreamTimeout("slow"), 110),
        (UpstreamUnavailable("refused"), UpstreamThrottled("busy"), 0),
    ],
)
async def test_each_attempt_that_may_be_billed_keeps_the_charge_whatever_the_others_do(
    first: ServiceError,
    second: ServiceError,
    charged: int,
    streamed: bool,  # noqa: FBT001 - a way to ask
) -> None:
    bench = Bench(
        TOKENS,
        model={"routes": [{"provider": "fake"}, {"provider": "backup"}]},
        script=Script(before=first),
        backup=Script(before=second),
    )
    with pytest.raises(ServiceError):
        await (bench.stream(max_tokens=100) if streamed else bench.ask(max_tokens=100))
    assert [len(provider.calls) for provider in (bench.provider, bench.spare)] == [1, 1]
    assert (bench.left("requests"), bench.left("tokens"), bench.left("concurrency")) == (9, 2_000 - charged, 1)


async def test_call_that_is_cancelled_stays_charged_as_estimated() -> None:
    bench = Bench(TOKENS, script=Script(stepped=True))
    task = asyncio.create_task(bench.ask(max_tokens=100))
    await soon((await bench.provider.call()).waiting)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (bench.left("tokens"), bench.left("concurrency")) == (2_000 - 110, 1)


async def test_refused_request_reaches_no_provider_and_takes_nothing() -> None:
    bench = Bench(Limits(requests_per_minute=1, tokens_per_minute=2_000))
    await bench.ask()
    with pytest.raises(LimitReached) as caught:
        await bench.ask()
    assert caught.value.retry_after_s == 60
    assert len(bench.provider.calls) == 1
    assert bench.left("tokens") == 1_985
    assert [balance.remaining for balance in bench.contexts[1].standing.balances] == [0, 1_985]
    assert bench.decisions() == {
        ("key", "requests", "admitted"): 1,
        ("key", "tokens", "admitted"): 1,
        ("key", "requests", "refused"): 1,
    }


async def test_who_is_told_to_come_again_is_not_counted() -> None:
    bench = Bench(
        Limits(requests_per_minute=3),
        script=Script(before=UpstreamUnavailable("gone")),
        provider_settings={"retries": {"max_attempts": 1}, "breaker": {"failures_in_a_row": 1}},
    )
    with pytest.raises(UpstreamUnavailable):
        await bench.ask()
    for _ in range(10):
        with pytest.raises(CircuitOpen):
            await bench.ask()
    assert bench.left("requests") == 2


async def test_key_user_and_model_are_all_asked() -> None:
    bench = Bench(
        Limits(requests_per_minute=10),
        user_limits=Limits(requests_per_minute=2),
        model={"limits": {"requests_per_minute": 3}},
    )
    for admitted in ("bob", "bob", "carol"):
        await bench.ask(user_id=admitted)
    for user, named in (("bob", "user 'alice/bob'"), ("dave", "model 'm\\*'"), (None, "model 'm\\*'")):
        with pytest.raises(LimitReached, match=named):
            await bench.ask(user_id=user)
    assert bench.left("requests") == 7
    assert bench.left("requests", "user", "alice/carol") == 1
    assert bench.left("requests", "model", "m*") == 0


@pytest.mark.parametrize("user", ["x" * 1_000, "a b\r\n", "é\ud800", "sha256:" + "0" * 32, ""])
async def test_any_user_id_has_limits_of_its_own(user: str) -> None:
    bench = Bench(Limits(), user_limits=Limits(requests_per_minute=1))
    await bench.ask(user_id=user)
    await bench.ask(user_id=user + "x")
    with pytest.raises(LimitReached) as caught:
        await bench.ask(user_id=user)
    assert len(caught.value.quotas[0].name) < 50


async def test_without_limits_nobody_is_asked() -> None:
    bench = Bench(Limits())
    await bench.ask()
    assert bench.decisions() == {}
    assert bench.metrics.registry.get_sample_value("llm_api_rate_limiter_duration_seconds_count") == 0


async def test_money_is_settled_on_what_the_call_cost() -> None:
    bench = Bench(Limits(usd_per_day=Decimal(1)), model={"price_usd_per_million_tokens": PRICE})
    await bench.ask(max_tokens=100)
    assert bench.left("usd") == 1_000_000_000 - 10 * 1_000 - 5 * 10_000
    assert bench.contexts[0].standing.balances[0].remaining == 1_000_000_000 - 10 * 1_000 - 100 * 10_000


async def test_budget_cannot_be_kept_for_a_model_without_a_price() -> None:
    bench = Bench(Limits(usd_per_day=Decimal(1)))
    with pytest.raises(PermissionDenied, match=r"the model 'm\*' has no price"):
        await bench.ask()
    assert bench.provider.calls == []


async def test_who_asks_for_more_than_there_can_be_is_told_so() -> None:
    bench = Bench(Limits(tokens_per_minute=60))
    with pytest.raises(DemandTooLarge, match="max_tokens: this request is estimated at 70 tokens, and key 'alice'"):
        await bench.ask(max_tokens=60)
    assert bench.decisions() == {("key", "tokens", "refused"): 1}


async def test_who_asks_for_no_length_waits_for_all_there_can_be() -> None:
    bench = Bench(Limits(tokens_per_minute=60))
    await bench.ask()
    assert bench.contexts[0].standing.balances[0].remaining == 0
    assert bench.left("tokens") == 45


async def test_output_is_learned_from_answers() -> None:
    bench = Bench(Limits(tokens_per_minute=100_000))
    for _ in range(OUTPUTS_NEEDED):
        await bench.ask()
    await bench.ask()
    await bench.ask(max_tokens=3)
    reserved = [
        before - after.standing.balances[0].remaining
        for before, after in ((100_000 - 15 * number, context) for number, context in enumerate(bench.contexts))
    ]
    assert reserved == [*[10 + DEFAULT_OUTPUT_TOKENS] * OUTPUTS_NEEDED, 15, 13]


async def test_answers_that_their_callers_cut_short_teach_nothing() -> None:
    for streamed in (False, True):
        bench = Bench(Limits(tokens_per_minute=100_000), script=Script(usage=Usage(10, 1)))
        for _ in range(OUTPUTS_NEEDED):
            await (bench.stream(max_tokens=1) if streamed else bench.ask(max_tokens=1))
        bench.provider.script = Script(usage=Usage(10, 600), finish_reason=FinishReason.LENGTH)
        for _ in range(OUTPUTS_NEEDED):
            await (bench.stream(max_tokens=600) if streamed else bench.ask(max_tokens=600))
        assert bench.admission._outputs.expected("m*") == DEFAULT_OUTPUT_TOKENS
        assert bench.admission._outputs._seen == {}


async def test_answers_within_a_bound_that_they_did_not_reach_teach() -> None:
    bench = Bench(Limits(tokens_per_minute=100_000), script=Script(usage=Usage(10, 40)))
    for _ in range(OUTPUTS_NEEDED):
        await bench.ask(max_tokens=DEFAULT_OUTPUT_TOKENS)
    assert bench.admission._outputs.expected("m*") == 40


async def test_answers_that_end_at_the_models_own_bound_teach() -> None:
    bench = Bench(
        Limits(tokens_per_minute=100_000), script=Script(usage=Usage(10, 900), finish_reason=FinishReason.LENGTH)
    )
    for _ in range(OUTPUTS_NEEDED):
        await bench.ask()
    assert bench.admission._outputs.expected("m*") == 900


def test_learned_output_is_the_95th_percentile_of_the_last_answers() -> None:
    outputs = LearnedOutputs()
    for size in range(1, 101):
        outputs.add("m", size)
    assert outputs.expected("m") == 96
    assert outputs.expected("other") == DEFAULT_OUTPUT_TOKENS
    for _ in range(OUTPUTS_KEPT):
        outputs.add("m", 7)
    assert outputs.expected("m") == 7
    assert len(outputs._seen["m"][1]) == OUTPUTS_KEPT


@pytest.mark.parametrize(
    ("given", "tokens"), [("x" * 40, 10), (["x" * 20, "x" * 21], 11), ([1, 2, 3], 3), ([[1, 2], [3]], 3)]
)
async def test_embeddings_are_limited_by_their_input(given: Any, tokens: int) -> None:
    bench = Bench(Limits(tokens_per_minute=100), script=Script(usage=Usage(4, 0)))
    await bench.service.embed(EmbeddingRequest("m1", {"input": given}), bench.context())
    assert bench.contexts[0].standing.balances[0].remaining == 100 - tokens
    assert bench.left("tokens") == 96


async def test_shadow_refuses_nothing_and_says_what_it_would(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(Limits(requests_per_minute=1, tokens_per_minute=600), shadow=True)
    with caplog.at_level(logging.INFO, "service.engine.admission"):
        for max_tokens in (10, 10, 5_000):
            await bench.ask(max_tokens=max_tokens)
    assert len(bench.provider.calls) == 3
    assert bench.decisions() == {
        ("key", "requests", "admitted"): 1,
        ("key", "tokens", "admitted"): 1,
        ("key", "requests", "would_refuse"): 2,
    }
    assert [record.getMessage() for record in caplog.records] == [
        "would refuse: key 'alice' may start 1 requests a minute: ask again in 60 s"
    ] * 2
    assert caplog.records[0].__dict__["principal"] == "alice"
    assert all(context.standing.balances == () for context in bench.contexts)


async def test_shadow_follows_the_configuration() -> None:
    bench = Bench(Limits(requests_per_minute=1))
    await bench.ask()
    for shadow in (True, False):
        commit = await bench.admission.prepare(Settings.model_validate({"admission": {"shadow": shadow}}))
        assert bench.admission.shadow is not shadow
        commit()
        if shadow:
            await bench.ask()
        else:
            with pytest.raises(LimitReached):
                await bench.ask()


async def test_request_that_was_let_in_under_shadow_ends_as_it_began() -> None:
    bench = Bench(Limits(requests_per_minute=2, concurrency=1), shadow=True, script=Script(stepped=True))
    task = asyncio.create_task(bench.ask())
    await soon((await bench.provider.call()).waiting)
    (await bench.admission.prepare(Settings()))()
    (await bench.provider.call()).step(3)
    await task
    assert bench.contexts[0].standing.balances == ()
    assert bench.left("concurrency") == 1
