"""The embedded model itself: a real one, in a process of its own."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import HttpUrl

from service.config import EmbeddedSettings, Installed, ProviderKind, ProviderSettings
from service.domain.clock import Deadline, SystemClock
from service.domain.generation import EmbeddingRequest, FinishReason, GenerationRequest, ImagePart, Message
from service.errors import UpstreamRejected
from service.providers.base import Provider
from service.providers.build import open_provider
from service.providers.local import open_local_model

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not Installed.here().embedded_model, reason="the extra `local` is not installed"),
]
CLOCK = SystemClock()
MODEL = "gemma-3-270m"


@pytest.fixture
async def provider(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    # One folder for all tests of a run: the model is put together once.
    folder: Path = tmp_path_factory.getbasetemp() / "embedded"
    async with open_local_model(EmbeddedSettings(cache_dir=folder)) as address:
        settings = ProviderSettings(kind=ProviderKind.LOCAL, base_url=HttpUrl(address))
        async with open_provider("local", settings, clock=CLOCK) as provider:
            yield provider


def ask(*messages: Message, max_tokens: int = 40) -> GenerationRequest:
    return GenerationRequest(MODEL, messages, max_tokens=max_tokens, temperature=0.0)


def deadline() -> Deadline:
    return Deadline.after(60, CLOCK)


async def test_model_knows_the_capital_of_france_whole_and_streamed(provider: Provider) -> None:
    request = ask(Message.of_text("user", "What is the capital of France?"))
    answer = await provider.complete(request, upstream_model=MODEL, deadline=deadline())
    assert "Paris" in answer.choices[0].text
    assert answer.choices[0].finish_reason is FinishReason.STOP
    assert answer.usage.output_tokens > 0
    async with provider.stream(request, upstream_model=MODEL, deadline=deadline()) as stream:
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.text for chunk in chunks)
    assert text == answer.choices[0].text
    assert text == text.strip()
    assert [chunk.usage.output_tokens for chunk in chunks if chunk.usage] == [answer.usage.output_tokens]


async def test_model_takes_a_conversation_with_a_system_message(provider: Provider) -> None:
    request = ask(
        Message.of_text("system", "Answer in a few words."),
        Message.of_text("user", "What is the capital of France?"),
        Message.of_text("assistant", "Paris."),
        Message.of_text("user", "And of Italy?"),
    )
    answer = await provider.complete(request, upstream_model=MODEL, deadline=deadline())
    assert answer.choices[0].text.strip()
    assert "Question" not in answer.choices[0].text


async def test_model_gives_vectors_too_and_several_answers_at_once(provider: Provider) -> None:
    request = EmbeddingRequest(MODEL, {"model": MODEL, "input": ["a", "b"]})
    plain = ask(Message.of_text("user", "Who wrote Hamlet?"), max_tokens=8)
    answering = asyncio.gather(*(provider.complete(plain, upstream_model=MODEL, deadline=deadline()) for _ in range(5)))
    result = await provider.embed(request, upstream_model=MODEL, deadline=deadline())
    answers = await answering
    assert result.usage.input_tokens > 0
    # Not the same text each: what runs beside a generation changes its rounding.
    assert all(answer.choices[0].text.strip() for answer in answers)


async def test_prompt_that_is_too_long_is_rejected_with_the_models_reason(provider: Provider) -> None:
    with pytest.raises(UpstreamRejected, match="context"):
        await provider.complete(ask(Message.of_text("user", "word " * 6000)), upstream_model=MODEL, deadline=deadline())


async def test_an_image_and_a_text_too_long_to_embed_are_rejected_with_the_models_reason(provider: Provider) -> None:
    image = Message("user", (ImagePart(media_type="image/png", data="AAAA"),))
    with pytest.raises(UpstreamRejected, match="image"):
        await provider.complete(ask(image), upstream_model=MODEL, deadline=deadline())
    long = EmbeddingRequest(MODEL, {"model": MODEL, "input": "word " * 5000})
    with pytest.raises(UpstreamRejected, match="too large"):
        await provider.embed(long, upstream_model=MODEL, deadline=deadline())
