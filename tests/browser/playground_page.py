"""The playground as a test sees it: what a reader can do there, and a watch on what the page must never do."""

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from playwright.async_api import ConsoleMessage, Error, Locator, Page, Request, WebSocket, expect

Transport = Literal["fetch", "eventsource", "websocket"]

ENDED = re.compile("complete|stopped|error")

REFUSAL = "Failed to load resource"
"""How Chromium itself logs each answer with an error status: no fault of the page."""


@dataclass
class Watch:
    """Everything the page asked for and complained about."""

    requests: list[Request] = field(default_factory=list)
    sockets: list[WebSocket] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def follow(self, page: Page) -> None:
        page.on("request", self._see_request)
        page.on("websocket", self._see_socket)
        page.on("console", self._hear)
        page.on("pageerror", self._hear_error)

    def chats(self) -> list[dict[str, Any]]:
        """The bodies sent to `/chat`."""
        return [request.post_data_json or {} for request in self.requests if urlsplit(request.url).path == "/chat"]

    def paths(self) -> list[str]:
        return [urlsplit(request.url).path for request in self.requests]

    def hosts(self) -> set[str]:
        urls = [request.url for request in self.requests] + [socket.url for socket in self.sockets]
        return {urlsplit(url).netloc for url in urls if not url.startswith("data:")}

    def _see_request(self, request: Request) -> None:
        self.requests.append(request)

    def _see_socket(self, socket: WebSocket) -> None:
        self.sockets.append(socket)

    def _hear_error(self, error: Error) -> None:
        self.complaints.append(str(error))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not message.text.startswith(REFUSAL):
            self.complaints.append(message.text)


@dataclass(frozen=True, slots=True)
class Playground:
    """One open page."""

    page: Page
    watch: Watch

    @property
    def turn(self) -> Locator:
        """The latest prompt with its answer."""
        return self.page.locator(".turn").last

    @property
    def problem(self) -> Locator:
        return self.turn.locator("[data-part=problem]")

    async def choose(self, *, transport: Transport | None = None, model: str | None = None) -> None:
        if transport is not None:
            await self.page.check(f"input[name=transport][value={transport}]")
        if model is not None:
            await self.page.select_option("#model", label="Other name…")
            await self.page.fill("#model-name", model)

    async def send(self, prompt: str) -> None:
        await self.page.fill("#prompt", prompt)
        await self.page.press("#prompt", "Enter")

    async def ended(self) -> None:
        await expect(self.turn).to_have_attribute("data-state", ENDED)

    async def ask(self, prompt: str) -> str:
        """Send and wait for the end; returns the whole text that the page shows as the answer."""
        await self.send(prompt)
        await self.ended()
        return await self.answer()

    async def answer(self) -> str:
        return await self.turn.locator("[data-part=answer]").text_content() or ""

    async def fact(self, name: str) -> str:
        return await self.turn.locator(f"[data-fact={name}]").text_content() or ""

    async def state(self) -> str:
        return await self.turn.get_attribute("data-state") or ""


Opener = Callable[..., AbstractAsyncContextManager[Playground]]


@dataclass(frozen=True, slots=True)
class Site:
    """Where the service under test is, and the simulator that answers for its models."""

    url: str
    simulator_url: str
