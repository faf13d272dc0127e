"""A stream in OpenAI's form: the provider's events as they came, or made from what they say."""

from typing import Any

import orjson

from service.api.openai.errors import error_body
from service.api.openai.render import usage_fields
from service.domain.generation import Chunk, Delta, Dialect, FinishReason, ToolCallDelta, Usage
from service.errors import ServiceError

DONE = b"data: [DONE]\n\n"

_FINISH: dict[FinishReason | None, bytes] = {
    None: b',"logprobs":null,"finish_reason":null}]}\n\n',
    **{reason: b',"logprobs":null,"finish_reason":"%s"}]}\n\n' % reason.encode() for reason in FinishReason},
}


class OpenAIFraming:
    """The frames of one stream. It ends with ``[DONE]``, or with an error object and without it; never with both."""

    def __init__(self, *, model: str, created: int, completion_id: str, request_id: str, include_usage: bool) -> None:
        self._request_id = request_id
        self._include_usage = include_usage
        self._usage: Usage | None = None
        self._begun: set[int] = set()
        """Choices whose role was sent."""
        self._created = created
        self._model = model
        self._head = self._make_head(completion_id, model)
        """What every event of the stream begins with, up to its own fields."""

    def chunk(self, chunk: Chunk) -> bytes:
        """Return the provider's bytes if they are of this dialect, else an event for each delta."""
        if chunk.raw and chunk.dialect is Dialect.OPENAI:
            if chunk.response_id is not None:  # whatever of ours comes after the provider's events, such as the usage
                self._head = self._make_head(chunk.response_id, chunk.model or self._model)
            return chunk.raw
        if chunk.usage is not None:
            self._usage = chunk.usage
        return b"".join([self._event(delta) for delta in chunk.deltas])

    def end(self) -> bytes:
        """Return the usage, if the caller asked for it and the provider's bytes do not hold it already, and the end."""
        if self._usage is None or not self._include_usage:
            return DONE
        return self._head + b',"choices":[],"usage":' + orjson.dumps(usage_fields(self._usage)) + b"}\n\n" + DONE

    def failure(self, error: ServiceError) -> bytes:
        """Return an error object, on which the ``openai`` SDK raises ``APIError``."""
        return b"data: " + orjson.dumps(error_body(error, self._request_id)) + b"\n\n"

    def _make_head(self, completion_id: str, model: str) -> bytes:
        fields = {"id": completion_id, "object": "chat.completion.chunk", "created": self._created, "model": model}
        return b"data: " + orjson.dumps(fields)[:-1]

    def _event(self, delta: Delta) -> bytes:
        fields = _delta_fields(delta)
        if delta.choice not in self._begun:
            self._begun.add(delta.choice)
            fields = {"role": "assistant", **fields}
        elif not fields and delta.finish_reason is None:
            return b""
        return b"".join(
            (
                self._head,
                b',"choices":[{"index":%d,"delta":' % delta.choice,
                orjson.dumps(fields),
                _FINISH[delta.finish_reason],
            )
        )


def _delta_fields(delta: Delta) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if delta.text:
        fields["content"] = delta.text
    if delta.reasoning:
        fields["reasoning_content"] = delta.reasoning
    if delta.refusal:
        fields["refusal"] = delta.refusal
    if delta.tool_calls:
        fields["tool_calls"] = [_tool_call(call) for call in delta.tool_calls]
    return fields


def _tool_call(call: ToolCallDelta) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": call.arguments}
    if call.id is None and call.name is None:
        return {"index": call.index, "function": function}
    return {"index": call.index, "id": call.id, "type": "function", "function": {"name": call.name, **function}}
