"""Guessing how many tokens something has, where no provider said: one for four bytes of UTF-8, as is usual."""

from collections.abc import Iterable

import orjson

from service.domain.generation import (
    Choice,
    Delta,
    GenerationRequest,
    ImagePart,
    Part,
    TextPart,
    ToolCall,
    Usage,
    WireBody,
)

BYTES_PER_TOKEN = 4
IMAGE_TOKENS = 1_500
"""For each image, whose size in pixels we do not know. OpenAI counts 85 to about 1,500 ("Images and vision"), Anthropic
up to about 1,600 ("Vision"), as of 2026-11."""
_READ_TOO = ("functions", "response_format", "output_config", "output_format")
"""Fields of the vendors' bodies that a model reads, and that may be long, beside messages and tools."""


def estimated_usage(input_bytes: int, choices: Iterable[Choice]) -> Usage:
    """Guess the usage of whole answers."""
    output_bytes = sum(
        size_of(choice.text)
        + size_of(choice.reasoning)
        + size_of(choice.refusal)
        + sum(size_of(call.name) + size_of(call.arguments) for call in choice.tool_calls)
        for choice in choices
    )
    return Usage(tokens_in(input_bytes), tokens_in(output_bytes), estimated=True)


def tokens_in(size_bytes: int) -> int:
    """Guess how many tokens a text has."""
    return -(-size_bytes // BYTES_PER_TOKEN)


def size_of(text: str) -> int:
    """Count the bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def delta_size(delta: Delta) -> int:
    """Count the bytes of the texts in a piece of an answer."""
    size = size_of(delta.text) if delta.text else 0
    if delta.reasoning:
        size += size_of(delta.reasoning)
    if delta.refusal:
        size += size_of(delta.refusal)
    for call in delta.tool_calls:
        size += size_of(call.name or "") + size_of(call.arguments)
    return size


def input_size(request: GenerationRequest) -> int:
    """Count the bytes of everything in a request that a model reads; an image counts as a text of as many tokens."""
    size = sum(tool.size_bytes for tool in request.tools)
    for message in request.messages:
        for part in message.parts:
            size += _part_size(part)
    return size if request.wire is None else size + _wire_size(request.wire)


def _part_size(part: Part) -> int:
    if isinstance(part, TextPart):
        return size_of(part.text)
    if isinstance(part, ImagePart):
        return IMAGE_TOKENS * BYTES_PER_TOKEN
    if isinstance(part, ToolCall):
        return size_of(part.name) + size_of(part.arguments)
    return size_of(part.content)


def _wire_size(wire: WireBody) -> int:
    read = [wire.fields[name] for name in _READ_TOO if wire.fields.get(name)]
    try:
        return sum(len(orjson.dumps(field)) for field in read)
    except orjson.JSONEncodeError:
        return 0  # no provider gets it
