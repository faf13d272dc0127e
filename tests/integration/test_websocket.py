"""``WS /ws`` on a socket: several generations at once, each with exactly one terminal message."""

import asyncio
import json
import logging
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Response

from service.engine.drain import Stage
from service.errors import UpstreamRejected, UpstreamThrottled, UpstreamUnavailable
from service.providers.fake import Script
from service.serving.protocols import WebSocketProtocol
from tests.support.command import free_port, running
from tests.support.fake_app import ALICE, BOB, DEADLINE_S, FakeApp, bearer, fake_app_on_socket, keyed_auth, soon, until

Message = dict[str, Any]

UVICORN_ON_A_REFUSED_HANDSHAKE = "ASGI callable returned without completing handshake."
"""What uvicorn 0.54 logs after every refusal, complete as it is."""


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
    async with fake_app_on_socket() as running:
        yield running


@pytest.fixture
async def keyed() -> AsyncIterator[FakeApp]:
    async with fake_app_on_socket(auth=keyed_auth()) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_logged_as_an_error(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """Give the messages that a test expects; show that there are no others."""
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    expected: list[str] = []
    with caplog.at_level(logging.WARNING):
        yield expected
    messages = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.WARNING]
    assert [message for message in messages if message != UVICORN_ON_A_REFUSED_HANDSHAKE] == expected


@asynccontextmanager
async def socket(api: FakeApp, query: str = "", **options: Any) -> AsyncIterator[ClientConnection]:
    address = api.base_url.replace("http", "ws") + "/ws" + query
    async with connect(address, proxy=None, close_timeout=DEADLINE_S, **options) as connection:
        yield connection


async def send(connection: ClientConnection, **message: Any) -> None:
    await connection.send(json.dumps(message))


async def receive(connection: ClientConnection) -> Message:
    message = await asyncio.wait_for(connection.recv(), DEADLINE_S)
    assert isinstance(message, str)
    parsed: Message = json.loads(message)
    return parsed


async def receive_all(connection: ClientConnection, *, terminals: int = 1) -> list[Message]:
    """Read up to the given number of terminal messages, and show that nothing comes after them."""
    messages: list[Message] = []
    while sum(message["type"] in {"done", "error"} for message in messages) < terminals:
        messages.append(await receive(connection))
    await nothing_is_on_its_way(connection)
    return messages


async def nothing_is_on_its_way(connection: ClientConnection) -> None:
    await send(connection, type="ping", id="nothing before this")
    assert await receive(connection) == {"type": "pong", "id": "nothing before this"}


def text_of(messages: list[Message], generation: str) -> str:
    return "".join(
        message["text"] for message in messages if message["type"] == "delta" and message["id"] == generation
    )


async def refusal(api: FakeApp, query: str = "", **options: Any) -> Response:
    with pytest.raises(InvalidStatus) as caught:
        async with socket(api, query, **options):
            pass
    return caught.value.response


def problem_of(response: Response) -> Message:
    assert response.headers["content-type"] == "application/problem+json"
    problem: Message = json.loads(response.body or b"")
    assert problem["status"] == response.status_code
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


# What a generation gives


async def test_a_generation_is_started_told_counted_and_done(api: FakeApp) -> None:
    async with socket(api) as connection:
        await send(connection, type="generate", id="a", prompt="Hello", model="gpt-4o")
        messages = await receive_all(connection)
    request_id = messages[0]["request_id"]
    assert messages == [
        {"type": "started", "id": "a", "model": "gpt-4o", "request_id": request_id},
        *({"type": "delta", "id": "a", "text": text} for text in ("Hello", ", ", "world")),
        {
            "type": "usage",
            "id": "a",
            "model": "gpt-4o",
            "prompt_tokens": 5,
            "completion_tokens": 3,
            "estimated": False,
            "finish_reason": "stop",
            "request_id": request_id,
        },
        {"type": "done", "id": "a", "finish_reason": "stop", "request_id": request_id},
    ]
    assert api.ends("ws") == {"complete": 1}
    assert api.value("llm_api_time_to_first_token_seconds_count", transport="ws") == 1


async def test_a_chat_reaches_the_provider(api: FakeApp) -> None:
    async with socket(api) as connection:
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        await send(connection, type="chat", id="a", messages=turns, user_id="u_1", max_tokens=7, temperature=0)
        assert (await receive_all(connection))[-1]["type"] == "done"
    request = api.provider.calls[0].request
    assert (request.user_id, getattr(request, "max_tokens", None)) == ("u_1", 7)
    assert [(turn.role, turn.text) for turn in getattr(request, "messages", ())] == [
        ("system", "Be brief."),
        ("user", "Hi"),
    ]


