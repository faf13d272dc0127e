"""Decoders of answers: whole JSON, our event streams, OpenAI's event streams. They note when each content came."""

from array import array
from typing import Final

import httptools
import msgspec
from typing_extensions import override

_DONE: Final = b"data: [DONE]"


class WholeAnswer:
    """An HTTP answer; what is in it is looked at when it is whole."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._complete = False
        self.body = bytearray()
        self.status = 0
        self.times = array("d")
        self.now_s = 0.0
        self.ended_s: float | None = None
        """When the last byte, or the terminal event, came."""
        self.reusable = False
        """Whether the connection can carry another exchange."""

    def feed(self, data: bytes, now_s: float) -> bool:
        """Parse; see `Decoder`."""
        self.now_s = now_s
        self._parser.feed_data(data)
        return self._complete

    def eof(self) -> bool:
        """Say that a closed connection ends no answer of known length."""
        return self._complete

    def on_body(self, data: bytes) -> None:
        """Keep; called by the parser."""
        self.body += data

    def on_headers_complete(self) -> None:
        """Note the status; called by the parser."""
        self.status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        """Note the end; called by the parser, which knows only now whether the peer keeps the connection."""
        self._complete = True
        self.reusable = bool(self._parser.should_keep_alive())
        if self.ended_s is None:
            self.ended_s = self.now_s


class Usage(msgspec.Struct):
    """What a stream told of its tokens, by either surface's name."""

    completion_tokens: int = 0
    finish_reason: str | None = None


class EventStream(WholeAnswer):
    """A stream of ours (docs/streaming.md): unnamed events and `event: text` are content."""

    def __init__(self) -> None:
        super().__init__()
        self._rest = b""
        self.usage: Usage | None = None
        self.done = False
        self.error: bytes | None = None

    @override
    def on_body(self, data: bytes) -> None:
        if self.status != 200:  # noqa: PLR2004 - the one with a stream
            self.body += data
            return
        events = (self._rest + data if self._rest else data).replace(b"\r\n", b"\n").split(b"\n\n")
        self._rest = events.pop()
        for event in events:
            self._take(event)

    def _take(self, event: bytes) -> None:
        # A comment has no blank line of its own: it stands above the next event.
        while event.startswith(b":"):
            event = event.partition(b"\n")[2]
        if event == _DONE:
            self.done = True
            self.ended_s = self.now_s
        elif event.startswith(b"data:"):
            self.data(event)
        elif event:
            name, data = _named(event)
            self.named(name, data)

    def data(self, event: bytes) -> None:  # noqa: ARG002 - a stream of ours has only text there
        """Take an unnamed event."""
        self.times.append(self.now_s)

    def named(self, name: bytes, data: bytes) -> None:
        """Take a named event."""
        if name in (b"", b"text"):
            self.times.append(self.now_s)
        elif name == b"usage":
            self.usage = msgspec.json.decode(data, type=Usage)
        elif name == b"error":
            self.error = data
            self.ended_s = self.now_s


class _Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _OpenAIChunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")
    """As it came: a union with None would refuse an object."""


_openai_chunk = msgspec.json.Decoder(_OpenAIChunk)


class OpenAIStream(EventStream):
    """A stream of `/v1/chat/completions`: deltas with text or a tool call are content."""

    def __init__(self) -> None:
        super().__init__()
        self._finish_reason: str | None = None

    @override
    def data(self, event: bytes) -> None:
        payload = event[5:] if b"\n" not in event else _named(event)[1]
        chunk = _openai_chunk.decode(payload)
        if bytes(chunk.error) != b"null":
            self.error = bytes(chunk.error)
            self.ended_s = self.now_s
        for choice in chunk.choices:
            if choice.delta.content or choice.delta.tool_calls:
                self.times.append(self.now_s)
            self._finish_reason = choice.finish_reason or self._finish_reason
        if chunk.usage is not None:
            self.usage = chunk.usage
        if self.usage is not None:
            self.usage.finish_reason = self._finish_reason
        elif self._finish_reason is not None:
            self.usage = Usage(0, self._finish_reason)


def _named(event: bytes) -> tuple[bytes, bytes]:
    name, data = b"", []
    for line in event.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"event":
            name = value.strip()
        elif field == b"data":
            data.append(value.removeprefix(b" "))
    return name, b"\n".join(data)
