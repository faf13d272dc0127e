"""The simulator as the vendors' own SDKs see it."""

from collections.abc import AsyncIterator

import anthropic
import openai
import orjson
import pytest
from anthropic.types import MessageParam, ToolParam
from openai.types.chat import (
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionMessageParam,
    ChatCompletionToolParam,
)

from service.simulator.options import SimulatorOptions
from service.simulator.server import SimulatorHandle, running

FAST = SimulatorOptions(port=0, ttft_ms=0, gap_ms=0, output_tokens=12)
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
HI: list[MessageParam] = [{"role": "user", "content": "hello"}]
WEATHER: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
OPENAI_TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": WEATHER},
}
ANTHROPIC_TOOL: ToolParam = {"name": "get_weather", "input_schema": WEATHER}


@pytest.fixture
async def simulator() -> AsyncIterator[SimulatorHandle]:
    async with running(FAST) as handle:
        yield handle


@pytest.fixture
async def gpt(simulator: SimulatorHandle) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{simulator.base_url}/v1", api_key="sk-any", max_retries=0) as client:
        yield client


@pytest.fixture
async def claude(simulator: SimulatorHandle) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=simulator.base_url, api_key="sk-any", max_retries=0) as client:
        yield client


class TestOpenAI:
    async def test_a_chat_is_answered_and_invoiced(self, gpt: openai.AsyncOpenAI, simulator: SimulatorHandle) -> None:
        done = await gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
        assert done.choices[0].message.content
        assert done.choices[0].finish_reason == "stop"
        assert done.usage is not None
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (1, 12)
        (call,) = simulator.calls()
        assert (call.input_tokens, call.output_tokens_delivered, call.finished) == (1, 12, True)
        assert call.request_id == done._request_id

    async def test_stream_and_whole_answer_say_the_same(self, gpt: openai.AsyncOpenAI) -> None:
        whole = await gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
        chunks = [
            chunk
            async for chunk in await gpt.chat.completions.create(
                model="gpt-4o-mini", messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
        ]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1].choices == []
        assert chunks[-1].usage == whole.usage
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert len({chunk.id for chunk in chunks}) == 1

    async def test_max_tokens_and_stop_end_an_answer(self, gpt: openai.AsyncOpenAI) -> None:
        cut = await gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO, max_completion_tokens=3)
        assert cut.choices[0].finish_reason == "length"
        assert cut.usage is not None
        assert cut.usage.completion_tokens == 3
        stopped = await gpt.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": "echo:one END two"}], stop=["END"]
        )
        assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("one ", "stop")

    async def test_several_choices_differ_and_take_turns_in_a_stream(self, gpt: openai.AsyncOpenAI) -> None:
        whole = await gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO, n=3)
        texts = [choice.message.content for choice in whole.choices]
        assert len(set(texts)) == 3
        streamed = ["", "", ""]
        finishes = []
        async for chunk in await gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO, n=3, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
                finishes += [choice.finish_reason] if choice.finish_reason else []
        assert streamed == texts
        assert finishes == ["stop"] * 3

    async def test_a_forced_tool_is_called_with_arguments_that_fit(self, gpt: openai.AsyncOpenAI) -> None:
        whole = await gpt.chat.completions.create(
            model="gpt-4o-mini", messages=HELLO, tools=[OPENAI_TOOL], tool_choice="required"
        )
        assert whole.choices[0].finish_reason == "tool_calls"
        assert whole.choices[0].message.tool_calls is not None
        (call,) = whole.choices[0].message.tool_calls
        assert isinstance(call, ChatCompletionMessageFunctionToolCall)
        assert call.function.name == "get_weather"
        assert isinstance(orjson.loads(call.function.arguments)["city"], str)
        names, ids, arguments = "", "", ""
        async for chunk in await gpt.chat.completions.create(
            model="gpt-4o-mini", messages=HELLO, tools=[OPENAI_TOOL], tool_choice="required", stream=True
        ):
            for delta in chunk.choices[0].delta.tool_calls or ():
                assert delta.index == 0
                assert delta.function is not None
                ids += delta.id or ""
                names += delta.function.name or ""
                arguments += delta.function.arguments or ""
        assert (names, ids, arguments) == ("get_weather", call.id, call.function.arguments)

    async def test_a_tool_result_is_answered_with_text(self, gpt: openai.AsyncOpenAI) -> None:
        done = await gpt.chat.completions.create(
            model="gpt-4o-mini",
            tools=[OPENAI_TOOL],
            messages=[
                {"role": "user", "content": "get_weather please"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
                    ],
                },
                {"role": "tool", "tool_call_id": "c", "content": "get_weather says sun"},
            ],
        )
        assert done.choices[0].finish_reason == "stop"
        assert done.choices[0].message.content

    async def test_structured_output_fits_its_schema(self, gpt: openai.AsyncOpenAI) -> None:
        done = await gpt.chat.completions.create(
            model="gpt-4o-mini",
            messages=HELLO,
            response_format={"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER}},
        )
        assert set(orjson.loads(done.choices[0].message.content or "")) == {"city", "days"}
        loose = await gpt.chat.completions.create(
            model="gpt-4o-mini", messages=HELLO, response_format={"type": "json_object"}
        )
        assert isinstance(orjson.loads(loose.choices[0].message.content or ""), dict)

    async def test_log_probabilities_cover_every_token(self, gpt: openai.AsyncOpenAI) -> None:
        whole = await gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO, logprobs=True, top_logprobs=2)
        odds = whole.choices[0].logprobs
        assert odds is not None
        assert odds.content is not None
        assert "".join(entry.token for entry in odds.content) == whole.choices[0].message.content
        assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in odds.content)
        streamed = [
            entry.token
            async for chunk in await gpt.chat.completions.create(
                model="gpt-4o-mini", messages=HELLO, logprobs=True, stream=True
            )
            for choice in chunk.choices
            if choice.logprobs is not None
            for entry in choice.logprobs.content or ()
        ]
        assert streamed == [entry.token for entry in odds.content]

    async def test_image_parts_are_taken_and_counted(self, gpt: openai.AsyncOpenAI) -> None:
        done = await gpt.chat.completions.create(
            model="gpt-4o-mini",
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "echo:seen"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    ],
                }
            ],
        )
        assert done.choices[0].message.content == "seen"
        assert done.usage is not None
        assert done.usage.prompt_tokens > 85

    async def test_embeddings_are_the_same_as_floats_and_as_base64(self, gpt: openai.AsyncOpenAI) -> None:
        usual = await gpt.embeddings.create(model="text-embedding-3-small", input=["a", "b"])  # base64 underneath
        floats = await gpt.embeddings.create(model="text-embedding-3-small", input=["a", "b"], encoding_format="float")
        assert [len(entry.embedding) for entry in usual.data] == [1536, 1536]
        for one, other in zip(usual.data, floats.data, strict=True):
            assert one.embedding == pytest.approx(other.embedding, abs=1e-7)
            assert sum(number * number for number in other.embedding) == pytest.approx(1, abs=1e-5)
        assert usual.data[0].embedding != usual.data[1].embedding
        small = await gpt.embeddings.create(model="text-embedding-3-small", input=[1, 2, 3], dimensions=8)
        assert len(small.data[0].embedding) == 8
        assert small.usage.prompt_tokens == 3

    async def test_models_are_listed(self, gpt: openai.AsyncOpenAI) -> None:
        names = [model.id async for model in gpt.models.list()]
        assert "gpt-4o-mini" in names
        assert (await gpt.models.retrieve("gpt-4o-mini")).owned_by == "system"
        with pytest.raises(openai.NotFoundError):
            await gpt.models.retrieve("no-such-model")

    @pytest.mark.parametrize(
        ("fault", "raised", "code"),
        [
            ("400", openai.BadRequestError, "context_length_exceeded"),
            ("401", openai.AuthenticationError, "invalid_api_key"),
            ("403", openai.PermissionDeniedError, "unsupported_country_region_territory"),
            ("404", openai.NotFoundError, "model_not_found"),
            ("429", openai.RateLimitError, "rate_limit_exceeded"),
            ("quota", openai.RateLimitError, "insufficient_quota"),
            ("500", openai.InternalServerError, None),
            ("503", openai.InternalServerError, None),
            ("529", openai.InternalServerError, "slow_down"),
        ],
    )
    async def test_status_faults_are_the_sdks_typed_errors(
        self, gpt: openai.AsyncOpenAI, fault: str, raised: type[openai.APIStatusError], code: str | None
    ) -> None:
        with pytest.raises(raised) as caught:
            await gpt.chat.completions.create(model=f"sim-{fault}", messages=HELLO)
        assert caught.value.code == code
        assert caught.value.request_id
        assert ("retry-after" in caught.value.response.headers) == (fault in ("429", "529"))

    async def test_an_error_inside_a_stream_is_raised(self, gpt: openai.AsyncOpenAI) -> None:
        stream = await gpt.chat.completions.create(model="sim;fault=error_in_200", messages=HELLO, stream=True)
        seen = [(await anext(stream)).choices[0].delta.content for _ in range(4)]
        assert seen[0] == ""  # the role, before three tokens
        with pytest.raises(openai.APIError, match="server had an error"):
            await anext(stream)

    async def test_a_header_reaches_what_a_model_name_reaches(self, gpt: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.RateLimitError) as caught:
            await gpt.chat.completions.create(
                model="gpt-4o-mini", messages=HELLO, extra_headers={"x-sim-fault": "429;retry_after_s=7.5"}
            )
        assert caught.value.response.headers["retry-after"] == "8"
        assert caught.value.response.headers["retry-after-ms"] == "7500"

    async def test_a_limit_admits_what_it_says_and_tells_when_to_return(
        self, gpt: openai.AsyncOpenAI, simulator: SimulatorHandle
    ) -> None:
        simulator.change(requests_per_minute=2, tokens_per_minute=1000)
        first = await gpt.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=HELLO)
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-limit-tokens"] == "1000"
        await gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
        with pytest.raises(openai.RateLimitError, match="requests per min") as caught:
            await gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
        assert 28 <= float(caught.value.response.headers["retry-after-ms"]) / 1000 <= 30
        assert caught.value.type == "requests"
        assert [call.fault for call in simulator.calls()] == [None, None, "limit_requests"]
        other = gpt.with_options(api_key="sk-other")
        assert (await other.chat.completions.create(model="gpt-4o-mini", messages=HELLO)).choices

    async def test_only_known_keys_are_accepted_when_keys_are_set(
        self, gpt: openai.AsyncOpenAI, simulator: SimulatorHandle
    ) -> None:
        simulator.change(keys=["sk-right"])
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
            await gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
        assert (await gpt.with_options(api_key="sk-right").models.list()).data

    async def test_a_fault_that_ends_is_survived_by_the_sdks_retries(
        self, gpt: openai.AsyncOpenAI, simulator: SimulatorHandle
    ) -> None:
        patient = gpt.with_options(max_retries=2)
        await patient.chat.completions.create(model="sim;fault=500;times=2;retry_after_s=0.01", messages=HELLO)
        assert [call.status for call in simulator.calls()] == [500, 500, 200]


