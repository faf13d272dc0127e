"""From what the engine gives to OpenAI's JSON, where the provider's own bytes cannot be passed on."""

from collections.abc import Iterable
from typing import Any

import orjson

from service.domain.generation import Choice, Completion, Dialect, ToolCall, Usage


def completion_body(completion: Completion, *, model: str, created: int, completion_id: str) -> bytes:
    """Return the whole answer: the provider's bytes if they are of this dialect, else rendered.

    ``model`` is the caller's name for it, ``created`` is in seconds since the epoch.
    """
    if completion.dialect is Dialect.OPENAI and completion.raw:
        return completion.raw
    return orjson.dumps(
        {
            "id": completion_id,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [_choice(index, choice) for index, choice in enumerate(completion.choices)],
            "usage": usage_fields(completion.usage),
        }
    )


def usage_fields(usage: Usage) -> dict[str, Any]:
    """Return the figures under the vendor's names; both totals include their details, as ours do."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def model_list(models: Iterable[dict[str, Any]]) -> bytes:
    """Return the list of models."""
    return orjson.dumps({"object": "list", "data": list(models)})


def model_fields(name: str, owned_by: str) -> dict[str, Any]:
    """Return one model. When it was made is not known to us, so ``created``, which the SDK's type needs, is 0."""
    return {"id": name, "object": "model", "created": 0, "owned_by": owned_by}


def _choice(index: int, choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": choice.text or (None if choice.tool_calls or choice.refusal else ""),
        "refusal": choice.refusal or None,
    }
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["tool_calls"] = [_tool_call(call) for call in choice.tool_calls]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": choice.finish_reason.value}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
