"""Server-sent events of our own routes: the one place that knows ``data:`` and ``[DONE]``.

Unnamed events carry text: joined, their data is the model's text exactly. Two texts cannot stand in an unnamed event
as they are. One that is just ``[DONE]`` would be taken for the end, so it goes in two events. One with a carriage
return would lose it, since that ends a line (HTML Living Standard, section 9.2.6), so it goes as ``event: text``, its
data a JSON string. The end is ``event: usage`` and ``[DONE]``; a failure is ``event: error``, and no ``[DONE]``.
"""

from typing import Any

import orjson

from service.api.errors import problem
from service.domain.generation import Chunk, FinishReason, Usage
from service.errors import ServiceError

MEDIA_TYPE = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
_DONE_TEXT = "[DONE]"


def text_event(text: str) -> bytes:
    """Frame a piece of text; nothing for no text."""
    if "\r" in text:
        return b"event: text\ndata: " + orjson.dumps(text) + b"\n\n"
    if text == _DONE_TEXT:
        return b"data: [DONE\n\ndata: ]\n\n"
    if not text:
        return b""
    return ("data: " + text.replace("\n", "\ndata: ") + "\n\n").encode()


def json_event(name: str, payload: Any) -> bytes:
    """Frame a JSON document as a named event."""
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(payload) + b"\n\n"


class TextFraming:
    """Frames a generation for our own streams; see :class:`service.engine.framing.Framing`."""

    def __init__(self, *, request_id: str, model: str) -> None:
        """``model`` is named where the provider does not say which one answers."""
        self._request_id = request_id
        self._model = model
        self._finish_reason: FinishReason | None = None
        self._usage: Usage | None = None

    def chunk(self, chunk: Chunk) -> bytes:
        """Frame the text that came."""
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.model is not None:
            self._model = chunk.model
        self._finish_reason = chunk.finish_reason or self._finish_reason
        return text_event(chunk.text)

    def end(self) -> bytes:
        """Frame the usage and the end."""
        usage = usage_fields(self._usage, self._finish_reason, model=self._model, request_id=self._request_id)
        return json_event("usage", usage) + DONE

    def failure(self, error: ServiceError) -> bytes:
        """Frame the failure, after which there is no ``[DONE]``."""
        return json_event("error", problem(error, self._request_id))


def usage_fields(
    usage: Usage | None, finish_reason: FinishReason | None, *, model: str, request_id: str
) -> dict[str, Any]:
    """Return what a stream tells at its end, on SSE and on the WebSocket alike."""
    return {
        "model": model,
        "prompt_tokens": usage.input_tokens if usage else None,
        "completion_tokens": usage.output_tokens if usage else None,
        "estimated": usage.estimated if usage else None,
        "finish_reason": finish_reason,
        "request_id": request_id,
    }
