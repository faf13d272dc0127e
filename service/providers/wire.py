"""What the dialects have in common when they are parsed: what is wrong with an answer, and guessing token counts."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import msgspec

from service.domain.generation import Choice, GenerationRequest, TextPart, ToolCall, ToolResult, Usage
from service.errors import UpstreamInvalid


class SchemaError(ValueError):
    """JSON that does not say what the format demands. Its text names the place, and repeats no content."""


def invalid_answer(exc: ValueError, provider: str) -> UpstreamInvalid:
    """Say what is wrong with an answer, and nothing of what it says."""
    if isinstance(exc, SchemaError | msgspec.ValidationError):
        reason = f"breaks its schema: {exc}"
    elif isinstance(exc, UnicodeDecodeError):
        reason = "is not UTF-8"
    else:
        reason = "is not JSON"
    return UpstreamInvalid(f"the provider's answer {reason}", provider=provider)


def estimated_usage(input_bytes: int, choices: Iterable[Choice]) -> Usage:
    """Guess the tokens of an answer whose provider gave no figures: one for four bytes of UTF-8, as is usual."""
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
    return -(-size_bytes // 4)


def size_of(text: str) -> int:
    """Count the bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def input_size(request: GenerationRequest) -> int:
    """Count the bytes of a request's texts."""
    size = 0
    for message in request.messages:
        for part in message.parts:
            if isinstance(part, TextPart):
                size += size_of(part.text)
            elif isinstance(part, ToolCall):
                size += size_of(part.arguments)
            elif isinstance(part, ToolResult):
                size += size_of(part.content)
    return size


def parts_other_than(known: Collection[str], messages: object) -> Iterator[tuple[str, str]]:
    """Find the parts of a body's messages that cannot be translated: the path of each, and its type.

    Within the result of a tool only text can, and of images only those with an address or with their data.
    """
    for number, message in enumerate(_list(messages)):
        for place, part in enumerate(_list(message.get("content"))):
            where = f"messages.{number}.content.{place}"
            kind = part.get("type")
            source = part.get("source") or {}
            if kind not in known:
                yield f"{where}.type", str(kind)
            elif kind == "image" and source.get("type") not in {"base64", "url"}:
                yield f"{where}.source.type", str(source.get("type"))
            elif kind == "tool_result":
                for inner, piece in enumerate(_list(part.get("content"))):
                    if piece.get("type") != "text":
                        yield f"{where}.content.{inner}.type", str(piece.get("type"))


def _list(value: object) -> list[dict[str, Any]]:
    return value if isinstance(value, list) else []