@pytest.mark.parametrize("text", ["\r\n", "[DONE]", "\u2028\x85\ufeff", "👩‍👩‍👧", "\x00", '"}\\'])
async def test_any_text_arrives_as_the_model_wrote_it(api: FakeApp, text: str) -> None:
    api.provider.script = Script(pieces=(text, "", text))
    async with socket(api) as connection:
        await send(connection, type="generate", id=text.strip() or "a", prompt="x")
        messages = await receive_all(connection)
    assert text_of(messages, messages[0]["id"]) == text * 2


# Several at once


async def test_generations_run_at_once_and_each_ends_once(api: FakeApp) -> None:
    api.provider.scripts.extend(Script(pieces=(f"{name}1", f"{name}2"), stepped=True) for name in "abc")
    async with socket(api) as connection:
        for name in "abc":
            await send(connection, type="generate", id=name, prompt=name)
        calls = {name: await api.provider.call(number) for number, name in enumerate("abc")}
        started = [await receive(connection) for _ in "abc"]
        assert [message["id"] for message in started] == ["a", "b", "c"]
        assert len({message["request_id"] for message in started}) == 3
        for name, text in (("c", "c1"), ("a", "a1"), ("c", "c2"), ("b", "b1"), ("a", "a2"), ("b", "b2")):
            await soon(calls[name].waiting)
            calls[name].step()
            assert await receive(connection) == {"type": "delta", "id": name, "text": text}
        for name in "bca":
            calls[name].step()
            assert [(await receive(connection))["type"] for _ in range(2)] == ["usage", "done"]
        await nothing_is_on_its_way(connection)
    assert api.ends("ws") == {"complete": 3}


async def test_one_is_cancelled_while_another_runs(api: FakeApp) -> None:
    api.provider.script = Script(stepped=True)
    async with socket(api) as connection:
        for name in "ab":
            await send(connection, type="generate", id=name, prompt=name)
        first, second = await api.provider.call(0), await api.provider.call(1)
        first.step()
        seen = [await receive(connection) for _ in range(3)]
        assert text_of(seen, "a") == "Hello"
        await send(connection, type="cancel", id="a")
        ended = await receive(connection)
        assert (ended["type"], ended["id"], ended["code"], ended["status"]) == ("error", "a", "cancelled", 499)
        assert ended["request_id"] == seen[0]["request_id"]
        await soon(first.closed)
        assert first.cancelled
        assert not second.closed.is_set()
        second.step(4)
        rest = await receive_all(connection)
    assert text_of(rest, "b") == "Hello, world"
    assert {message["id"] for message in rest} == {"b"}
    assert api.ends("ws") == {"complete": 1, "cancelled": 1}


async def test_a_cancel_right_behind_its_generation_is_told_too(api: FakeApp) -> None:
    api.provider.script = Script(stepped=True)
    async with socket(api) as connection:
        # In one write, so that the second is there before the first has begun.
        for message in ({"type": "generate", "id": "a", "prompt": "x"}, {"type": "cancel", "id": "a"}):
            connection.protocol.send_text(json.dumps(message).encode())
        connection.send_data()
        messages = await receive_all(connection)
    assert [(message["type"], message.get("code")) for message in messages][-1] == ("error", "cancelled")
    assert {message["id"] for message in messages} == {"a"}
    assert api.ends("ws") == {"cancelled": 1}


async def test_a_second_cancel_gets_no_second_end(api: FakeApp) -> None:
    api.provider.script = Script(stepped=True)
    async with socket(api) as connection:
        await send(connection, type="generate", id="a", prompt="x")
        assert (await receive(connection))["type"] == "started"
        for _ in range(2):
            connection.protocol.send_text(b'{"type": "cancel", "id": "a"}')
        connection.send_data()
        assert [message["code"] for message in await receive_all(connection)] == ["cancelled"]


async def test_an_id_can_be_used_again_once_its_generation_is_over(api: FakeApp) -> None:
    async with socket(api) as connection:
        for _ in range(3):
            await send(connection, type="generate", id="a", prompt="x")
            assert (await receive_all(connection))[-1]["type"] == "done"
        api.provider.script = Script(stepped=True)
        await send(connection, type="generate", id="a", prompt="x")
        await receive(connection)
        await send(connection, type="cancel", id="a")
        assert (await receive(connection))["code"] == "cancelled"
        api.provider.script = Script()
        await send(connection, type="generate", id="a", prompt="x")
        assert (await receive_all(connection))[-1]["type"] == "done"


