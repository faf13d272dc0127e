"""A stream in Anthropic's form: the provider's events as they came, or made from what they say."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from service.api.anthropic.errors import error_body
from service.api.anthropic.render import STOP_REASONS, usage_fields
from service.domain.generation import Chunk, Delta, Dialect, FinishReason, ToolCallDelta, Usage
from service.errors import ServiceError

MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

_HAS_STOP = re.compile(rb"^event: ?message_stop\r?$", re.MULTILINE)
"""A line of its own can only be the event's name: within JSON a line break is escaped."""

Kind = Literal["text", "thinking", "tool_use"]
_DELTAS: dict[Kind, tuple[str, str]] = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}
"""For each kind of block, the type of its deltas and the field with the piece."""


@dataclass(slots=True)
class _Block:
    """A block of content that has begun or waits for its turn."""

    kind: Kind
    tool: int | None = None
    """Which of the answer's tool calls it is, if it is one."""
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    """What came while another block was open."""


class AnthropicFraming:
    """The frames of one stream. It ends with ``message_stop`` or with ``error``; never with both.

    Blocks follow one another in this form, while OpenAI's tool calls may interleave. So text gives way to whatever
    comes next, but a tool call stays open until the end, and what does not belong to it waits until then. Only the
    first choice can be shown.
    """

    def __init__(self, *, model: str, message_id: str, request_id: str) -> None:
        self._model = model
        self._message_id = message_id
        self._request_id = request_id
        self._passed_on = False
        """Whether the provider's own events were sent."""
        self._stopped = False
        """Whether ``message_stop`` was among them."""
        self._begun = False
        self._index = 0
        """Of the open block, or of the next one."""
        self._open: _Block | None = None
        self._waiting: list[_Block] = []
        self._finish_reason: FinishReason | None = None
        self._usage: Usage | None = None

    def chunk(self, chunk: Chunk) -> bytes:
        """Return the provider's bytes if they are of this dialect, else events for what they add."""
        if chunk.raw and chunk.dialect is Dialect.ANTHROPIC:
            self._passed_on = True
            if b"message_stop" in chunk.raw and _HAS_STOP.search(chunk.raw):
                self._stopped = True
            return chunk.raw
        if chunk.usage is not None:
            self._usage = chunk.usage
        frames: list[bytes] = []
        for delta in chunk.deltas:
            if delta.choice == 0:
                self._add_delta(delta, frames)
        return b"".join(frames)

    def end(self) -> bytes:
        """Return what is still missing up to and including ``message_stop``."""
        if self._passed_on:
            return b"" if self._stopped else MESSAGE_STOP
        frames: list[bytes] = []
        self._begin(frames)
        self._close(frames)
        for block in self._waiting:
            self._start(block, frames)
            frames += [self._piece(block, piece) for piece in block.pieces]
            self._close(frames)
        frames.append(self._message_delta())
        frames.append(MESSAGE_STOP)
        return b"".join(frames)

    def failure(self, error: ServiceError) -> bytes:
        """Return an ``error`` event, on which the ``anthropic`` SDK raises ``APIStatusError``."""
        if self._stopped:
            return b""
        return _event("error", error_body(error, self._request_id))

    def _add_delta(self, delta: Delta, frames: list[bytes]) -> None:
        self._begin(frames)
        if delta.reasoning:
            self._add("thinking", delta.reasoning, frames)
        if delta.text:
            self._add("text", delta.text, frames)
        if delta.refusal:
            self._add("text", delta.refusal, frames)
        for call in delta.tool_calls:
            self._add_call(call, frames)
        if delta.finish_reason is not None:
            self._finish_reason = delta.finish_reason

    def _add(self, kind: Kind, text: str, frames: list[bytes]) -> None:
        block = self._open
        if block is not None and block.kind == "tool_use":
            if not self._waiting or self._waiting[-1].kind != kind:
                self._waiting.append(_Block(kind))
            self._waiting[-1].pieces.append(text)
            return
        if block is None or block.kind != kind:
            self._close(frames)
            block = _Block(kind)
            self._start(block, frames)
        frames.append(self._piece(block, text))

    def _add_call(self, call: ToolCallDelta, frames: list[bytes]) -> None:
        block = self._open
        if block is None or block.kind != "tool_use":
            self._close(frames)
            block = _call_block(call)
            self._start(block, frames)
        if block.tool == call.index:
            if call.arguments:
                frames.append(self._piece(block, call.arguments))
            return
        waiting = next((block for block in self._waiting if block.tool == call.index), None)
        if waiting is None:
            waiting = _call_block(call)
            self._waiting.append(waiting)
        if call.arguments:
            waiting.pieces.append(call.arguments)

    def _begin(self, frames: list[bytes]) -> None:
        if self._begun:
            return
        self._begun = True
        message: dict[str, Any] = {
            "id": self._message_id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            # Other dialects tell their figures at the end only; message_delta carries all of them, cumulative.
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        frames.append(_event("message_start", {"type": "message_start", "message": message}))

    def _start(self, block: _Block, frames: list[bytes]) -> None:
        self._open = block
        fields = {"type": "content_block_start", "index": self._index, "content_block": _opening(block)}
        frames.append(_event("content_block_start", fields))

    def _piece(self, block: _Block, piece: str) -> bytes:
        kind, name = _DELTAS[block.kind]
        return b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":%b}\n\n' % (
            self._index,
            orjson.dumps({"type": kind, name: piece}),
        )

    def _close(self, frames: list[bytes]) -> None:
        if self._open is None:
            return
        frames.append(_event("content_block_stop", {"type": "content_block_stop", "index": self._index}))
        self._open = None
        self._index += 1

    def _message_delta(self) -> bytes:
        if self._finish_reason is None:
            raise AssertionError("a stream ends by itself only after a finish reason")
        fields = {
            "type": "message_delta",
            "delta": {"stop_reason": STOP_REASONS[self._finish_reason], "stop_sequence": None},
            "usage": usage_fields(self._usage or Usage(0, 0)),
        }
        return _event("message_delta", fields)


def _call_block(call: ToolCallDelta) -> _Block:
    return _Block("tool_use", tool=call.index, id=call.id or "", name=call.name or "")


def _opening(block: _Block) -> dict[str, Any]:
    match block.kind:
        case "text":
            return {"type": "text", "text": ""}
        case "thinking":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case "tool_use":
            return {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}


def _event(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(fields))
