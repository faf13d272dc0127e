"""From what the engine gives to Anthropic's JSON, where the provider's own bytes cannot be passed on."""

from collections.abc import Iterator
from typing import Any

import orjson

from service.domain.generation import Choice, Completion, Dialect, FinishReason, ToolCall, Usage
from service.errors import UpstreamInvalid

STOP_REASONS: dict[FinishReason, str] = {
    FinishReason.STOP: "end_turn",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.TOOL_CALLS: "tool_use",
    FinishReason.CONTENT_FILTER: "refusal",
}
"""OpenAI's ``stop`` does not tell a stop string from the model's own end; ``end_turn`` stands for both."""


def message_body(completion: Completion, *, model: str, message_id: str) -> bytes:
    """Return the whole answer: the provider's bytes if they are of this dialect, else rendered.

    ``model`` is the caller's name for it. Raise ``UpstreamInvalid`` where the model called a tool with arguments that
    are no JSON object, which this shape cannot hold.
    """
    if completion.dialect is Dialect.ANTHROPIC and completion.raw:
        return completion.raw
    choice = completion.choices[0]
    return orjson.dumps(
        {
            "id": message_id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": list(_blocks(choice)),
            "stop_reason": STOP_REASONS[choice.finish_reason],
            "stop_sequence": None,
            "usage": usage_fields(completion.usage),
        }
    )


def usage_fields(usage: Usage) -> dict[str, Any]:
    """Return the figures under the vendor's names, whose ``input_tokens`` leave out what the cache read or took."""
    return {
        "input_tokens": usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "output_tokens": usage.output_tokens,
    }


def _blocks(choice: Choice) -> Iterator[dict[str, Any]]:
    if choice.reasoning:
        yield {"type": "thinking", "thinking": choice.reasoning, "signature": ""}
    if choice.text or choice.refusal:
        yield {"type": "text", "text": choice.text + choice.refusal}
    for call in choice.tool_calls:
        yield {"type": "tool_use", "id": call.id, "name": call.name, "input": _arguments(call)}


def _arguments(call: ToolCall) -> orjson.Fragment:
    """Return the arguments as the model wrote them, which also passes nesting that the encoder would refuse."""
    text = call.arguments or "{}"
    try:
        arguments = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UpstreamInvalid(f"the model called {call.name!r} with arguments that are not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise UpstreamInvalid(f"the model called {call.name!r} with arguments that are not a JSON object")
    return orjson.Fragment(text)
