"""The generation service: routes in turn until something was handed on, and an honest count of every call."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from typing_extensions import override

from service.admission.memory import MemoryLimiter
from service.config import ModelSettings
from service.domain.clock import ManualClock
from service.domain.generation import (
    Chunk,
    Delta,
    EmbeddingRequest,
    FinishReason,
    GenerationRequest,
    Message,
    ToolCallDelta,
    Usage,
)
from service.domain.principal import ANONYMOUS, RequestContext
from service.engine.admission import Admission
from service.engine.catalogue import ModelCatalogue
from service.engine.generation import GenerationService
from service.errors import (
    InvalidRequest,
    ModelNotFound,
    UpstreamError,
    UpstreamInvalid,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.providers.fake import FakeProvider, Script
from service.telemetry.metrics import Metrics
from tests.support.attempts import PLAIN, attempts_over
from tests.support.fake_app import soon
from tests.support.ledger import unwritten_ledger

REQUEST = GenerationRequest(model="m", messages=(Message.of_text("user", "Hi"),))
CONTEXT = RequestContext(request_id="r", principal=ANONYMOUS)
ROLE = Chunk(raw=b"role ", deltas=(Delta(),), response_id="r1", model="up")
UNSUPPORTED_BY_IT = InvalidRequest.at("n", "the provider of this model gives one answer only", kind="unsupported")
TWO_ROUTES = [{"provider": "first", "model": "up-1"}, {"provider": "second", "model": "up-2"}]
FALLING_BACK = [
    UpstreamOverloaded("x"),
    UpstreamThrottled("x"),
    UpstreamUnavailable("x"),
    UpstreamInvalid("x"),
    UpstreamMisconfigured("x"),
    UpstreamTimeout("x"),
    UpstreamError("x"),
]


@dataclass
class Bench:
    first: FakeProvider = field(default_factory=lambda: FakeProvider("first"))
    second: FakeProvider = field(default_factory=lambda: FakeProvider("second"))
    metrics: Metrics = field(default_factory=lambda: Metrics(CollectorRegistry()))
    clock: ManualClock = field(default_factory=ManualClock)

    @property
    def service(self) -> GenerationService:
        return GenerationService(
            catalogue=ModelCatalogue({"m": ModelSettings.model_validate({"routes": TWO_ROUTES})}),
            attempts=attempts_over(
                {"first": self.first, "second": self.second},
                sections={
                    "first": {**PLAIN, "timeouts_s": {"total": 20.0}},
                    "second": {**PLAIN, "timeouts_s": {"total": 10.0}},
                },
                metrics=self.metrics,
                clock=self.clock,
            ),
            admission=Admission(limiter=MemoryLimiter(clock=self.clock), shadow=False, metrics=self.metrics),
            ledger=unwritten_ledger(),
            metrics=self.metrics,
        )

    def outcomes(self) -> dict[tuple[str, str], float]:
        """Return how often each provider had each outcome."""
        (family,) = self.metrics.upstream_requests.collect()
        return {
            (sample.labels["provider"], sample.labels["outcome"]): sample.value
            for sample in family.samples
            if sample.name.endswith("_total")
        }

    def tokens(self) -> Mapping[str, float]:
        (family,) = self.metrics.tokens.collect()
        return {sample.labels["type"]: sample.value for sample in family.samples if sample.name.endswith("_total")}


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def streamed(bench: Bench) -> tuple[str, list[Chunk]]:
    async with bench.service.stream(REQUEST, CONTEXT) as chunks:
        seen = [chunk async for chunk in chunks]
    return "".join(chunk.text for chunk in seen), seen


async def completed(bench: Bench) -> tuple[str, object]:
    completion = await bench.service.complete(REQUEST, CONTEXT)
    return completion.choices[0].text, completion


Ask = Callable[[Bench], Any]
both = pytest.mark.parametrize("ask", [streamed, completed])


@both
async def test_the_first_route_answers_and_the_second_is_not_asked(bench: Bench, ask: Ask) -> None:
    text, _ = await ask(bench)
    assert text == "Hello, world"
    assert bench.first.calls[0].upstream_model == "up-1"
    assert bench.second.calls == []
    assert bench.outcomes() == {("first", "ok"): 1}
    assert bench.tokens() == {"input": 5, "output": 3}


@both
@pytest.mark.parametrize("error", FALLING_BACK, ids=lambda error: error.code)
async def test_another_route_is_tried_for_what_it_may_do_better(bench: Bench, ask: Ask, error: UpstreamError) -> None:
    bench.first.script = Script(before=error)
    bench.second.script = Script(pieces=("from the second",))
    text, _ = await ask(bench)
    assert text == "from the second"
    assert bench.second.calls[0].upstream_model == "up-2"
    assert bench.outcomes() == {("first", error.code): 1, ("second", "ok"): 1}


@both
async def test_no_route_gets_more_time_than_its_own_provider_may_take(bench: Bench, ask: Ask) -> None:
    bench.first.script = Script(before=UpstreamUnavailable("x"))
    await ask(bench)
    assert bench.first.calls[0].deadline.at == bench.clock.monotonic() + 20
    assert bench.second.calls[0].deadline.at == bench.clock.monotonic() + 10


@both
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UpstreamRejected("too long"), "upstream_rejected"),
        (InvalidRequest.at("tools", "this provider has none"), "invalid_request"),
        (ZeroDivisionError("defect"), "internal_error"),
    ],
)
async def test_no_other_route_is_tried_for_what_none_does_better(
    bench: Bench, ask: Ask, error: Exception, code: str
) -> None:
    bench.first.script = Script(before=error)  # type: ignore[arg-type] # a defect is no ServiceError
    with pytest.raises(type(error)) as caught:
        await ask(bench)
    assert caught.value is error
    assert bench.second.calls == []
    assert bench.outcomes() == {("first", code): 1}


@both
async def test_the_last_failure_is_raised_when_no_route_can(bench: Bench, ask: Ask) -> None:
    bench.first.script = Script(before=UpstreamUnavailable("first"))
    bench.second.script = Script(before=UpstreamThrottled("second", retry_after_s=3))
    with pytest.raises(UpstreamThrottled, match="second"):
        await ask(bench)


@both
async def test_what_one_provider_cannot_do_goes_to_the_next(bench: Bench, ask: Ask) -> None:
    bench.first.script = Script(before=UNSUPPORTED_BY_IT)
    assert (await ask(bench))[0] == "Hello, world"
    assert bench.outcomes() == {("first", "invalid_request"): 1, ("second", "ok"): 1}


@both
async def test_what_no_provider_can_do_is_the_callers_mistake(bench: Bench, ask: Ask) -> None:
    bench.first.script = bench.second.script = Script(before=UNSUPPORTED_BY_IT)
    with pytest.raises(InvalidRequest, match="one answer"):
        await ask(bench)


@both
@pytest.mark.parametrize("down", ["first", "second"])
async def test_an_outage_says_more_than_what_the_other_provider_cannot_do(bench: Bench, ask: Ask, down: str) -> None:
    outage, unable = Script(before=UpstreamUnavailable("gone")), Script(before=UNSUPPORTED_BY_IT)
    bench.first.script, bench.second.script = (outage, unable) if down == "first" else (unable, outage)
    with pytest.raises(UpstreamUnavailable):
        await ask(bench)


@both
async def test_an_unknown_model_asks_nobody(bench: Bench, ask: Ask) -> None:
    service = bench.service
    request = GenerationRequest(model="x", messages=())
    with pytest.raises(ModelNotFound):
        await service.complete(request, CONTEXT)
    with pytest.raises(ModelNotFound):
        async with service.stream(request, CONTEXT):
            pass
    assert bench.outcomes() == {}


@both
async def test_a_cancelled_call_counts_as_cancelled_and_tries_nobody_else(bench: Bench, ask: Ask) -> None:
    bench.first.script = Script(stepped=True)
    task = asyncio.create_task(ask(bench))
    call = await bench.first.call()
    await soon(call.waiting)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.closed.is_set()
    assert bench.second.calls == []
    assert bench.outcomes() == {("first", "cancelled"): 1}


@pytest.mark.parametrize("startup", [(ROLE,), (ROLE, ROLE), (ROLE, "")])
@pytest.mark.parametrize("error", FALLING_BACK, ids=lambda error: error.code)
async def test_a_stream_falls_back_as_long_as_it_has_no_content(
    bench: Bench, startup: tuple[Chunk | str, ...], error: UpstreamError
) -> None:
    bench.first.script = Script(pieces=(*startup, error))
    text, _ = await streamed(bench)
    assert text == "Hello, world"
    assert bench.first.calls[0].closed.is_set()
    assert bench.outcomes() == {("first", error.code): 1, ("second", "ok"): 1}


async def test_a_stream_never_falls_back_once_it_has_content(bench: Bench) -> None:
    bench.first.script = Script(pieces=("Hel", UpstreamUnavailable("gone")))
    seen = ""
    with pytest.raises(UpstreamUnavailable):  # noqa: PT012 - what came before the failure counts too
        async with bench.service.stream(REQUEST, CONTEXT) as chunks:
            async for chunk in chunks:
                seen += chunk.text
    assert seen == "Hel"
    assert bench.second.calls == []
    assert bench.outcomes() == {("first", "upstream_unavailable"): 1}


async def test_startup_chunks_come_with_the_first_content_in_one(bench: Bench) -> None:
    hello = Chunk(raw=b"hello ", deltas=(Delta(text="Hello"),))
    bench.first.script = Script(pieces=(ROLE, ROLE, hello, "!"))
    _, seen = await streamed(bench)
    assert (seen[0].raw, seen[0].text, seen[0].response_id, seen[0].model) == (b"role role hello ", "Hello", "r1", "up")
    assert len(seen[0].deltas) == 3
    assert seen[1].text == "!"


@pytest.mark.parametrize(
    "delta",
    [
        Delta(text="x"),
        Delta(reasoning="x"),
        Delta(refusal="x"),
        Delta(tool_calls=(ToolCallDelta(0, "id", "name"),)),
        Delta(finish_reason=FinishReason.CONTENT_FILTER),
        Delta(choice=1, text="x"),
    ],
)
async def test_anything_that_a_caller_can_see_is_content(bench: Bench, delta: Delta) -> None:
    bench.first.script = Script(pieces=(ROLE, Chunk(deltas=(delta,)), UpstreamUnavailable("gone")))
    async with bench.service.stream(REQUEST, CONTEXT) as chunks:
        assert delta in (await anext(chunks)).deltas
        with pytest.raises(UpstreamUnavailable):
            await anext(chunks)
    assert bench.second.calls == []


async def test_the_first_content_is_awaited_on_entering_and_the_rest_on_iterating(bench: Bench) -> None:
    bench.first.script = Script(stepped=True)
    entering = bench.service.stream(REQUEST, CONTEXT)
    task = asyncio.create_task(entering.__aenter__())
    call = await bench.first.call()
    await soon(call.waiting)
    assert not task.done()
    call.step()
    chunks = await task
    assert (await anext(chunks)).text == "Hello"
    await entering.__aexit__(None, None, None)
    assert call.closed.is_set()


async def test_leaving_early_closes_the_call_and_counts_as_cancelled(bench: Bench) -> None:
    async with bench.service.stream(REQUEST, CONTEXT) as chunks:
        await anext(chunks)
        assert not bench.first.calls[0].closed.is_set()
    assert bench.first.calls[0].closed.is_set()
    assert bench.outcomes() == {("first", "cancelled"): 1}


async def test_a_stream_that_was_left_counts_what_was_asked_and_what_had_come(bench: Bench) -> None:
    request = GenerationRequest("m", (Message.of_text("user", "x" * 40), Message.of_text("user", "y")))
    bench.first.script = Script(pieces=("12345678", "é" * 4, "never read"))
    async with bench.service.stream(request, CONTEXT) as chunks:
        await anext(chunks)
        await anext(chunks)
    assert bench.tokens() == {"input": 11, "output": 4}


async def test_content_that_was_never_handed_on_was_written_all_the_same(bench: Bench) -> None:
    bench.first.script = Script(pieces=(ROLE, "12345678"))
    async with bench.service.stream(REQUEST, CONTEXT):
        pass
    assert bench.tokens() == {"input": 1, "output": 2}


async def test_a_stream_that_failed_counts_every_kind_of_output(bench: Bench) -> None:
    calls = (ToolCallDelta(0, id="c", name="find", arguments="{"), ToolCallDelta(1, arguments="12345"))
    pieces = (
        Chunk(deltas=(Delta(reasoning="12"), Delta(choice=1, text="34"))),
        Chunk(deltas=(Delta(refusal="12"), Delta(tool_calls=calls))),
        UpstreamUnavailable("gone"),
    )
    bench.first.script = Script(pieces=pieces)
    with pytest.raises(UpstreamUnavailable):
        await streamed(bench)
    assert bench.tokens() == {"input": 1, "output": 4}
    assert bench.outcomes() == {("first", "upstream_unavailable"): 1}


@pytest.mark.parametrize(("pieces", "read"), [((), 0), (("Hel",), 2)])
async def test_the_providers_own_figures_are_used_for_a_stream_that_was_left_if_they_came(
    bench: Bench, pieces: tuple[str, ...], read: int
) -> None:
    bench.first.script = Script(pieces=pieces, usage=Usage(70, 80))
    async with bench.service.stream(REQUEST, CONTEXT) as chunks:
        for _ in range(read):
            await anext(chunks)
    assert bench.outcomes() == {("first", "cancelled"): 1}
    assert bench.tokens() == {"input": 70, "output": 80}


async def test_a_stream_without_content_costs_nothing_that_we_know_of(bench: Bench) -> None:
    bench.first.script = Script(pieces=(ROLE, UpstreamUnavailable("gone")))
    bench.second.script = Script(before=UpstreamUnavailable("gone"))
    with pytest.raises(UpstreamUnavailable):
        await streamed(bench)
    assert bench.tokens() == {}


async def test_a_defect_of_whoever_reads_is_not_the_providers(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError):
        async with bench.service.stream(REQUEST, CONTEXT):
            raise ZeroDivisionError
    assert bench.first.calls[0].closed.is_set()
    assert bench.outcomes() == {("first", "cancelled"): 1}


class Defective(FakeProvider):
    """Breaks after its first content in a way that no code expects."""

    @override
    @asynccontextmanager
    async def stream(self, *_: object, **__: object) -> AsyncIterator[AsyncIterator[Chunk]]:
        async def chunks() -> AsyncIterator[Chunk]:
            yield Chunk(deltas=(Delta(text="Hel"),))
            raise ZeroDivisionError

        yield chunks()


async def test_a_defect_in_mid_stream_counts_as_one(bench: Bench) -> None:
    bench.first = Defective()
    with pytest.raises(ZeroDivisionError):
        await streamed(bench)
    assert bench.outcomes() == {("first", "internal_error"): 1}


async def test_vectors_fall_back_and_count_like_any_call(bench: Bench) -> None:
    bench.first.script = Script(before=UpstreamUnavailable("gone"))
    bench.second.script = Script(usage=Usage(4, 0))
    result = await bench.service.embed(EmbeddingRequest("m", {"input": ["a", "b"]}), CONTEXT)
    assert result.usage == Usage(4, 0)
    assert bench.outcomes() == {("first", "upstream_unavailable"): 1, ("second", "ok"): 1}
    assert bench.tokens() == {"input": 4}


def over(bench: Bench, **resilience: Any) -> GenerationService:
    """Make the service with breakers, and with what a test sets for all providers together."""
    return GenerationService(
        catalogue=ModelCatalogue({"m": ModelSettings.model_validate({"routes": TWO_ROUTES})}),
        attempts=attempts_over(
            {"first": bench.first, "second": bench.second},
            sections={"first": {"breaker": {"calls_at_least": 2}}, "second": {}},
            resilience=resilience,
            metrics=bench.metrics,
            clock=bench.clock,
        ),
        admission=Admission(limiter=MemoryLimiter(clock=bench.clock), shadow=False, metrics=bench.metrics),
        ledger=unwritten_ledger(),
        metrics=bench.metrics,
    )


async def drain(service: GenerationService) -> None:
    async with service.stream(REQUEST, CONTEXT) as chunks:
        async for _ in chunks:
            pass


async def test_streams_that_break_off_open_the_circuit_of_their_route(bench: Bench) -> None:
    service = over(bench)
    bench.first.script = Script(pieces=("Hel", UpstreamUnavailable("cut")))
    for _ in range(2):
        with pytest.raises(UpstreamUnavailable):
            await drain(service)
    async with service.stream(REQUEST, CONTEXT) as chunks:
        assert [chunk.text async for chunk in chunks][:1] == ["Hello"]
    assert (len(bench.first.calls), len(bench.second.calls)) == (2, 1)


async def test_stream_that_is_left_opens_no_circuit(bench: Bench) -> None:
    service = over(bench)
    for _ in range(10):
        async with service.stream(REQUEST, CONTEXT) as chunks:
            await anext(chunks)
    assert bench.second.calls == []


async def test_loser_of_two_attempts_at_a_stream_is_closed_and_its_input_counted(bench: Bench) -> None:
    service = over(bench, hedging={"enabled": True, "delay_s": 0.1, "budget_ratio": 1})
    bench.first.script = Script(stepped=True)
    async with service.stream(REQUEST, CONTEXT) as chunks:
        assert bench.first.calls[0].closed.is_set()
        assert not bench.second.calls[0].closed.is_set()
        text = "".join([chunk.text async for chunk in chunks])
    assert text == "Hello, world"
    assert bench.second.calls[0].closed.is_set()
    assert bench.outcomes() == {("first", "cancelled"): 1, ("second", "ok"): 1}
    tokens = bench.metrics.registry.get_sample_value
    assert tokens("llm_api_tokens_total", {"provider": "first", "model": "m", "type": "input"}) == 1
    assert tokens("llm_api_tokens_total", {"provider": "second", "model": "m", "type": "output"}) == 3
