import pytest
from anthropic.types import Message

from service.api.anthropic.render import message_body
from service.domain.generation import Choice, Completion, Dialect, FinishReason, ToolCall, Usage
from service.errors import UpstreamInvalid

USAGE = Usage(input_tokens=11, output_tokens=5, cached_input_tokens=4, cache_write_tokens=1)


def rendered(choice: Choice) -> Message:
    completion = Completion("upstream", (choice,), USAGE, "chatcmpl-1", Dialect.OPENAI, raw=b'{"object": "x"}')
    return Message.model_validate_json(message_body(completion, model="gpt", message_id="msg_1"), strict=True)


def test_same_dialect_passes_the_providers_bytes() -> None:
    raw = b'{"id":"x",  "odd": true}'
    completion = Completion("m", (Choice("a", FinishReason.STOP),), USAGE, "x", Dialect.ANTHROPIC, raw)
    assert message_body(completion, model="m", message_id="msg_1") is raw


def test_blocks_come_in_the_order_of_thinking_text_and_calls() -> None:
    call = ToolCall("call_1", "add", '{"a": 1}')
    message = rendered(Choice("Let me add", FinishReason.TOOL_CALLS, (call,), reasoning="Hm."))
    assert [block.to_dict() for block in message.content] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "Let me add"},
        {"type": "tool_use", "id": "call_1", "name": "add", "input": {"a": 1}},
    ]
    assert (message.id, message.model, message.stop_reason) == ("msg_1", "gpt", "tool_use")


def test_input_tokens_leave_out_the_cached_ones_as_the_vendor_counts() -> None:
    usage = rendered(Choice("x", FinishReason.STOP)).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (6, 4, 1)
    assert usage.output_tokens == 5


@pytest.mark.parametrize(
    ("reason", "expected"), [(FinishReason.LENGTH, "max_tokens"), (FinishReason.CONTENT_FILTER, "refusal")]
)
def test_stop_reason(reason: FinishReason, expected: str) -> None:
    assert rendered(Choice("x", reason)).stop_reason == expected


def test_a_call_without_arguments_has_an_empty_input() -> None:
    [block] = rendered(Choice("", FinishReason.TOOL_CALLS, (ToolCall("call_1", "now", ""),))).content
    assert block.type == "tool_use"
    assert block.input == {}


@pytest.mark.parametrize("arguments", ["{", "[1]", '"x"'])
def test_arguments_that_are_no_object_are_the_upstreams_fault(arguments: str) -> None:
    with pytest.raises(UpstreamInvalid, match="'add'"):
        rendered(Choice("", FinishReason.TOOL_CALLS, (ToolCall("call_1", "add", arguments),)))


def test_arguments_are_passed_on_however_deeply_they_nest() -> None:
    deep = '{"a": ' + "[" * 400 + "]" * 400 + "}"
    completion = Completion(
        "m", (Choice("", FinishReason.TOOL_CALLS, (ToolCall("call_1", "add", deep),)),), USAGE, "x", Dialect.OPENAI
    )
    assert deep.encode() in message_body(completion, model="gpt", message_id="msg_1")
