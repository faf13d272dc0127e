"""Reading server-sent events from bytes, however they are split; knows nothing of what the events say.

The format is that of the HTML standard, section 9.2.6 "Interpreting an event stream".
"""

from typing import NamedTuple

from service.errors import UpstreamInvalid

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""Longer events are refused; an image in a tool call's arguments fits, an endless line does not."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event with data."""

    name: bytes
    """Empty where the event has no name."""
    data: bytes
    """The data lines, joined by LF."""
    raw: bytes
    """The event as it can be handed on: its own bytes, with LF as the line end, and its blank line."""


class EventReader:
    """Turns bytes into whole events. Any split of the same bytes gives the same events in the same order."""

    def __init__(self, *, provider: str, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._provider = provider
        self._max_event_bytes = max_event_bytes
        self._tail = b""
        self._at_start = True
        self._after_cr = False

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that ``data`` completes.

        Raises ``UpstreamInvalid`` if an event grows too long; the events before it are lost, as is the stream.
        """
        if self._after_cr and data:
            # The CR was taken for a line end already; an LF after it is the rest of the same one.
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._tail:
            data = self._tail + data
        if self._at_start:
            if len(data) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(data):
                self._tail = data
                return []
            self._at_start = False
            data = data.removeprefix(_BYTE_ORDER_MARK)
        blocks = data.split(b"\n\n")
        self._tail = blocks.pop()
        if len(self._tail) > self._max_event_bytes:
            raise UpstreamInvalid("the provider sent an event that is too long", provider=self._provider)
        events = []
        for block in blocks:
            if block[:6] == b"data: " and b"\n" not in block:
                events.append(Event(b"", block[6:], block + b"\n\n"))
            elif (event := _event_of(block)) is not None:
                events.append(event)
        return events


def _event_of(block: bytes) -> Event | None:
    """Parse the lines between two blank lines; None if they hold no data, which is no event by the standard."""
    name = b""
    data: list[bytes] = []
    kept: list[bytes] = []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
        else:
            # A comment, the rest of a run of blank lines, or what would take our own's place: `id` and `retry`.
            continue
        kept.append(line)
    if not data:
        return None
    return Event(name, b"\n".join(data), b"\n".join((*kept, b"", b"")))
