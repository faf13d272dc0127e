"""What the engine may rely on, shown for every provider: the fake, and both dialects over a socket."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
from pydantic import HttpUrl, SecretStr

from service.config import ProviderKind, ProviderSettings, TimeoutSettings
from service.domain.clock import Deadline, SystemClock
from service.domain.generation import Chunk, Dialect, FinishReason, GenerationRequest, Message, Usage
from service.errors import UpstreamInvalid, UpstreamThrottled, UpstreamTimeout
from service.providers.base import Provider
from service.providers.build import open_provider
from service.providers.fake import FakeProvider, Script
from tests.support.upstream import Answer, scripted_upstream
from tests.support.wire import anthropic_answer, anthropic_stream, openai_answer, openai_stream

CLOCK = SystemClock()
REQUEST = GenerationRequest(model="public", messages=(Message.of_text("user", "Say hello"),), max_tokens=10)
PIECES = ("Hel", "lo ✓", "\n")


@dataclass
class Bench:
    """A provider whose upstream answers as it was told, and what can be seen of the upstream."""

    provider: Provider
    upstream_saw_the_end: Callable[[], AbstractAsyncContextManager[None]]
    """Entered once the call runs; left when the upstream has seen that it is over."""


def deadline(seconds: float = 10.0) -> Deadline:
    return Deadline.after(seconds, CLOCK)


async def collect(stream: AsyncIterator[Chunk], into: list[Chunk]) -> None:
    async for chunk in stream:
        into.append(chunk)  # noqa: PERF401 - what came before a failure must be in it


@asynccontextmanager
async def bench(kind: str, scenario: str) -> AsyncIterator[Bench]:
    if kind == "fake":
        yield fake_bench(scenario)
        return
    throttled = Answer.of_json({"error": {"type": "rate_limit_error"}}, 429, {"retry-after": "7"})
    stream = openai_stream if kind == "openai" else anthropic_stream
    answer = {
        "plain": (openai_answer if kind == "openai" else anthropic_answer)("".join(PIECES)),
        "whole": Answer(stream(PIECES, finished=True)),
        "throttled": throttled,
        "unfinished": Answer(stream(PIECES, finished=False)),
        "silent": Answer(stream(PIECES, finished=False), ending="hold"),
        "mute": Answer(ending="hold", head_after=asyncio.Event()),
    }[scenario]
    async with scripted_upstream(answer) as upstream:
        base_url = f"{upstream.base_url}/v1"
        settings = ProviderSettings(
            kind=ProviderKind(kind),
            base_url=HttpUrl(base_url),
            keys=(SecretStr("k"),),
            timeouts_s=TimeoutSettings(first_token=5, between_tokens=5),
        )
        async with open_provider(kind, settings, clock=CLOCK) as provider:

            @asynccontextmanager
            async def saw_the_end() -> AsyncIterator[None]:
                call = await upstream.call()
                yield
                await asyncio.wait_for(call.left.wait(), 5)

            yield Bench(provider, saw_the_end)


def fake_bench(scenario: str) -> Bench:
    throttled = UpstreamThrottled("the provider is limiting our requests", provider="fake", retry_after_s=7.0)
    provider = FakeProvider(
        script={
            "plain": Script(PIECES),
            "whole": Script(PIECES),
            "throttled": Script(before=throttled),
            "unfinished": Script(PIECES, finish_reason=None),
            "silent": Script((*PIECES, "never"), stepped=True),
            "mute": Script(stepped=True),
        }[scenario]
    )

    @asynccontextmanager
    async def saw_the_end() -> AsyncIterator[None]:
        call = await provider.call()
        yield
        await asyncio.wait_for(call.closed.wait(), 5)
        assert call.cancelled

    return Bench(provider, saw_the_end)


KINDS = ["fake", "openai", "anthropic"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_plain_answer_is_whole(kind: str) -> None:
    async with bench(kind, "plain") as made:
        answer = await made.provider.complete(REQUEST, upstream_model="up", deadline=deadline())
    assert [choice.text for choice in answer.choices] == ["".join(PIECES)]
    assert answer.choices[0].finish_reason is FinishReason.STOP
    assert (answer.model, answer.usage) == ("up", Usage(5, 3))
    assert answer.response_id


async def test_stream_gives_the_text_in_order_and_ends_with_reason_and_usage(kind: str) -> None:
    chunks: list[Chunk] = []
    async with (
        bench(kind, "whole") as made,
        made.provider.stream(REQUEST, upstream_model="up", deadline=deadline()) as stream,
    ):
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == "".join(PIECES)
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == [FinishReason.STOP]
    assert [chunk.usage for chunk in chunks if chunk.usage] == [Usage(5, 3)]
    assert (chunks[0].model, bool(chunks[0].response_id)) == ("up", True)
    dialect = Dialect.ANTHROPIC if kind == "anthropic" else Dialect.OPENAI
    assert {chunk.dialect for chunk in chunks} == {dialect}
    assert all(chunk.raw.endswith(b"\n\n") for chunk in chunks if chunk.raw)


async def test_refusal_is_raised_before_the_first_chunk_with_its_delay(kind: str) -> None:
    async with bench(kind, "throttled") as made:
        with pytest.raises(UpstreamThrottled) as caught:
            async with made.provider.stream(REQUEST, upstream_model="up", deadline=deadline()):
                raise AssertionError("entered")
        assert (caught.value.retry_after_s, caught.value.provider) == (7.0, kind)
        with pytest.raises(UpstreamThrottled):
            await made.provider.complete(REQUEST, upstream_model="up", deadline=deadline())


async def test_stream_without_a_finish_reason_is_never_whole(kind: str) -> None:
    chunks: list[Chunk] = []
    async with (
        bench(kind, "unfinished") as made,
        made.provider.stream(REQUEST, upstream_model="up", deadline=deadline()) as stream,
    ):
        with pytest.raises(UpstreamInvalid, match="finish reason"):
            await collect(stream, chunks)
    assert "".join(chunk.text for chunk in chunks) == "".join(PIECES)


async def test_leaving_a_stream_ends_it_upstream(kind: str) -> None:
    async with bench(kind, "silent") as made, AsyncExitStack() as stack:
        stream = await stack.enter_async_context(
            made.provider.stream(REQUEST, upstream_model="up", deadline=deadline())
        )
        if isinstance(made.provider, FakeProvider):
            made.provider.calls[0].step()
        assert (await anext(stream)).raw
        async with made.upstream_saw_the_end():
            await stack.aclose()


async def test_cancelling_a_read_ends_the_stream_upstream(kind: str) -> None:
    reading = asyncio.Event()

    async def read(provider: Provider) -> None:
        async with provider.stream(REQUEST, upstream_model="up", deadline=deadline()) as stream:
            reading.set()
            await collect(stream, [])

    async with bench(kind, "silent") as made:
        task = asyncio.create_task(read(made.provider))
        await reading.wait()
        async with made.upstream_saw_the_end():
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_cancelling_a_plain_call_ends_it_upstream(kind: str) -> None:
    async with bench(kind, "mute") as made:
        task = asyncio.create_task(made.provider.complete(REQUEST, upstream_model="up", deadline=deadline()))
        async with made.upstream_saw_the_end():
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_deadline_ends_a_silent_upstream_everywhere(kind: str) -> None:
    async with bench(kind, "mute") as made:
        with pytest.raises(UpstreamTimeout):
            await made.provider.complete(REQUEST, upstream_model="up", deadline=deadline(0.05))
        with pytest.raises(UpstreamTimeout):
            async with made.provider.stream(REQUEST, upstream_model="up", deadline=deadline(0.05)):
                raise AssertionError("entered")
    async with (
        bench(kind, "silent") as made,
        made.provider.stream(REQUEST, upstream_model="up", deadline=deadline(0.2)) as stream,
    ):
        with pytest.raises(UpstreamTimeout):
            await collect(stream, [])
