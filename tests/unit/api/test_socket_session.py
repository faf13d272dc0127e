"""A socket whose client goes away at the worst moment, driven message by message."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import Message

from service.errors import UpstreamUnavailable
from service.providers.fake import Script
from tests.support.fake_app import DEADLINE_S, FakeApp, fake_app


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
    async with fake_app() as running:
        yield running


@dataclass
class Driver:
    """Plays the server: hands messages in, and breaks once the application sends one of a given type."""

    api: FakeApp
    breaks_at: str
    inbox: "asyncio.Queue[Message]" = field(default_factory=asyncio.Queue)
    sent: list[str] = field(default_factory=list)
    broken: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, message: Message) -> None:
        if message["type"] != "websocket.send":
            return
        kind = json.loads(message["text"])["type"]
        if self.broken.is_set() or kind == self.breaks_at:
            self.broken.set()
            raise OSError("the connection is gone")
        self.sent.append(kind)

    def __post_init__(self) -> None:
        self.inbox.put_nowait({"type": "websocket.connect"})

    def client_says(self, **message: Any) -> None:
        self.inbox.put_nowait({"type": "websocket.receive", "text": json.dumps(message)})

    async def run(self) -> None:
        scope = {"type": "websocket", "path": "/ws", "headers": [], "query_string": b"", "subprotocols": []}
        async with asyncio.timeout(DEADLINE_S):
            serving = asyncio.create_task(self.api.asgi(scope, self.inbox.get, self.send))
            await self.broken.wait()
            for _ in range(10):
                await asyncio.sleep(0)
            self.inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})
            await serving


@pytest.fixture
async def unretrieved() -> list[dict[str, Any]]:
    """What the event loop was told of exceptions that nobody looked at."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    return told


@pytest.mark.parametrize("breaks_at", ["started", "delta", "usage", "done"])
async def test_a_client_that_is_gone_at_any_message_ends_its_generation_quietly(
    api: FakeApp, unretrieved: list[dict[str, Any]], breaks_at: str
) -> None:
    driver = Driver(api, breaks_at)
    driver.client_says(type="generate", id="a", prompt="x")
    await driver.run()
    gc.collect()
    assert unretrieved == []
    assert all(call.closed.is_set() for call in api.provider.calls)
    assert api.ends("ws") == {"client_disconnect": 1}
    assert api.value("llm_api_unhandled_errors_total", place="websocket") == 0


@pytest.mark.parametrize("breaks_at", ["started", "delta", "usage", "done"])
async def test_a_client_that_is_gone_ends_every_generation_quietly(
    api: FakeApp, unretrieved: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, breaks_at: str
) -> None:
    driver = Driver(api, breaks_at)
    for name in "abc":
        driver.client_says(type="generate", id=name, prompt="x")
    await driver.run()
    gc.collect()
    assert unretrieved == []
    assert all(call.closed.is_set() for call in api.provider.calls)
    assert api.ends("ws") == {"client_disconnect": 3}
    assert api.value("llm_api_unhandled_errors_total", place="websocket") == 0
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_client_that_is_gone_when_it_should_hear_of_a_failure_is_no_defect(
    api: FakeApp, unretrieved: list[dict[str, Any]]
) -> None:
    api.provider.script = Script(before=UpstreamUnavailable("gone"))
    driver = Driver(api, "error")
    driver.client_says(type="generate", id="a", prompt="x")
    await driver.run()
    gc.collect()
    assert unretrieved == []
    assert driver.sent == ["started"]
    assert sum(api.ends("ws").values()) == 1
    assert api.value("llm_api_unhandled_errors_total", place="websocket") == 0


@pytest.mark.parametrize("message", [{"type": "dance"}, {"type": "cancel", "id": "never"}])
async def test_a_client_that_is_gone_when_it_should_hear_of_its_mistake_is_no_defect(
    api: FakeApp, unretrieved: list[dict[str, Any]], message: dict[str, str]
) -> None:
    driver = Driver(api, "error")
    driver.client_says(**message)
    await driver.run()
    gc.collect()
    assert unretrieved == []


async def test_a_client_that_is_gone_when_it_should_hear_of_its_cancel_is_no_defect(
    api: FakeApp, unretrieved: list[dict[str, Any]]
) -> None:
    api.provider.script = Script(stepped=True)
    driver = Driver(api, "error")
    driver.client_says(type="generate", id="a", prompt="x")
    driver.client_says(type="cancel", id="a")
    await driver.run()
    gc.collect()
    assert unretrieved == []
    assert api.ends("ws") == {"cancelled": 1}