class TestAnthropic:
    async def test_a_message_is_answered_and_invoiced(
        self, claude: anthropic.AsyncAnthropic, simulator: SimulatorHandle
    ) -> None:
        done = await claude.messages.create(
            model="claude-3-haiku-20240307", max_tokens=100, messages=HI, system="Be short."
        )
        assert done.stop_reason == "end_turn"
        assert done.content[0].type == "text"
        assert done.usage.output_tokens == 12
        (call,) = simulator.calls()
        assert (call.api, call.output_tokens_delivered, call.request_id) == ("anthropic", 12, done._request_id)
        assert call.input_tokens == done.usage.input_tokens == 4

    async def test_stream_and_whole_answer_say_the_same(self, claude: anthropic.AsyncAnthropic) -> None:
        whole = await claude.messages.create(model="claude-3-haiku-20240307", max_tokens=5, messages=HI)
        async with claude.messages.stream(model="claude-3-haiku-20240307", max_tokens=5, messages=HI) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_message()
        assert final.content[0].type == "text"
        assert whole.content[0].type == "text"
        assert final.content[0].text == whole.content[0].text
        assert (final.stop_reason, whole.stop_reason) == ("max_tokens", "max_tokens")
        assert (final.usage.input_tokens, final.usage.output_tokens) == (1, 5)
        assert kinds[:2] == ["message_start", "content_block_start"]
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]

    async def test_a_stop_sequence_is_named(self, claude: anthropic.AsyncAnthropic) -> None:
        done = await claude.messages.create(
            model="claude-3-haiku-20240307",
            max_tokens=50,
            messages=[{"role": "user", "content": "echo:one END two"}],
            stop_sequences=["END"],
        )
        assert (done.stop_reason, done.stop_sequence) == ("stop_sequence", "END")

    async def test_a_named_tool_is_used_with_input_that_fits(self, claude: anthropic.AsyncAnthropic) -> None:
        asked: list[MessageParam] = [{"role": "user", "content": "please get_weather"}]
        whole = await claude.messages.create(model="sim", max_tokens=50, messages=asked, tools=[ANTHROPIC_TOOL])
        async with claude.messages.stream(model="sim", max_tokens=50, messages=asked, tools=[ANTHROPIC_TOOL]) as stream:
            streamed = await stream.get_final_message()
        assert whole.stop_reason == streamed.stop_reason == "tool_use"
        for done in (whole, streamed):
            (block,) = done.content
            assert block.type == "tool_use"
            assert block.name == "get_weather"
            assert isinstance(block.input["city"], str)
        assert whole.content == streamed.content
        answered = await claude.messages.create(
            model="sim",
            max_tokens=50,
            tools=[ANTHROPIC_TOOL],
            messages=[
                *asked,
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "get_weather", "input": {}}]},
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "t", "content": "get_weather: sun"}],
                },
            ],
        )
        assert answered.stop_reason == "end_turn"

    async def test_tokens_are_counted_as_they_are_charged(self, claude: anthropic.AsyncAnthropic) -> None:
        asked: list[MessageParam] = [{"role": "user", "content": "How many tokens are these?"}]
        counted = await claude.messages.count_tokens(model="claude-3-haiku-20240307", messages=asked)
        done = await claude.messages.create(model="claude-3-haiku-20240307", max_tokens=5, messages=asked)
        assert counted.input_tokens == done.usage.input_tokens == 6

    async def test_models_are_listed(self, claude: anthropic.AsyncAnthropic) -> None:
        names = [model.id async for model in claude.models.list()]
        assert "claude-3-haiku-20240307" in names
        assert (await claude.models.retrieve("claude-3-haiku-20240307")).display_name == "Claude Haiku 3"

    async def test_cached_tokens_are_reported_apart(self, claude: anthropic.AsyncAnthropic) -> None:
        done = await claude.messages.create(
            model="sim;cached_tokens=2", max_tokens=5, messages=[{"role": "user", "content": "a b c"}]
        )
        assert (done.usage.input_tokens, done.usage.cache_read_input_tokens) == (1, 2)

    @pytest.mark.parametrize(
        ("fault", "raised"),
        [
            ("400", anthropic.BadRequestError),
            ("401", anthropic.AuthenticationError),
            ("403", anthropic.PermissionDeniedError),
            ("404", anthropic.NotFoundError),
            ("429", anthropic.RateLimitError),
            ("500", anthropic.InternalServerError),
            ("529", anthropic.APIStatusError),
        ],
    )
    async def test_status_faults_are_the_sdks_typed_errors(
        self, claude: anthropic.AsyncAnthropic, fault: str, raised: type[anthropic.APIStatusError]
    ) -> None:
        with pytest.raises(raised) as caught:
            await claude.messages.create(model=f"sim-{fault}", max_tokens=5, messages=HI)
        assert caught.value.status_code == int(fault)
        assert caught.value.request_id
        assert ("retry-after" in caught.value.response.headers) == (fault == "429")

    async def test_a_spent_budget_is_told_from_a_rate_limit(self, claude: anthropic.AsyncAnthropic) -> None:
        with pytest.raises(anthropic.RateLimitError) as caught:
            await claude.messages.create(model="sim-quota", max_tokens=5, messages=HI)
        body = caught.value.body
        assert isinstance(body, dict)
        assert body["error"]["details"]["error_code"] == "enforced_spend_limit_reached"
        assert "retry-after" not in caught.value.response.headers

    async def test_an_error_inside_a_stream_is_raised(self, claude: anthropic.AsyncAnthropic) -> None:
        stream = await claude.messages.create(model="sim;fault=error_in_200", max_tokens=50, messages=HI, stream=True)
        kinds = [(await anext(stream)).type for _ in range(5)]
        assert kinds.count("content_block_delta") == 3
        with pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
            await anext(stream)

    async def test_limits_are_told_in_its_own_headers(
        self, claude: anthropic.AsyncAnthropic, simulator: SimulatorHandle
    ) -> None:
        simulator.change(tokens_per_minute=20)
        raw = await claude.messages.with_raw_response.create(model="sim", max_tokens=12, messages=HI)
        assert raw.headers["anthropic-ratelimit-tokens-remaining"] == "7"
        assert raw.headers["anthropic-ratelimit-tokens-reset"].endswith("Z")
        with pytest.raises(anthropic.RateLimitError) as caught:
            await claude.messages.create(model="sim", max_tokens=12, messages=HI)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 18
