"""Clients that read each kind of stream to its end, with parsers that we did not write."""

import codecs
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import openai
from httpx_sse import ServerSentEvent
from httpx_sse._decoders import SSEDecoder, SSELineDecoder
from websockets.asyncio.client import ClientConnection


@dataclass
class Read:
    """What came of a stream."""

    text: str = ""
    terminals: list[str] = field(default_factory=list)
    """Every event that ends a stream; there must be exactly one."""
    usage: dict[str, Any] | None = None


def parse_events(pieces: Iterable[bytes]) -> list[ServerSentEvent]:
    """Parse an event stream with httpx-sse's decoders."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    lines, events = SSELineDecoder(), SSEDecoder()
    return [
        event for piece in pieces for line in lines.decode(decode(piece)) if (event := events.decode(line)) is not None
    ]


def read_events(events: Iterable[ServerSentEvent]) -> Read:
    """Follow the contract of our own streams, as docs/streaming.md tells client authors."""
    read = Read()
    for event in events:
        if event.event == "text":
            read.text += json.loads(event.data)
        elif event.event == "usage":
            read.usage = json.loads(event.data)
        elif event.event == "error":
            read.terminals.append(json.loads(event.data)["code"])
        elif event.data == "[DONE]":
            read.terminals.append("done")
        else:
            assert event.event == "message", event
            read.text += event.data
    return read


async def read_sse(session: aiohttp.ClientSession, method: str, url: str, **request: Any) -> Read:
    """Read ``/stream`` or ``/chat``."""
    async with session.request(method, url, **request) as response:
        assert response.status == 200, await response.text()
        return read_events(parse_events([piece async for piece in response.content.iter_any()]))


async def read_socket(socket: ClientConnection, message: dict[str, Any]) -> Read:
    """Run one generation on a WebSocket on which no other runs."""
    await socket.send(json.dumps(message))
    read = Read()
    while not read.terminals:
        event = json.loads(await socket.recv())
        assert event["id"] == message["id"]
        if event["type"] == "delta":
            read.text += event["text"]
        elif event["type"] == "usage":
            read.usage = event
        elif event["type"] == "done":
            read.terminals.append("done")
        elif event["type"] == "error":
            read.terminals.append(event["code"])
    await socket.send(json.dumps({"type": "ping", "id": "after"}))
    assert json.loads(await socket.recv()) == {"type": "pong", "id": "after"}
    return read


async def read_openai(client: openai.AsyncOpenAI, model: str) -> Read:
    """Read ``/v1/chat/completions`` with the SDK."""
    read = Read()
    stream = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "hello"}], stream=True
    )
    async for chunk in stream:
        for choice in chunk.choices:
            read.text += choice.delta.content or ""
            if choice.finish_reason is not None:
                read.terminals.append(choice.finish_reason)
    return read
