"""The ``anthropic`` SDK as it is installed, over a socket, to both kinds of provider."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from anthropic.types import MessageParam, ToolParam

from tests.conftest import CALLER_KEY
from tests.support.live import LiveService

ANTHROPIC_MODEL = "claude-3-haiku-20240307"
OPENAI_MODEL = "gpt-4o-mini"
BOTH = pytest.mark.parametrize("model", [ANTHROPIC_MODEL, OPENAI_MODEL])
TRICKY = "Zürich \U0001f468‍\U0001f469‍\U0001f467 line\nnext\r\n  two  spaces event: message_stop  end"
WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "Tells the weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
}


@pytest.fixture
def client(live_service: LiveService) -> Iterator[Anthropic]:
    with Anthropic(base_url=live_service.base_url, api_key="any", max_retries=0, timeout=30) as made:
        yield made


def ask(text: str) -> list[MessageParam]:
    return [{"role": "user", "content": text}]


@BOTH
def test_message(client: Anthropic, model: str) -> None:
    answer = client.messages.create(model=model, max_tokens=64, messages=ask(f"echo:{TRICKY}"), system="Be brief.")
    [block] = answer.content
    assert block.type == "text"
    assert block.text == TRICKY
    assert (answer.role, answer.type, answer.stop_reason) == ("assistant", "message", "end_turn")
    assert answer.model.startswith(model)
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens > 0
    assert answer._request_id


@BOTH
def test_stream(client: Anthropic, model: str) -> None:
    with client.messages.stream(model=model, max_tokens=64, messages=ask(f"echo:{TRICKY}")) as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_message()
    [block] = answer.content
    assert block.type == "text"
    assert block.text == TRICKY
    assert answer.stop_reason == "end_turn"
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens > 0
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("message_stop") == 1


@BOTH
def test_tool_use_and_its_result(client: Anthropic, model: str) -> None:
    question = ask("Use get_weather for Paris")
    answer = client.messages.create(model=model, max_tokens=64, messages=question, tools=[WEATHER])
    assert answer.stop_reason == "tool_use"
    [block] = answer.content
    assert block.type == "tool_use"
    assert block.name == "get_weather"
    assert set(block.input) == {"city", "days"}
    report = client.messages.create(
        model=model,
        max_tokens=64,
        messages=[
            *question,
            {"role": "assistant", "content": answer.content},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}],
            },
        ],
    )
    assert report.stop_reason == "end_turn"
    assert [block.type for block in report.content] == ["text"]


@BOTH
def test_streamed_tool_use(client: Anthropic, model: str) -> None:
    with client.messages.stream(
        model=model,
        max_tokens=64,
        messages=ask("Use get_weather for Paris"),
        tools=[WEATHER],
        tool_choice={"type": "any"},
    ) as stream:
        answer = stream.get_final_message()
    assert answer.stop_reason == "tool_use"
    [block] = answer.content
    assert block.type == "tool_use"
    assert block.id
    assert set(block.input) == {"city", "days"}


@BOTH
def test_image_blocks(client: Anthropic, model: str) -> None:
    messages: list[MessageParam] = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "echo:I see"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
            ],
        }
    ]
    [block] = client.messages.create(model=model, max_tokens=64, messages=messages).content
    assert block.type == "text"
    assert block.text == "I see"


@BOTH
def test_token_limit(client: Anthropic, model: str) -> None:
    answer = client.messages.create(model=model, max_tokens=3, messages=ask("Tell me a story"))
    assert answer.stop_reason == "max_tokens"


def test_stop_sequence_is_told_apart_only_where_the_provider_tells_it(client: Anthropic) -> None:
    reasons = {
        model: client.messages.create(
            model=model, max_tokens=64, messages=ask("echo:one two END three"), stop_sequences=["END"]
        ).stop_reason
        for model in (ANTHROPIC_MODEL, OPENAI_MODEL)
    }
    assert reasons == {ANTHROPIC_MODEL: "stop_sequence", OPENAI_MODEL: "end_turn"}


def test_models_are_listed_in_pages(client: Anthropic) -> None:
    names = [model.id for model in client.models.list(limit=2)]  # the SDK fetches the pages that follow
    assert {ANTHROPIC_MODEL, OPENAI_MODEL} <= set(names)
    assert len(names) == len(set(names))
    model = client.models.retrieve(ANTHROPIC_MODEL)
    assert (model.id, model.type, model.display_name) == (ANTHROPIC_MODEL, "model", ANTHROPIC_MODEL)


def test_a_wrong_key_is_an_authentication_error(keyed_service: LiveService) -> None:
    with (
        Anthropic(base_url=keyed_service.base_url, api_key="wrong-key", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError) as caught,
    ):
        stranger.messages.create(model=ANTHROPIC_MODEL, max_tokens=64, messages=ask("hello"))
    assert caught.value.type == "authentication_error"
    assert caught.value.request_id
    with Anthropic(base_url=keyed_service.base_url, api_key=CALLER_KEY, max_retries=0) as known:
        assert known.messages.create(model=ANTHROPIC_MODEL, max_tokens=64, messages=ask("echo:hello")).content


def test_an_unknown_model_is_not_found_and_the_message_lists_the_known(client: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="nothing-like-it", max_tokens=64, messages=ask("hello"))
    assert caught.value.type == "not_found_error"
    assert ANTHROPIC_MODEL in str(caught.value.api_message)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"extra_body": {"temperature": 1.5}}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
    ],
)
def test_a_wrong_field_is_a_bad_request_that_names_it(client: Anthropic, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**{"model": ANTHROPIC_MODEL, "max_tokens": 64, "messages": ask("hello"), **fields})
    assert caught.value.type == "invalid_request_error"
    assert str(caught.value.api_message).startswith(f"{field}: ")


def test_a_tool_of_the_vendors_own_is_refused_where_it_cannot_run(client: Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match=r"tools\.0"):
        client.messages.create(
            model=OPENAI_MODEL,
            max_tokens=64,
            messages=ask("hello"),
            tools=[{"type": "web_search_20250305", "name": "web_search"}],
        )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["claude-sim", "sim"])
@pytest.mark.parametrize(
    ("fault", "status", "kind", "code"),
    [
        ("400", 400, "invalid_request_error", "upstream_rejected"),
        ("401", 502, "api_error", "upstream_misconfigured"),
        ("429", 503, "overloaded_error", "upstream_throttled"),
        ("529", 503, "overloaded_error", "upstream_overloaded"),
        ("500", 502, "api_error", "upstream_unavailable"),
        ("empty", 502, "api_error", "upstream_invalid_response"),
    ],
)
def test_a_providers_trouble_before_the_answer_is_the_sdks_typed_error(
    client: Anthropic, *, fault: str, status: int, kind: str, code: str, model: str, stream: bool
) -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.create(
            model=f"{model};fault={fault};after_chunks=0", max_tokens=64, messages=ask("hello"), stream=stream
        )
    if (fault, model) == ("529", "sim"):
        code = "upstream_throttled"  # OpenAI's slow_down is about us, the other's overload about everybody
    assert (caught.value.status_code, caught.value.type, caught.value.error_code) == (status, kind, code)


@pytest.mark.parametrize("model", ["claude-sim", "sim"])
@pytest.mark.parametrize("fault", ["cut", "eof", "malformed", "error_in_200", "reset"])
def test_a_providers_trouble_in_mid_stream_is_raised_after_what_came(client: Anthropic, model: str, fault: str) -> None:
    received: list[str] = []

    def read() -> None:
        with client.messages.stream(
            model=f"{model};fault={fault};after_chunks=2;gap_ms=5", max_tokens=64, messages=ask("echo:one two three")
        ) as stream:
            for text in stream.text_stream:
                received.append(text)  # noqa: PERF402 - what came before the failure counts

    with pytest.raises(anthropic.APIStatusError) as caught:
        read()
    assert received
    assert "one two three".startswith("".join(received))
    assert str(caught.value.error_code).startswith("upstream_")
