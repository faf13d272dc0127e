"""Guessing how many tokens something has, where no provider said: one for four bytes of UTF-8, as is usual."""

from collections.abc import Iterable

from service.domain.generation import Choice, Delta, GenerationRequest, TextPart, ToolCall, ToolResult, Usage


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
    return -(-size_bytes // 4)


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
