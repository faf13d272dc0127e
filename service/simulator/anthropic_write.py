"""Writes answers as Anthropic messages, whole or as server-sent events, and its lists of models."""

from collections.abc import Iterator
from typing import Any, Final

import orjson

from service.simulator.anthropic_errors import model_not_found
from service.simulator.asks import Answer, Ask, Choice, ToolCall
from service.simulator.plan import Frame, Script

MODELS: Final = (
    ("claude-3-haiku-20240307", "Claude Haiku 3", "2024-03-07T00:00:00Z"),
    ("claude-sonnet-4-5-20250929", "Claude Sonnet 4.5", "2025-09-29T00:00:00Z"),
    ("sim", "Simulated", "2024-01-01T00:00:00Z"),
)
_FINISH: Final = {"stop": "end_turn", "length": "max_tokens", "stop_sequence": "stop_sequence", "tools": "tool_use"}


def write_plain(ask: Ask, answer: Answer, identity: str, *, with_usage: bool) -> bytes:
    """Return the body of a message."""
    choice = answer.choices[0]
    body = {
        "model": ask.model,
        "id": f"msg_{identity}",
        "type": "message",
        "role": "assistant",
        "content": _content(choice),
        "stop_reason": _FINISH[choice.finish],
        "stop_sequence": choice.stop_sequence,
        "usage": _usage(answer, answer.output_tokens),
    }
    if not with_usage:
        del body["usage"]
    return orjson.dumps(body)


def write_stream(ask: Ask, answer: Answer, identity: str, *, with_usage: bool) -> Script:
    """Return the events of a streamed message."""
    choice = answer.choices[0]
    message: dict[str, Any] = {
        "model": ask.model,
        "id": f"msg_{identity}",
        "type": "message",
        "role": "assistant",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(answer, min(1, answer.output_tokens)),
    }
    if not with_usage:
        del message["usage"]
    preamble = write_event("message_start", {"message": message})
    if choice.pieces:
        preamble += write_event("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}})
    preamble += b'event: ping\ndata: {"type": "ping"}\n\n'
    return Script(preamble, _frames(choice, answer, with_usage=with_usage), choice.chunks)


def _frames(choice: Choice, answer: Answer, *, with_usage: bool) -> Iterator[Frame]:
    dumps = orjson.dumps
    lead = (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        b'"delta":{"type":"text_delta","text":'
    )
    for piece in choice.pieces:
        yield lead + dumps(piece) + b"}}\n\n", 1
    if choice.pieces:
        yield write_event("content_block_stop", {"index": 0}), 0
    for index, call in enumerate(choice.calls):
        yield write_event("content_block_start", {"index": index, "content_block": _tool_use(call, {})}), 1
        # The vendor streams an empty object as empty text.
        fragments = call.fragments if "".join(call.fragments) != "{}" else [""] * len(call.fragments)
        for fragment in fragments:
            delta = {"type": "input_json_delta", "partial_json": fragment}
            yield write_event("content_block_delta", {"index": index, "delta": delta}), 1
        yield write_event("content_block_stop", {"index": index}), 0
    end: dict[str, object] = {"delta": {"stop_reason": _FINISH[choice.finish], "stop_sequence": choice.stop_sequence}}
    if with_usage:
        end["usage"] = _usage(answer, answer.output_tokens)
    yield write_event("message_delta", end) + write_event("message_stop", {}), 0


def write_event(name: str, data: dict[str, Any]) -> bytes:
    """Return one server-sent event, named by the type that stands in its data."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **data}))


def _usage(answer: Answer, output_tokens: int) -> dict[str, Any]:
    """Return a usage object; here `input_tokens` leaves out those read from the cache."""
    return {
        "input_tokens": answer.input_tokens - answer.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": answer.cached_tokens,
        "output_tokens": output_tokens,
        "service_tier": "standard",
    }


def _content(choice: Choice) -> list[dict[str, Any]]:
    text = "".join(choice.pieces)
    blocks: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    return blocks + [_tool_use(call, orjson.loads("".join(call.fragments))) for call in choice.calls]


def _tool_use(call: ToolCall, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{call.number:016x}", "name": call.name, "input": arguments}


def list_models() -> bytes:
    """Return the body of GET /v1/models."""
    data = [_model(*model) for model in MODELS]
    page = {"data": data, "has_more": False, "first_id": MODELS[0][0], "last_id": MODELS[-1][0]}
    return orjson.dumps(page)


def get_model(name: str) -> bytes:
    """Return the body of GET /v1/models/{name}. Raises Refusal for one that is not listed."""
    for model in MODELS:
        if model[0] == name:
            return orjson.dumps(_model(*model))
    raise model_not_found(name)


def _model(name: str, shown: str, created: str) -> dict[str, Any]:
    return {
        "type": "model",
        "id": name,
        "display_name": shown,
        "created_at": created,
        "lifecycle": "active",
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
    }
