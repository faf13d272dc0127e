"""The ``openai`` SDK as it is installed, over a socket, to both kinds of provider."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from tests.conftest import CALLER_KEY
from tests.support.live import LiveService

OPENAI_MODEL = "gpt-4o-mini"
ANTHROPIC_MODEL = "claude-3-haiku-20240307"
BOTH = pytest.mark.parametrize("model", [OPENAI_MODEL, ANTHROPIC_MODEL])
TRICKY = "Zürich \U0001f468‍\U0001f469‍\U0001f467 line\nnext\r\n  two  spaces data: [DONE]  end"
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}


@pytest.fixture
def client(live_service: LiveService) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live_service.base_url}/v1", api_key="any", max_retries=0, timeout=30) as made:
        yield made


def ask(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


@BOTH
def test_chat(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=ask(f"echo:{TRICKY}"))
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == TRICKY
    assert choice.finish_reason == "stop"
    assert answer.model.startswith(model)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert answer._request_id


@BOTH
def test_stream(client: OpenAI, model: str) -> None:
    with client.chat.completions.create(
        model=model, messages=ask(f"echo:{TRICKY}"), stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == TRICKY
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    assert choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    [usage] = [chunk.usage for chunk in chunks if chunk.usage]
    assert usage.completion_tokens > 0


@pytest.mark.parametrize("model", ["sim", "sim;fault=no_usage", "claude-sim"])
def test_usage_comes_with_the_streams_own_id_even_if_the_provider_gives_none(client: OpenAI, model: str) -> None:
    with client.chat.completions.create(
        model=model, messages=ask("echo:hello"), stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


@BOTH
def test_stream_without_usage_unless_asked_for(client: OpenAI, model: str) -> None:
    with client.chat.completions.create(model=model, messages=ask("echo:hello"), stream=True) as stream:
        chunks = list(stream)
    assert [chunk for chunk in chunks if chunk.usage or not chunk.choices] == []


@BOTH
def test_tool_call_and_its_result(client: OpenAI, model: str) -> None:
    question = ask("Use get_weather for Paris")
    answer = client.chat.completions.create(model=model, messages=question, tools=[WEATHER])
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city", "days"}
    history: list[ChatCompletionMessageParam] = [
        *question,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": call.function.arguments},
                }
            ],
        },
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    report = client.chat.completions.create(model=model, messages=history, tools=[WEATHER])
    assert report.choices[0].finish_reason == "stop"
    assert report.choices[0].message.content


@BOTH
def test_streamed_tool_call(client: OpenAI, model: str) -> None:
    with client.chat.completions.stream(
        model=model, messages=ask("Use get_weather for Paris"), tools=[WEATHER], tool_choice="required"
    ) as stream:
        [choice] = stream.get_final_completion().choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or []
    assert call.id
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city", "days"}


@BOTH
def test_image_parts(client: OpenAI, model: str) -> None:
    pixel = "data:image/png;base64,iVBORw0KGgo="
    messages: list[ChatCompletionMessageParam] = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "echo:I see"},
                {"type": "image_url", "image_url": {"url": pixel, "detail": "low"}},
            ],
        }
    ]
    answer = client.chat.completions.create(model=model, messages=messages)
    assert answer.choices[0].message.content == "I see"


@BOTH
def test_stop_string_and_token_limit(client: OpenAI, model: str) -> None:
    stopped = client.chat.completions.create(model=model, messages=ask("echo:one two END three"), stop=["END"])
    assert stopped.choices[0].message.content == "one two "
    assert stopped.choices[0].finish_reason == "stop"
    cut = client.chat.completions.create(model=model, messages=ask("Tell me a story"), max_tokens=3)
    assert cut.choices[0].finish_reason == "length"


def test_json_mode(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=OPENAI_MODEL, messages=ask("Answer in JSON"), response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_answer_parsed_into_a_class(client: OpenAI) -> None:
    class Verdict(BaseModel):
        fits: bool
        reason: str

    answer = client.chat.completions.parse(model=OPENAI_MODEL, messages=ask("Does it fit?"), response_format=Verdict)
    assert isinstance(answer.choices[0].message.parsed, Verdict)


def test_several_choices(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=OPENAI_MODEL, messages=ask("Tell me a story"), n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    with client.chat.completions.create(
        model=OPENAI_MODEL, messages=ask("Tell me a story"), n=3, stream=True
    ) as stream:
        streamed = dict.fromkeys(range(3), "")
        for chunk in stream:
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
    assert streamed == {choice.index: choice.message.content for choice in answer.choices}


def test_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=OPENAI_MODEL, messages=ask("echo:one two"), logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert "".join(entry.token for entry in logprobs.content or []) == "one two"


def test_a_field_unknown_to_us_is_judged_by_the_provider(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=OPENAI_MODEL, messages=ask("hello"), presence_penalty=9)
    assert "presence_penalty" in caught.value.message


def test_embeddings(client: OpenAI) -> None:
    answer = client.embeddings.create(model="text-embedding-3-small", input=["one", "two"], dimensions=8)
    assert [len(entry.embedding) for entry in answer.data] == [8, 8]
    assert answer.usage.prompt_tokens > 0
    [tokens] = client.embeddings.create(
        model="text-embedding-3-small", input=[1, 2, 3], dimensions=8, encoding_format="float"
    ).data
    assert len(tokens.embedding) == 8


def test_models(client: OpenAI) -> None:
    models = list(client.models.list())
    assert OPENAI_MODEL in [model.id for model in models]
    assert client.models.retrieve(OPENAI_MODEL) == next(model for model in models if model.id == OPENAI_MODEL)
    assert client.models.retrieve("sim/any thing").owned_by == "openai"


def test_a_missing_or_wrong_key_is_an_authentication_error(keyed_service: LiveService) -> None:
    base_url = f"{keyed_service.base_url}/v1"
    with (
        OpenAI(base_url=base_url, api_key="wrong-key", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        stranger.models.list()
    assert caught.value.code == "invalid_api_key"
    with OpenAI(base_url=base_url, api_key=CALLER_KEY, max_retries=0) as known:
        assert list(known.models.list())


def test_an_unknown_model_is_not_found_and_the_message_lists_the_known(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nothing-like-it", messages=ask("hello"))
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert OPENAI_MODEL in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing-like-it")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"n": 0}, "n"),
        ({"stop": ["1", "2", "3", "4", "5"]}, "stop"),
    ],
)
def test_a_wrong_field_is_a_bad_request_that_names_it(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": OPENAI_MODEL, "messages": ask("hello"), **fields})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("fields", [{"n": 2}, {"response_format": {"type": "json_object"}}, {"logprobs": True}])
def test_what_the_other_dialect_cannot_do_is_a_bad_request_that_names_it(
    client: OpenAI, fields: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=ANTHROPIC_MODEL, messages=ask("hello"), **fields)
    assert caught.value.param == next(iter(fields))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "kind", "status", "code"),
    [
        ("400", openai.BadRequestError, 400, None),
        ("401", openai.InternalServerError, 502, "upstream_misconfigured"),
        ("quota", openai.InternalServerError, 502, "upstream_misconfigured"),
        ("429", openai.InternalServerError, 503, "upstream_throttled"),
        ("500", openai.InternalServerError, 502, "upstream_unavailable"),
        ("error_in_200", openai.InternalServerError, None, None),
        ("empty", openai.InternalServerError, 502, "upstream_invalid_response"),
    ],
)
def test_a_providers_trouble_before_the_answer_is_the_sdks_typed_error(
    client: OpenAI, fault: str, kind: type[openai.APIStatusError], status: int | None, code: str | None, *, stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(
            model=f"sim;fault={fault};after_chunks=0;retry_after_s=7", messages=ask("hello"), stream=stream
        )
    assert status in (None, caught.value.status_code)
    assert code in (None, caught.value.code)
    if fault == "429":
        assert caught.value.response.headers["retry-after"] == "7"


@pytest.mark.parametrize("model", ["sim", "claude-sim"])
@pytest.mark.parametrize("fault", ["cut", "eof", "malformed", "error_in_200", "reset"])
def test_a_providers_trouble_in_mid_stream_is_raised_after_what_came(client: OpenAI, model: str, fault: str) -> None:
    received: list[str] = []

    def read() -> None:
        with client.chat.completions.create(
            model=f"{model};fault={fault};after_chunks=2;gap_ms=5", messages=ask("echo:one two three"), stream=True
        ) as stream:
            for chunk in stream:
                received.extend(choice.delta.content or "" for choice in chunk.choices)

    with pytest.raises(openai.APIError) as caught:
        read()
    assert "".join(received)
    assert "one two three".startswith("".join(received))
    assert caught.value.type == "server_error"
    assert str(caught.value.code).startswith("upstream_")


def test_a_malformed_answer_is_never_passed_on(client: OpenAI) -> None:
    for fault in ("malformed", "wrong_schema"):
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model=f"sim-{fault}", messages=ask("hello"))
        assert (caught.value.status_code, caught.value.code) == (502, "upstream_invalid_response")