async def test_an_id_that_is_in_use_is_refused_and_its_generation_goes_on(api: FakeApp) -> None:
    api.provider.script = Script(stepped=True)
    async with socket(api) as connection:
        await send(connection, type="generate", id="a", prompt="x")
        assert (await receive(connection))["type"] == "started"
        await send(connection, type="generate", id="a", prompt="y")
        error = await receive(connection)
        # Under the id it would look like the end of the generation that runs.
        assert (error["type"], error["id"], error["code"]) == ("error", None, "invalid_request")
        assert error["errors"][0]["field"] == "id"
        assert "'a'" in error["detail"]
        await send(connection, type="generate", id="a")
        assert (await receive(connection))["id"] is None
        (await api.provider.call()).step(4)
        assert text_of(await receive_all(connection), "a") == "Hello, world"
    assert len(api.provider.calls) == 1


async def test_a_cancel_of_nothing_is_an_error(api: FakeApp) -> None:
    async with socket(api) as connection:
        await send(connection, type="cancel", id="never")
        error = await receive(connection)
        assert (error["type"], error["id"], error["code"]) == ("error", "never", "invalid_request")
        await send(connection, type="generate", id="a", prompt="x")
        await receive_all(connection)
        await send(connection, type="cancel", id="a")
        assert (await receive(connection))["code"] == "invalid_request"


async def test_too_many_generations_are_refused_until_one_ends() -> None:
    async with fake_app_on_socket(server={"generations_per_socket": 2}) as api, socket(api) as connection:
        api.provider.script = Script(stepped=True)
        for name in "abc":
            await send(connection, type="generate", id=name, prompt="x")
        messages = [await receive(connection) for _ in range(3)]
        error = next(message for message in messages if message["type"] == "error")
        assert (error["id"], error["code"], error["retryable"]) == ("c", "socket_full", True)
        assert api.value("llm_api_requests_ended_total", family="ws", fault="caller") == 1
        (await api.provider.call(0)).step(4)
        await receive_all(connection)
        await send(connection, type="generate", id="c", prompt="x")
        assert (await receive(connection))["type"] == "started"


# Failures


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (Script(before=UpstreamThrottled("slower", retry_after_s=3)), "upstream_throttled"),
        (Script(before=UpstreamRejected("too long")), "upstream_rejected"),
        (Script(pieces=("Hel", UpstreamUnavailable("gone"))), "upstream_unavailable"),
        (Script(finish_reason=None), "upstream_invalid_response"),
    ],
)
async def test_a_failure_is_the_one_terminal_message_and_the_socket_stays(
    api: FakeApp, script: Script, code: str
) -> None:
    api.provider.scripts.append(script)
    async with socket(api) as connection:
        await send(connection, type="generate", id="a", prompt="x")
        messages = await receive_all(connection)
        assert [message["type"] for message in messages if message["type"] not in {"started", "delta"}] == ["error"]
        error = messages[-1]
        assert (error["id"], error["code"], error["request_id"]) == ("a", code, messages[0]["request_id"])
        assert error["problem_type"].endswith(f"#{code}")
        await send(connection, type="generate", id="a", prompt="x")
        assert (await receive_all(connection))[-1]["type"] == "done"
    assert api.ends("ws") == {"error": 1, "complete": 1}


