"""Characters that a server cut in two: one half, as a JSON escape, in one event, the other in the next.

Servers whose strings are UTF-16 do that when they stream by the code unit. A half alone is no character, and our JSON
decoders refuse it (RFC 8259 section 8.2); joined again, the text is what the model wrote.
"""

import json
from typing import Any

from service.providers.wire import SchemaError

_HIGH = ("\ud800", "\udbff")
_LOW = ("\udc00", "\udfff")
_Path = tuple[str | int, ...]


class SurrogateJoiner:
    """Keeps first halves until their second comes. One instance serves one stream."""

    def __init__(self) -> None:
        self._kept: dict[_Path, str] = {}

    @property
    def waiting(self) -> bool:
        """Whether a first half has come and its second has not."""
        return bool(self._kept)

    def join(self, data: bytes) -> bytes:
        """Return an event's JSON with only whole characters in it.

        Raises ``SchemaError`` for a second half without a first, or another text where the second was due, and
        ``ValueError`` for what is not JSON.
        """
        return json.dumps(self._joined(json.loads(data), ()), ensure_ascii=False).encode()

    def _joined(self, value: Any, path: _Path) -> Any:
        if isinstance(value, dict):
            return {self._whole(key): self._joined(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self._joined(item, (*path, _place(item, index))) for index, item in enumerate(value)]
        if isinstance(value, str) and value:
            text = self._kept.pop(path, "") + value
            # A pair that was put together from two escapes is still two code units: this makes it one character.
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
            if _HIGH[0] <= text[-1] <= _HIGH[1]:
                self._kept[path] = text[-1]
                text = text[:-1]
            return self._whole(text)
        return value

    @staticmethod
    def _whole(text: str) -> str:
        if any(_HIGH[0] <= character <= _LOW[1] for character in text):
            raise SchemaError("a text holds half a character")
        return text


def _place(item: Any, position: int) -> int:
    """Return what tells a choice or a tool call from its neighbours in every event: its index, where it has one."""
    index = item.get("index") if isinstance(item, dict) else None
    return index if isinstance(index, int) else position
