"""What the dialects have in common when they are parsed: what is wrong with an answer, what cannot be translated."""

from collections.abc import Collection, Iterator
from typing import Any

import msgspec

from service.domain.generation import TOKENS_MAX
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


def check_counts(*tokens: int) -> None:
    """Raise ``SchemaError`` for numbers of tokens that cannot be: they would not fit into the ledger either."""
    if min(tokens) < 0:
        raise SchemaError("a token count is negative")
    if max(tokens) > TOKENS_MAX:
        raise SchemaError(f"a token count is more than {TOKENS_MAX}")


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
