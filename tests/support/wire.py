"""Bytes in the two vendors' dialects, for scripted upstreams."""

import json
from collections.abc import Sequence
from typing import Any

from tests.support.upstream import Answer

OPENAI_USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
ANTHROPIC_USAGE = {"input_tokens": 5, "output_tokens": 3}
DONE = b"data: [DONE]\n\n"


def openai_event(delta: dict[str, Any] | None, reason: str | None = None, *, index: int = 0, **more: Any) -> bytes:
    """Make one event of a chat completion; None as the delta leaves the choices empty."""
    choices = [] if delta is None else [{"index": index, "delta": delta, "finish_reason": reason}]
    event = {"id": "r1", "object": "chat.completion.chunk", "model": "up", "choices": choices, **more}
    return b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"


def openai_stream(texts: Sequence[str], *, finished: bool = True) -> list[bytes]:
    """Make a whole stream: a role, a piece for each text, and if it finishes a reason, the usage and the end marker."""
    events = [openai_event({"role": "assistant", "content": ""}), *(openai_event({"content": text}) for text in texts)]
    if finished:
        events += [openai_event({}, "stop"), openai_event(None, usage=OPENAI_USAGE), DONE]
    return events


def openai_answer(text: str) -> Answer:
    """Make a plain answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = {"id": "r1", "object": "chat.completion", "model": "up", "choices": [choice], "usage": OPENAI_USAGE}
    return Answer.of_json(body)


def anthropic_event(kind: str, **more: Any) -> bytes:
    """Make one event of a message."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more}, ensure_ascii=False)}\n\n".encode()


def anthropic_text(text: str, index: int = 0) -> bytes:
    """Make the event of a piece of text."""
    return anthropic_event("content_block_delta", index=index, delta={"type": "text_delta", "text": text})


def anthropic_stream(texts: Sequence[str], *, finished: bool = True) -> list[bytes]:
    """Make a whole stream, with a ping in it."""
    usage = {"input_tokens": 5, "output_tokens": 1}
    events = [
        anthropic_event("message_start", message={"id": "r1", "type": "message", "model": "up", "usage": usage}),
        anthropic_event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        anthropic_event("ping"),
        *(anthropic_text(text) for text in texts),
    ]
    if finished:
        events += [
            anthropic_event("content_block_stop", index=0),
            anthropic_event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3}),
            anthropic_event("message_stop"),
        ]
    return events


def anthropic_answer(text: str) -> Answer:
    """Make a plain answer."""
    content = [{"type": "text", "text": text}]
    body = {"id": "r1", "type": "message", "model": "up", "content": content, "stop_reason": "end_turn"}
    return Answer.of_json({**body, "usage": ANTHROPIC_USAGE})