async def test_a_defect_is_an_error_without_detail(
    api: FakeApp, monkeypatch: pytest.MonkeyPatch, nothing_is_logged_as_an_error: list[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(api.provider, "stream", broken)
    async with socket(api) as connection:
        await send(connection, type="generate", id="a", prompt="x")
        error = (await receive_all(connection))[-1]
    assert (error["code"], error["status"]) == ("internal_error", 500)
    assert "secret" not in json.dumps(error)
    assert api.value("llm_api_unhandled_errors_total", place="websocket") == 1
    assert api.ends("ws") == {"error": 1}
    nothing_is_logged_as_an_error.append("generation on a socket failed by a defect")


async def test_an_unknown_model_is_an_error_that_lists_the_allowed_names(api: FakeApp) -> None:
    async with socket(api) as connection:
        await send(connection, type="generate", id="a", prompt="x", model="gpt-5")
        error = (await receive_all(connection))[-1]
    assert (error["id"], error["code"], error["errors"][0]["field"]) == ("a", "model_not_found", "model")
    assert "gpt-4o-mini" in error["detail"]


@pytest.mark.parametrize(
    ("text", "generation", "field"),
    [
        ("", None, "message"),
        ("{", None, "message"),
        ("null", None, "message"),
        ("[]", None, "message"),
        ("7", None, "message"),
        ("[" * 10_000, None, "message"),
        ('{"id": "a"}', "a", None),
        ('{"type": "dance", "id": "a"}', "a", None),
        ('{"type": ["generate"], "id": "a"}', "a", None),
        ('{"type": "generate", "prompt": "x"}', None, "id"),
        ('{"type": "generate", "prompt": "x", "id": ""}', "", "id"),
        ('{"type": "generate", "prompt": "x", "id": 7}', None, "id"),
        ('{"type": "generate", "prompt": "x", "id": "' + "i" * 65 + '"}', "i" * 65, "id"),
        ('{"type": "generate", "id": "a"}', "a", "prompt"),
        ('{"type": "generate", "id": "a", "prompt": ""}', "a", "prompt"),
        ('{"type": "generate", "id": "a", "prompt": "\\ud800"}', None, "message"),
        ('{"type": "generate", "id": "a", "prompt": "x", "max_tokens": 0}', "a", "max_tokens"),
        ('{"type": "generate", "id": "a", "prompt": "x", "temperature": NaN}', None, None),
        ('{"type": "generate", "id": "a", "prompt": "x", "n": 1}', "a", "n"),
        ('{"type": "chat", "id": "a", "messages": [{"role": "tool", "content": "x"}]}', "a", "messages.0.role"),
        ('{"type": "cancel"}', None, "id"),
        ('{"type": "ping", "id": 7}', None, "id"),
    ],
)
async def test_a_wrong_message_is_an_error_and_the_socket_stays(
    api: FakeApp, text: str, generation: str | None, field: str | None
) -> None:
    async with socket(api) as connection:
        await connection.send(text)
        error = await receive(connection)
        assert (error["type"], error["id"], error["code"]) == ("error", generation, "invalid_request")
        assert field in (None, error["errors"][0]["field"])
        await nothing_is_on_its_way(connection)
    assert api.provider.calls == []


async def test_a_ping_needs_no_id(api: FakeApp) -> None:
    async with socket(api) as connection:
        await send(connection, type="ping")
        assert await receive(connection) == {"type": "pong", "id": None}


# Closing


async def close_of(connection: ClientConnection, messages: list[Message] | None = None) -> tuple[int | None, str]:
    """Read to the end, into ``messages`` if given; return how the other side closed it."""
    try:
        while True:
            message = await receive(connection)
            if messages is not None:
                messages.append(message)
    except ConnectionClosed as closed:
        return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (None, "")


async def test_a_message_over_the_limit_closes_with_1009_and_one_at_the_limit_does_not() -> None:
    async with fake_app_on_socket(server={"max_message_bytes": 1_024}) as api, socket(api) as connection:
        await connection.send(json.dumps({"type": "ping", "id": "a"}).ljust(1_024))
        assert await receive(connection) == {"type": "pong", "id": "a"}
        await connection.send(json.dumps({"type": "ping", "id": "a"}).ljust(1_025))
        assert await close_of(connection) == (1009, "a message has at most 1024 bytes")


async def test_a_message_far_over_the_limit_is_not_even_kept() -> None:
    async with fake_app_on_socket(server={"max_message_bytes": 1_024}) as api, socket(api) as connection:
        api.provider.script = Script(stepped=True)
        for name in "ab":
            await send(connection, type="generate", id=name, prompt="x")
        calls = [await api.provider.call(number) for number in range(2)]
        await connection.send(" " * 10_000)
        assert (await close_of(connection))[0] == 1009
        for call in calls:
            await soon(call.closed)


async def test_what_runs_is_told_before_we_close_its_socket(api: FakeApp) -> None:
    api.provider.script = Script(stepped=True)
    async with socket(api) as connection:
        await send(connection, type="generate", id="a", prompt="x")
        await api.provider.call()
        await connection.send(b'{"type": "ping"}')
        messages = [json.loads(await connection.recv()) for _ in range(2)]
        assert [message["type"] for message in messages] == ["started", "error"]
        assert (messages[1]["id"], messages[1]["code"]) == ("a", "cancelled")
        assert (await close_of(connection))[0] == 1003
    assert api.ends("ws") == {"cancelled": 1}


async def test_a_binary_message_closes_with_1003_and_ends_what_runs(api: FakeApp) -> None:
    api.provider.script = Script(pieces=("x",) * 1_000, stepped=True)
    async with socket(api) as connection:
        for name in "abc":
            await send(connection, type="generate", id=name, prompt="x")
        calls = [await api.provider.call(number) for number in range(3)]
        for call in calls:
            call.step(999)
        await connection.send(b'{"type": "ping"}')
        assert await close_of(connection) == (1003, "send JSON as text messages")
    for call in calls:
        await soon(call.closed)
        assert call.cancelled
    assert api.value("llm_api_unhandled_errors_total", place="websocket") == 0


@pytest.mark.parametrize("abruptly", [False, True])
async def test_leaving_while_several_generations_write_is_no_defect(
    api: FakeApp,
    abruptly: bool,  # noqa: FBT001 - both ways
) -> None:
    api.provider.script = Script(pieces=("x" * 10_000,) * 1_000, stepped=True)
    async with socket(api) as connection:
        for name in "abc":
            await send(connection, type="generate", id=name, prompt="x")
        calls = [await api.provider.call(number) for number in range(3)]
        for call in calls:
            call.step(900)
        while (await receive(connection))["type"] != "delta":
            pass
        if abruptly:
            connection.transport.abort()
        else:
            connection.protocol.send_close(1000)
            connection.send_data()
        for call in calls:
            await soon(call.closed)
        connection.transport.abort()
    await until(lambda: api.value("llm_api_streams_active", transport="ws") == 0)
    assert api.ends("ws") == {"client_disconnect": 3}
    assert api.value("llm_api_unhandled_errors_total", place="websocket") == 0


async def test_a_client_that_does_not_read_holds_no_upstream_call(
    api: FakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WebSocketProtocol, "write_timeout_s", 0.05)
    api.provider.script = Script(pieces=("x" * 1_000_000,) * 100, stepped=True)
    async with socket(api, max_queue=1, compression=None) as connection:
        for name in "ab":
            await send(connection, type="generate", id=name, prompt="x")
        calls = [await api.provider.call(number) for number in range(2)]
        for call in calls:
            call.step(99)
        for call in calls:
            await soon(call.closed)
            assert call.cancelled
        connection.transport.abort()
    await until(lambda: api.value("llm_api_streams_active", transport="ws") == 0)
    assert api.ends("ws") == {"slow_client": 2}
    assert api.value("llm_api_unhandled_errors_total", place="websocket") == 0


@pytest.mark.parametrize("abruptly", [False, True])
async def test_closing_ends_every_generation(api: FakeApp, abruptly: bool) -> None:  # noqa: FBT001 - both ways
    api.provider.script = Script(stepped=True)
    async with socket(api) as connection:
        for name in "abc":
            await send(connection, type="generate", id=name, prompt="x")
        calls = [await api.provider.call(number) for number in range(3)]
        calls[0].step()
        while (await receive(connection))["type"] != "delta":
            pass
        if abruptly:
            connection.transport.abort()
    for call in calls:
        await soon(call.closed)
        assert call.cancelled
    await until(lambda: api.value("llm_api_streams_active", transport="ws") == 0)
    assert api.ends("ws") == {"client_disconnect": 3}
    assert api.value("llm_api_unhandled_errors_total", place="websocket") == 0


@pytest.mark.parametrize(
    "script", [Script(pieces=("Hel", UpstreamUnavailable("gone")), stepped=True), Script(pieces=("Hel",), stepped=True)]
)
async def test_what_ends_while_the_client_leaves_is_no_defect(api: FakeApp, script: Script) -> None:
    api.provider.script = script
    async with socket(api) as connection:
        await send(connection, type="generate", id="a", prompt="x")
        call = await api.provider.call()
        call.step()
        while (await receive(connection))["type"] != "delta":
            pass
        await soon(call.waiting)
        # The close frame and the end of the generation meet in one turn of the event loop.
        connection.protocol.send_close(1000)
        connection.send_data()
        call.step()
    await soon(call.closed)
    await until(lambda: api.value("llm_api_streams_active", transport="ws") == 0)
    assert sum(api.ends("ws").values()) == 1


# When the process stops

STOPPING = (1012, "the process is stopping: connect again, to reach another")


def is_told(message: Message) -> bool:
    return (message["type"], message["id"], message["code"], message["retryable"]) == ("error", None, "draining", True)


async def test_at_the_signal_every_socket_is_told_once_and_served_on(api: FakeApp) -> None:
    async with socket(api) as connection, socket(api) as another:
        for each in (connection, another):
            await nothing_is_on_its_way(each)
        api.resources.drain._reach(Stage.NOTICED)
        for each in (connection, another):
            assert is_told(await receive(each))
            await nothing_is_on_its_way(each)
        await send(connection, type="generate", id="a", prompt="x")
        assert (await receive_all(connection))[-1]["type"] == "done"
        async with socket(api) as late:
            assert is_told(await receive(late))
            await nothing_is_on_its_way(late)
    assert api.value("llm_api_requests_ended_total", family="ws", fault="us") == 0  # to be told is no failure


async def test_an_idle_socket_closes_with_1012_when_new_work_is_refused(api: FakeApp) -> None:
    async with socket(api) as connection:
        await nothing_is_on_its_way(connection)
        assert api.resources.drain.running == 1
        api.resources.drain._reach(Stage.REFUSING)
        assert is_told(await receive(connection))
        assert await close_of(connection) == STOPPING
    await until(lambda: api.resources.drain.running == 0)
    assert problem_of(await refusal(api))["code"] == "draining"


async def test_what_runs_goes_on_what_is_new_is_refused_and_the_last_end_closes_the_socket(api: FakeApp) -> None:
    api.provider.script = Script(pieces=("x",), stepped=True)
    async with socket(api) as connection:
        for name in "abc":
            await send(connection, type="generate", id=name, prompt="x")
            assert (await receive(connection))["type"] == "started"
        calls = [await api.provider.call(number) for number in range(3)]
        api.resources.drain._reach(Stage.NOTICED)
        assert is_told(await receive(connection))
        api.resources.drain._reach(Stage.REFUSING)
        await send(connection, type="generate", id="new", prompt="x")
        error = await receive(connection)
        assert (error["type"], error["id"], error["code"]) == ("error", "new", "draining")
        await send(connection, type="cancel", id="a")
        error = await receive(connection)
        assert (error["id"], error["code"]) == ("a", "cancelled")
        await nothing_is_on_its_way(connection)
        for call, name in ((calls[1], "b"), (calls[2], "c")):
            call.step(2)
            messages = [await receive(connection) for _ in range(3)]
            assert [(message["type"], message["id"]) for message in messages] == [
                ("delta", name),
                ("usage", name),
                ("done", name),
            ]
        assert await close_of(connection) == STOPPING
    assert api.ends("ws") == {"cancelled": 1, "complete": 2}


async def test_what_outlasts_the_stop_ends_with_an_error_once_its_upstream_is_closed(api: FakeApp) -> None:
    api.provider.script = Script(pieces=("x", "y"), stepped=True)
    async with socket(api) as connection:
        for name in "abc":
            await send(connection, type="generate", id=name, prompt="x")
        calls = [await api.provider.call(number) for number in range(3)]
        calls[0].step()
        while (await receive(connection))["type"] != "delta":
            pass
        api.resources.drain._reach(Stage.REFUSING)
        assert is_told(await receive(connection))
        api.resources.drain._reach(Stage.CUTTING)
        ends = [await receive(connection) for _ in "abc"]
        assert all(call.closed.is_set() and call.cancelled for call in calls)
        assert [(end["type"], end["code"]) for end in ends] == 3 * [("error", "draining")]
        assert sorted(end["id"] for end in ends) == ["a", "b", "c"]
        assert await close_of(connection) == STOPPING
    assert api.value("llm_api_stream_ends_total", transport="ws", reason="draining") == 3
    assert api.resources.drain.running == 0


async def test_every_generation_has_one_end_whatever_it_does_when_it_is_cut(api: FakeApp) -> None:
    api.provider.script = Script(pieces=("x",) * 3, stepped=True)
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(socket(api)) for _ in range(10)]
        for connection in connections:
            for name in "abc":
                await send(connection, type="generate", id=name, prompt="x")
        for number in range(30):
            (await api.provider.call(number)).step(number % 5)
        api.resources.drain._reach(Stage.CUTTING)
        for connection in connections:
            messages: list[Message] = []
            assert await close_of(connection, messages) == STOPPING
            ends = [message for message in messages if message["type"] in {"done", "error"} and message["id"]]
            assert sorted(end["id"] for end in ends) == ["a", "b", "c"]
            assert {end.get("code", "done") for end in ends} <= {"draining", "done"}
    await until(lambda: api.resources.drain.running == 0)
    assert api.value("llm_api_streams_active", transport="ws") == 0


async def test_a_socket_whose_client_left_is_logged_with_that_outcome_where_something_ran(
    api: FakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    api.provider.script = Script(stepped=True)
    with caplog.at_level(logging.INFO, "service.access"):
        async with socket(api) as connection:
            await nothing_is_on_its_way(connection)
        await until(lambda: counted(api, 101) == 1)
        async with socket(api) as connection:
            await send(connection, type="generate", id="a", prompt="x")
            assert (await receive(connection))["type"] == "started"
        await until(lambda: counted(api, 101) == 2)
    lines = [vars(record) for record in caplog.records if record.name == "service.access"]
    assert [line.get("outcome") for line in lines] == [None, "client_disconnect"]


# Who may open one


async def test_without_a_credential_the_handshake_is_refused(keyed: FakeApp) -> None:
    response = await refusal(keyed)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert problem_of(response)["code"] == "unauthenticated"


@pytest.mark.parametrize(
    "headers",
    [bearer("wrong-key-0123456789"), {"authorization": f"Basic {ALICE}"}, {"authorization": ALICE}, {"x-api-key": "x"}],
)
async def test_a_wrong_credential_is_refused(keyed: FakeApp, headers: dict[str, str]) -> None:
    assert (await refusal(keyed, additional_headers=headers)).status_code == 401


@pytest.mark.parametrize("parameter", ["key", "api_key", "token", "access_token"])
async def test_a_key_in_the_address_is_refused_with_the_remedy(keyed: FakeApp, parameter: str) -> None:
    problem = problem_of(await refusal(keyed, f"?{parameter}={ALICE}"))
    assert (problem["status"], ALICE in problem["detail"]) == (401, False)
    assert "POST /tickets" in problem["detail"]


@pytest.mark.parametrize("headers", [bearer(ALICE), {"x-api-key": ALICE}])
async def test_a_key_in_a_header_opens_a_socket(keyed: FakeApp, headers: dict[str, str]) -> None:
    async with socket(keyed, additional_headers={**headers, "x-request-id": "my-id"}) as connection:
        assert connection.response is not None
        assert connection.response.headers["x-request-id"] == "my-id"
        await nothing_is_on_its_way(connection)


async def test_a_ticket_opens_one_socket(keyed: FakeApp) -> None:
    ticket = (await keyed.client.post("/tickets", headers=bearer(BOB))).json()["ticket"]
    async with socket(keyed, f"?ticket={ticket}") as connection:
        await send(connection, type="generate", id="a", prompt="x", model="gpt-4o")
        assert (await receive_all(connection))[-1]["type"] == "done"
        await send(connection, type="generate", id="a", prompt="x", model="gpt-4o-mini")
        assert (await receive_all(connection))[-1]["code"] == "model_not_found"
    assert (await refusal(keyed, f"?ticket={ticket}")).status_code == 401


@pytest.mark.parametrize("instead", ["", "alice:alice-new-0123456789,"])
async def test_a_socket_starts_nothing_for_a_key_that_was_taken_out_or_replaced(tmp_path: Path, instead: str) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"alice:{ALICE},bob:{BOB}")
    auth = {"enabled": True, "keys_file": str(keys)}
    async with (
        fake_app_on_socket(auth=auth) as api,
        socket(api, additional_headers=bearer(ALICE)) as connection,
        socket(api, additional_headers=bearer(BOB)) as another,
    ):
        await send(connection, type="generate", id="a", prompt="x")
        assert (await receive_all(connection))[-1]["type"] == "done"
        keys.write_text(f"{instead}bob:{BOB}")
        api.clock.advance(1)
        await send(connection, type="generate", id="b", prompt="x")
        error = await receive(connection)
        assert (error["type"], error["id"], error["code"], error["status"]) == ("error", "b", "unauthenticated", 401)
        assert await close_of(connection) == (1008, "the API key is not known any more")
        await send(another, type="generate", id="a", prompt="x")
        assert (await receive_all(another))[-1]["type"] == "done"
    assert len(api.provider.calls) == 2


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://[", "http://127.0.0.1:1", "x"])
async def test_another_sites_page_is_refused(api: FakeApp, origin: str) -> None:
    problem = problem_of(await refusal(api, additional_headers={"origin": origin}))
    assert (problem["status"], problem["code"]) == (403, "permission_denied")


async def test_our_own_page_and_an_allowed_origins_are_served() -> None:
    async with fake_app_on_socket(cors={"origins": ["https://app.example"]}) as api:
        for origin in (api.base_url, "https://app.example"):
            async with socket(api, additional_headers={"origin": origin}) as connection:
                await nothing_is_on_its_way(connection)
        assert (await refusal(api, additional_headers={"origin": "https://app.example.evil"})).status_code == 403


# What is counted and logged of one


def counted(api: FakeApp, code: int, route: str = "/ws") -> float:
    return api.value("llm_api_http_requests_total", route=route, method="GET", code=str(code))


async def test_a_socket_is_one_request_that_is_counted_and_logged_at_its_end(
    keyed: FakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "service.access"):
        async with socket(keyed, additional_headers={**bearer(ALICE), "x-request-id": "mine"}) as connection:
            await nothing_is_on_its_way(connection)
            assert counted(keyed, 101) == 0
        await until(lambda: counted(keyed, 101) == 1)
    (line,) = [vars(record) for record in caplog.records if record.name == "service.access"]
    assert (line["request_id"], line["route"], line["method"], line["status"]) == ("mine", "/ws", "GET", 101)
    assert line["duration_ms"] > 0


async def test_a_refused_handshake_counts_by_its_status(keyed: FakeApp) -> None:
    await refusal(keyed)
    await until(lambda: counted(keyed, 401) == 1)
    await refusal(keyed, additional_headers={"origin": "https://evil.example"})
    await until(lambda: counted(keyed, 403) == 1)
    with pytest.raises(InvalidStatus):
        async with connect(keyed.base_url.replace("http", "ws") + "/nowhere", proxy=None):
            pass
    await until(lambda: counted(keyed, 404, "unmatched") == 1)


async def test_a_defect_before_the_handshake_is_answered_is_a_500(
    keyed: FakeApp, monkeypatch: pytest.MonkeyPatch, nothing_is_logged_as_an_error: list[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(keyed.resources.authenticator, "authenticate", broken)
    problem = problem_of(await refusal(keyed, additional_headers=bearer(ALICE)))
    assert (problem["status"], problem["code"]) == (500, "internal_error")
    assert "secret" not in problem["detail"]
    await until(lambda: counted(keyed, 500) == 1)
    assert keyed.value("llm_api_unhandled_errors_total", place="websocket") == 1
    nothing_is_logged_as_an_error.append("unhandled error")


async def test_a_defect_on_an_open_socket_closes_it_with_1011(
    api: FakeApp, monkeypatch: pytest.MonkeyPatch, nothing_is_logged_as_an_error: list[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(api.resources.authenticator, "renew", broken)
    async with socket(api) as connection:
        await send(connection, type="generate", id="a", prompt="x")
        assert await close_of(connection) == (1011, "Internal error")
    await until(lambda: counted(api, 101) == 1)
    assert api.value("llm_api_unhandled_errors_total", place="websocket") == 1
    nothing_is_logged_as_an_error.append("unhandled error")


async def test_what_stands_in_a_sockets_address_is_never_logged(capfd: pytest.CaptureFixture[str]) -> None:
    settings = {
        "LLM_API_PROVIDERS__SIM__KIND": "simulator",
        "LLM_API_EMBEDDED__STORE": "false",
        "LLM_API_AUTH__KEYS": f"alice:{ALICE}",
    }
    ports = ("--port", str(free_port()), "--metrics-port", str(free_port()))
    with running("serve", *ports, settings=settings) as service:
        address = await asyncio.to_thread(service.address, "API")
        async with httpx.AsyncClient(trust_env=False) as client:
            ticket = (await client.post(f"{address}/tickets", headers=bearer(ALICE))).json()["ticket"]
        where = address.replace("http", "ws") + "/ws"
        async with connect(f"{where}?ticket={ticket}", proxy=None) as connection:
            await nothing_is_on_its_way(connection)
        for query in (f"ticket={ticket}", f"api_key={ALICE}"):
            with pytest.raises(InvalidStatus):
                async with connect(f"{where}?{query}", proxy=None):
                    pass
        _, output = await asyncio.to_thread(service.stop, signal.SIGTERM)
    printed = "".join(service.lines) + output + capfd.readouterr().err
    assert printed.count('route="/ws"') == 3
    assert ticket not in printed
    assert ALICE not in printed


async def test_a_handshake_at_any_other_path_is_a_404_with_an_id(api: FakeApp) -> None:
    address = api.base_url.replace("http", "ws")
    for path in ("/nope", "/generate"):
        with pytest.raises(InvalidStatus) as caught:
            async with connect(address + path):
                pass
        response = caught.value.response
        assert response.status_code == 404
        assert response.headers["x-request-id"]
        assert json.loads(response.body)["code"] == "not_found"
