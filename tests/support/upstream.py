"""A scripted upstream on a socket: it sends the bytes it was given, piece by piece, and remembers its calls."""

import asyncio
import json
import struct
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, Literal

Ending = Literal["end", "cut", "reset", "hold", "close"]
"""``end``: a whole body, connection kept. ``cut``: closed before the body's end. ``reset``: the same, with an RST.
``hold``: nothing more comes until the client leaves. ``close``: a whole body, then the connection is closed."""


@dataclass(frozen=True)
class Answer:
    """What one call gets."""

    pieces: Sequence[bytes | asyncio.Event] = ()
    """Written one by one; an event is waited for, so that a test decides when the next piece goes out."""
    status: int = 200
    content_type: str = "text/event-stream"
    headers: Mapping[str, str] = field(default_factory=dict)
    ending: Ending = "end"
    head_after: asyncio.Event | None = None
    """Waited for before the status goes out."""

    @classmethod
    def of_json(cls, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> "Answer":
        """Make a plain answer."""
        return cls([json.dumps(value).encode()], status, "application/json", headers or {})


NO_HEAD = Answer(status=0, ending="cut")
"""The connection is closed without a word."""


@dataclass
class Call:
    """One call that came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    connection: int
    """Number of the connection it came on, from 1."""
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the client closed the connection before the answer was whole."""


class ScriptedUpstream:
    """Gives each call the next answer, and the last one again when there is no other."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = deque(answers)
        self.calls: list[Call] = []
        self.base_url = ""
        self.connections = 0
        self._came = asyncio.Condition()

    async def call(self, number: int = 0) -> Call:
        """Wait for the call with this number, from 0."""
        async with asyncio.timeout(10), self._came:
            await self._came.wait_for(lambda: len(self.calls) > number)
        return self.calls[number]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        number = self.connections
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._serve_call(reader, writer, number):
                pass

    async def _serve_call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        call = Call(first.split()[1], headers, body, number)
        async with self._came:
            self.calls.append(call)
            self._came.notify_all()
        answer = self.answers.popleft() if len(self.answers) > 1 else self.answers[0]
        watch = asyncio.create_task(_tell_when_left(reader, call))
        try:
            return await self._answer(answer, call, writer)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _answer(self, answer: Answer, call: Call, writer: asyncio.StreamWriter) -> bool:
        if answer.head_after is not None:
            await _first(answer.head_after, call.left)
        if answer.status:
            lines = [f"HTTP/1.1 {answer.status} Scripted", "transfer-encoding: chunked"]
            if answer.content_type:
                lines.append(f"content-type: {answer.content_type}")
            lines += [f"{name}: {value}" for name, value in answer.headers.items()]
            writer.write("\r\n".join((*lines, "", "")).encode())
        for piece in answer.pieces:
            if isinstance(piece, asyncio.Event):
                await _first(piece, call.left)
            else:
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
        if answer.ending == "hold":
            await call.left.wait()
        elif answer.ending == "reset":
            writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        elif answer.ending in {"end", "close"}:
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        return answer.ending == "end"


async def _tell_when_left(reader: asyncio.StreamReader, call: Call) -> None:
    """Look for the end of the client's side without taking bytes of its next request."""
    while not reader.at_eof():
        if getattr(reader, "_buffer", b""):
            return
        waiter = getattr(reader, "_wait_for_data")  # noqa: B009 - asyncio has no public way to wait and not read
        try:
            await waiter("left")
        except ConnectionError:
            break
    call.left.set()


async def _first(*events: asyncio.Event) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


@asynccontextmanager
async def scripted_upstream(*answers: Answer) -> AsyncIterator[ScriptedUpstream]:
    """Run one on a port of its own; its base URL has no version in its path."""
    upstream = ScriptedUpstream(*answers)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await upstream.serve(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    upstream.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.close()
        await asyncio.sleep(0)  # a task that was made in this very turn of the loop must reach its own clean-up
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
