from typing import Any

import orjson
import pytest

from service.domain.generation import Dialect, GenerationRequest, Message, ToolCall, WireBody
from service.errors import InvalidRequest
from service.providers import anthropic_wire, openai_wire


def asking(dialect: Dialect, part: dict[str, Any]) -> GenerationRequest:
    fields = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]}
    return GenerationRequest("m", (Message.of_text("user", "x"),), wire=WireBody(dialect, fields))


@pytest.mark.parametrize("kind", ["input_audio", "file", "unheard_of"])
def test_openai_parts_that_anthropic_lacks_are_refused_by_name(kind: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        anthropic_wire.request_fields(asking(Dialect.OPENAI, {"type": kind}), upstream_model="u", stream=False)
    assert caught.value.fields[0].field == "messages.0.content.1.type"


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ({"type": "document"}, "messages.0.content.1.type"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "messages.0.content.1.source.type"),
        ({"type": "tool_result", "content": [{"type": "image"}]}, "messages.0.content.1.content.0.type"),
    ],
)
def test_anthropic_blocks_that_openai_lacks_are_refused_by_name(block: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        openai_wire.request_fields(
            asking(Dialect.ANTHROPIC, block), upstream_model="u", stream=False, max_tokens_field="max_tokens"
        )
    assert caught.value.fields[0].field == field


def test_arguments_of_a_call_pass_however_deeply_they_nest() -> None:
    deep = '{"a":' + "[" * 400 + "]" * 400 + "}"
    request = GenerationRequest("m", (Message("assistant", (ToolCall("c", "f", deep),)),))
    assert deep.encode() in orjson.dumps(anthropic_wire.request_fields(request, upstream_model="u", stream=False))
