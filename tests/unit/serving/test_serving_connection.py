"""What a request may ask of its connection: whether its body has come, and to be told when its client leaves."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast
from weakref import ref

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from service.api.disconnect import CONNECTION, ClientDisconnected, cancelled_on_disconnect
from service.serving import protocols
from service.serving.protocols import LEAST_READ_BYTES, Connection, HttpProtocol
from tests.support.fake_app import DEADLINE_S, until

App = Callable[[Scope, Receive, Send], Awaitable[None]]

ALL = b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\n{}"
LONG = 300_000
"""Bytes of a body at which uvicorn has stopped reading."""


@asynccontextmanager
async def served(app: App) -> AsyncIterator[asyncio.StreamWriter]:
    """Serve an application, and connect to it."""
    loop = asyncio.get_running_loop()
    config = uvicorn.Config(app, log_config=None)
    config.load()
    server = await loop.create_server(lambda: HttpProtocol(config, ServerState(), {}, loop), "127.0.0.1", 0)
    async with server, asyncio.timeout(DEADLINE_S):
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield writer
        writer.close()


async def answer(send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


def test_the_scope_has_it_by_the_name_that_the_application_knows() -> None:
    assert protocols.CONNECTION == CONNECTION


async def test_a_body_has_come_once_its_last_byte_has() -> None:
    had: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        connection: Connection = scope[CONNECTION]
        had.append(connection.has_body)
        message = {"more_body": True}
        while message["more_body"]:
            message = await receive()  # type: ignore[assignment]
        had.append(connection.has_body)
        await answer(send)

    async with served(app) as writer:
        writer.write(ALL[:-1])
        await until(lambda: bool(had))
        writer.write(ALL[-1:])
        await until(lambda: len(had) == 2)
        writer.write(ALL)
        await until(lambda: len(had) == 4)
    assert had == [False, True, True, True]


@pytest.mark.parametrize("length", [2, LONG])
async def test_a_departure_cancels_the_work_and_takes_no_task(length: int) -> None:
    entered = asyncio.Event()
    tasks: list[int] = []
    ends: list[type[BaseException]] = []

    async def app(scope: Scope, receive: Receive, _: Send) -> None:
        message = {"more_body": True}
        while message["more_body"]:
            message = await receive()  # type: ignore[assignment]
        before = len(asyncio.all_tasks())
        try:
            async with cancelled_on_disconnect(scope, receive, None):
                tasks.append(len(asyncio.all_tasks()) - before)
                entered.set()
                await asyncio.Event().wait()
        except ClientDisconnected as error:
            ends.append(type(error))

    async with served(app) as writer:
        writer.write(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n" % length + b"x" * length)
        await entered.wait()
        writer.transport.abort()
        await until(lambda: bool(ends))
    assert tasks == [0]


async def test_a_client_that_left_before_is_noticed_at_the_first_await() -> None:
    ends: list[type[BaseException]] = []
    left = asyncio.Event()

    async def app(scope: Scope, receive: Receive, _: Send) -> None:
        await receive()
        await left.wait()
        try:
            async with cancelled_on_disconnect(scope, receive, None):
                await asyncio.Event().wait()
        except ClientDisconnected as error:
            ends.append(type(error))

    async with served(app) as writer:
        writer.write(ALL)
        await asyncio.sleep(0.05)
        writer.transport.abort()
        await asyncio.sleep(0.05)
        left.set()
        await until(lambda: bool(ends))


async def test_the_end_of_a_connection_whose_answer_is_complete_is_no_departure() -> None:
    told: list[bool] = []
    answered = asyncio.Event()
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        connection: Connection = scope[CONNECTION]
        await receive()
        connection.on_departure(lambda: told.append(True))
        await answer(send)
        answered.set()
        await go.wait()

    async with served(app) as writer:
        writer.write(ALL)
        await answered.wait()
        writer.transport.abort()
        await asyncio.sleep(0.05)
        go.set()
    assert told == []


async def test_who_listens_no_more_is_not_told() -> None:
    told: list[bool] = []
    entered = asyncio.Event()

    async def app(scope: Scope, receive: Receive, _: Send) -> None:
        connection: Connection = scope[CONNECTION]
        await receive()
        connection.on_departure(lambda: told.append(True))()
        entered.set()
        await receive()

    async with served(app) as writer:
        writer.write(ALL)
        await entered.wait()
        writer.transport.abort()
        await asyncio.sleep(0.05)
    assert told == []


async def test_a_request_leaves_nothing_to_the_garbage_collector() -> None:
    seen: list[ref[Connection]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(ref(scope[CONNECTION]))
        await receive()
        async with cancelled_on_disconnect(scope, receive, None):
            await asyncio.sleep(0)
        await answer(send)

    async with served(app) as writer:
        gc.collect()
        gc.disable()
        try:
            for count in (1, 2, 3):
                writer.write(ALL)
                await until(lambda count=count: len(seen) == count)  # type: ignore[misc]
                await asyncio.sleep(0.02)
            # The connection itself knows its latest request.
            assert [found() is None for found in seen] == [True, True, False]
        finally:
            gc.enable()


@pytest.mark.parametrize("_", range(10))
async def test_a_client_that_closes_its_half_gets_what_was_ready_for_it(_: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send)

    loop = asyncio.get_running_loop()
    config = uvicorn.Config(app, log_config=None)
    config.load()
    server = await loop.create_server(lambda: HttpProtocol(config, ServerState(), {}, loop), "127.0.0.1", 0)
    async with server, asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(ALL)
        # Between the answer and the turn in which it is written.
        await asyncio.sleep(0)
        writer.write_eof()
        assert (await reader.read()).startswith(b"HTTP/1.1 204")
        writer.close()


class Full:
    """A transport whose buffer empties by so much in each time."""

    def __init__(self, taken_bytes: int) -> None:
        self.left_bytes = 1_000_000
        self.taken_bytes = taken_bytes
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        self.left_bytes -= self.taken_bytes
        return self.left_bytes

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize(("taken_bytes", "is_slow"), [(LEAST_READ_BYTES, False), (LEAST_READ_BYTES - 1, True)])
async def test_a_client_that_reads_one_large_answer_is_not_taken_for_gone(
    taken_bytes: int,
    is_slow: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError(scope, receive, send)

    monkeypatch.setattr(HttpProtocol, "write_timeout_s", 0.01)
    protocol = HttpProtocol(uvicorn.Config(app, log_config=None), ServerState(), {}, asyncio.get_running_loop())
    transport = Full(taken_bytes)
    protocol.transport = cast("asyncio.Transport", transport)
    protocol.flow = FlowControl(protocol.transport)
    protocol.pause_writing()
    await asyncio.sleep(0.1)
    assert transport.aborted is is_slow
    protocol._forget()
