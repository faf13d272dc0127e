"""Reading of JSON bodies by type, with a caller-given way to complain: shared by both vendors' formats."""

from collections.abc import Callable
from typing import Any, TypeVar

import orjson

from service.simulator.text import count_tokens

IMAGE_TOKENS = 85
"""What any part of a message that is not text counts as."""

T = TypeVar("T")


def read_object(body: bytes, refuse: Callable[[str], Exception]) -> dict[str, Any]:
    """Return the body's JSON object; `refuse` makes the error from the parser's words."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise refuse(str(exc)) from exc
    if not isinstance(value, dict):
        raise refuse("the body is not an object")
    return value


def join_texts(content: Any) -> tuple[str, int]:
    """Return a message's text and its tokens, from a string or from a list of parts; None has neither."""
    if isinstance(content, str):
        return content, count_tokens(content)
    if not isinstance(content, list):
        return "", 0
    texts: list[str] = []
    tokens = 0
    for part in content:
        if not isinstance(part, dict):
            continue
        text = part.get("text")
        if isinstance(text, str):
            texts.append(text)
        elif part.get("type") == "tool_result":
            texts.append(join_texts(part.get("content"))[0])
        elif part.get("type") == "tool_use":
            texts.append(orjson.dumps(part.get("input")).decode())
        else:
            tokens += IMAGE_TOKENS
    text = "".join(texts)
    return text, tokens + count_tokens(text)
