import orjson
from openai.types.chat import ChatCompletion

from service.api.openai.render import completion_body
from service.domain.generation import Choice, Completion, Dialect, FinishReason, ToolCall, Usage

USAGE = Usage(input_tokens=11, output_tokens=5, reasoning_tokens=2)


def rendered(*choices: Choice) -> ChatCompletion:
    completion = Completion("upstream", choices, USAGE, "msg_1", Dialect.ANTHROPIC, raw=b'{"type": "message"}')
    body = completion_body(completion, model="claude", created=7, completion_id="chatcmpl-1")
    return ChatCompletion.model_validate_json(body, strict=True)


def test_same_dialect_passes_the_providers_bytes() -> None:
    raw = b'{"id":"x",  "odd": true}'
    completion = Completion("m", (Choice("a", FinishReason.STOP),), USAGE, "x", Dialect.OPENAI, raw)
    assert completion_body(completion, model="m", created=7, completion_id="chatcmpl-1") is raw


def test_text_usage_and_the_callers_model() -> None:
    answer = rendered(Choice("Paris \U0001f5fc", FinishReason.LENGTH), Choice("", FinishReason.STOP))
    assert (answer.id, answer.created, answer.model) == ("chatcmpl-1", 7, "claude")
    assert [choice.message.content for choice in answer.choices] == ["Paris \U0001f5fc", ""]
    assert [choice.finish_reason for choice in answer.choices] == ["length", "stop"]
    assert answer.usage is not None
    assert answer.usage.total_tokens == 16
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2


def test_tool_calls_keep_their_arguments_as_the_model_wrote_them() -> None:
    [choice] = rendered(Choice("", FinishReason.TOOL_CALLS, (ToolCall("call_1", "add", '{"a" : 1 '),))).choices
    assert choice.message.content is None
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    assert (call.id, call.function.name, call.function.arguments) == ("call_1", "add", '{"a" : 1 ')


def test_reasoning_and_refusal_have_their_fields() -> None:
    completion = Completion(
        "m", (Choice("", FinishReason.STOP, reasoning="Hm.", refusal="I will not."),), USAGE, "x", Dialect.ANTHROPIC
    )
    body = orjson.loads(completion_body(completion, model="m", created=7, completion_id="chatcmpl-1"))
    message = body["choices"][0]["message"]
    assert (message["content"], message["refusal"], message["reasoning_content"]) == (None, "I will not.", "Hm.")
