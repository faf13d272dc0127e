"""Whatever a body holds, it is refused by the name of a field, or both kinds of provider can be asked."""

from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.api.anthropic import parse as anthropic_parse
from service.api.anthropic.schemas import MessagesRequest
from service.api.openai import parse as openai_parse
from service.api.openai.schemas import ChatCompletionRequest
from service.domain.estimates import input_size
from service.domain.generation import GenerationRequest
from service.errors import InvalidRequest
from service.providers import anthropic_wire, openai_wire

OPENAI_BODY: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": {"url": "u"}}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "r"}, {"type": "file", "file": {}}]},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "r"},
    ],
    "stop": ["x"],
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "stream_options": {"include_usage": True},
    **dict.fromkeys(["n", "max_tokens", "top_logprobs"], 1),
    **dict.fromkeys(["temperature", "top_p"], 0.5),
    **dict.fromkeys(["user", "audio", "functions", "logit_bias", "web_search_options", "logprobs", "x"]),
}
ANTHROPIC_BODY: dict[str, Any] = {
    "model": "m",
    "max_tokens": 1,
    "system": [{"type": "text", "text": "s"}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "t"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                {"type": "image", "source": {"type": "url", "url": "u"}},
                {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "t"}]}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t"},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
            ],
            "tool_calls": None,
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "c",
                    "content": [{"type": "text", "text": "r"}, {"type": "search_result", "source": "u"}],
                    "is_error": True,
                }
            ],
        },
    ],
    "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "metadata": {"user_id": "u"},
    "stop_sequences": ["x"],
    **dict.fromkeys(["temperature", "top_p"], 0.5),
    **dict.fromkeys(["container", "mcp_servers", "output_config", "output_format", "thinking", "x"]),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 200) | st.floats(-3, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("typex", max_size=4), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield (*path, key)
        yield from places(child, (*path, key))


def replaced(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """Return the value with another in that place, or as it is where an earlier change took the place away."""
    if not path:
        return new
    key, *rest = path
    if isinstance(value, dict) and key in value:
        return {**value, key: replaced(value[key], tuple(rest), new)}
    if isinstance(value, list) and isinstance(key, int) and key < len(value):
        return [*value[:key], replaced(value[key], tuple(rest), new), *value[key + 1 :]]
    return value


def bodies(body: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Give the body with up to three of its values replaced by any JSON."""
    changes = st.lists(st.tuples(st.sampled_from(list(places(body))), JSON), max_size=3)
    return changes.map(lambda made: reduce(lambda given, change: replaced(given, *change), made, body))


def check(read: Callable[[bytes], GenerationRequest], body: dict[str, Any]) -> None:
    try:
        asked = read(orjson.dumps(body))
    except ValidationError as refusal:
        faults = len(refusal.errors())
    except InvalidRequest as refusal:
        faults = len(refusal.fields)
    else:
        assert input_size(asked) >= 0
        check_rendered(partial(openai_wire.request_fields, asked, stream=True, max_tokens_field="max_tokens"))
        check_rendered(partial(anthropic_wire.request_fields, asked, stream=True))
        return
    assert faults


def check_rendered(fields_for: Callable[..., dict[str, Any]]) -> None:
    try:
        sent = fields_for(upstream_model="u")
    except InvalidRequest as refusal:
        faults = len(refusal.fields)
    else:
        assert orjson.loads(orjson.dumps(sent))["model"] == "u"
        return
    assert faults


@given(bodies(OPENAI_BODY))
def test_openai_body(body: dict[str, Any]) -> None:
    def read(text: bytes) -> GenerationRequest:
        return openai_parse.generation_request(ChatCompletionRequest.model_validate_json(text), orjson.loads(text))

    check(read, body)


@given(bodies(ANTHROPIC_BODY))
def test_anthropic_body(body: dict[str, Any]) -> None:
    def read(text: bytes) -> GenerationRequest:
        return anthropic_parse.generation_request(MessagesRequest.model_validate_json(text), orjson.loads(text))

    check(read, body)
