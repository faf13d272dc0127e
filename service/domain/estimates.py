"""Guessing how many tokens something has, where no provider said: one for four bytes of UTF-8, as is usual."""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from service.domain.generation import (
    Choice,
    Delta,
    Dialect,
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
DOCUMENT_TOKENS = 5_000
"""For each document that is no text: of two pages, whose number we do not know either. Anthropic counts 1,500 to 3,000
for the text of a page, and its picture as an image ("PDF support", as of 2026-11)."""
AUDIO_TOKENS = 600
"""For each recording: a minute of it. OpenAI counts ten a second ("Managing Realtime costs", as of 2026-11)."""
MAX_MEDIA_TYPE = 200
"""Characters, in which the head of a ``data:`` address ends."""
_CHARGED: Mapping[str, int] = {
    "image": IMAGE_TOKENS,
    "image_url": IMAGE_TOKENS,
    "input_audio": AUDIO_TOKENS,
    "file": DOCUMENT_TOKENS,
    # Where a document is, if it is no text.
    "base64": DOCUMENT_TOKENS,
    "url": DOCUMENT_TOKENS,
}
"""Tokens of what a body's object stands for, by its type, whatever its size."""
_CHARGED_DATA = (("data:image/", IMAGE_TOKENS), ("data:audio/", AUDIO_TOKENS), ("data:", DOCUMENT_TOKENS))
"""The same for ``data:`` addresses in base64, by their beginnings."""
_PARTS: Mapping[Dialect, frozenset[str]] = {
    Dialect.OPENAI: frozenset({"text", "refusal", "image_url"}),
    Dialect.ANTHROPIC: frozenset({"text", "image", "tool_use", "tool_result"}),
}
"""The types of a message's content that requests have as parts, too."""
_PARTS_OF_RESULTS = frozenset({"text", "refusal"})
"""The same in what a tool gave."""
_NOT_READ = frozenset({"type", "id", "tool_use_id", "cache_control", "signature"})
"""Fields of a piece of content that are no content."""
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
    return size if request.wire is None else size + _wire_size(request.wire) + _rest_size(request.wire)


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


def _rest_size(wire: WireBody) -> int:
    """Count what messages hold beside the parts that requests have of them; next to nothing where all is text."""
    size = 0
    parts = _PARTS[wire.dialect]
    for message in wire.fields.get("messages", ()):
        content = message.get("content")
        if isinstance(content, list):
            known = _PARTS_OF_RESULTS if message.get("role") in {"tool", "function"} else parts
            size += _size_beside(content, known)
        if wire.dialect is Dialect.OPENAI and (calls := message.get("tool_calls")):
            size += _size_in([call for call in calls if call.get("function") is None])
    return size


def _size_beside(content: Iterable[Any], known: frozenset[str]) -> int:
    size = 0
    for piece in content:
        kind = piece.get("type")
        if kind not in known:
            size += _size_in([piece])
        elif kind == "tool_result":
            given = piece.get("content")
            size += _size_beside(given, _PARTS_OF_RESULTS) if isinstance(given, list) else 0
        elif kind == "image" and piece["source"].get("type") not in {"base64", "url"}:
            size += IMAGE_TOKENS * BYTES_PER_TOKEN
    return size


def _size_in(values: list[Any]) -> int:
    """Count the bytes of all texts in values, however deep; what is no text counts as a text of as many tokens."""
    size = 0
    while values:
        value = values.pop()
        if isinstance(value, str):
            size += _text_size(value)
        elif isinstance(value, list):
            values += value
        elif isinstance(value, dict):
            kind = value.get("type")
            tokens = _CHARGED.get(kind) if isinstance(kind, str) else None
            if tokens is None:
                values += [within for name, within in value.items() if name not in _NOT_READ]
            else:
                size += tokens * BYTES_PER_TOKEN
    return size


def _text_size(text: str) -> int:
    if text.startswith("data:") and ";base64," in text[:MAX_MEDIA_TYPE]:
        return next(tokens for beginning, tokens in _CHARGED_DATA if text.startswith(beginning)) * BYTES_PER_TOKEN
    return size_of(text)
