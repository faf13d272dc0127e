"""Texts arrive as the model wrote them, on every streaming route, however the upstream's bytes are split."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiohttp
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect

from service.config import Settings
from tests.support.live import serving
from tests.support.raw_upstream import RawUpstream, raw_upstream
from tests.support.readers import Read, parse_events, read_openai, read_socket, read_sse

TEXTS_PER_EXAMPLE = 10
EXAMPLES = 1_000
"""Together the 10,000 texts, each sent over four routes."""

AWKWARD = [
    "\n",
    "\r",
    "\r\n",
    "\u2028",
    "\u0085",
    " ",
    "  ",
    "[DONE]",
    "data: ",
    "\x00",
    "😀",
    "👩‍👩‍👧",
    "\ufeff",
    "e\u0301",
    ":",
    "\t",
]
pieces_of_text = st.one_of(st.sampled_from(AWKWARD), st.text(min_size=1, max_size=12))


@dataclass(frozen=True)
class Answer:
    """A model's answer, as the upstream sends it."""

    deltas: tuple[str, ...]
    ascii_only: bool
    line_end: str
    comments: bool
    splits: tuple[int, ...]
    """Places to cut at, in thousandths of the length."""

    @property
    def text(self) -> str:
        return "".join(self.deltas)

    def wire(self) -> bytes:
        events = [self._event({"role": "assistant", "content": ""}, None)]
        events += [self._event({"content": delta}, None) for delta in self.deltas]
        events.append(self._event({}, "stop"))
        if self.comments:
            events = [line for event in events for line in (f": keep-alive{self.line_end * 2}", event)]
        return "".join([*events, f"data: [DONE]{self.line_end * 2}"]).encode()

    def wire_pieces(self) -> list[bytes]:
        wire = self.wire()
        cuts = sorted({0, len(wire), *(len(wire) * place // 1_000 for place in self.splits)})
        return [wire[start:end] for start, end in itertools.pairwise(cuts)]

    def _event(self, delta: dict[str, str], finish_reason: str | None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        event = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        return f"data: {json.dumps(event, ensure_ascii=self.ascii_only)}{self.line_end * 2}"


answers = st.builds(
    Answer,
    deltas=st.lists(pieces_of_text, min_size=1, max_size=12).map(tuple),
    ascii_only=st.booleans(),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    comments=st.booleans(),
    splits=st.lists(st.integers(1, 999), max_size=12).map(tuple),
)


@dataclass
class Clients:
    """Clients of all routes, kept for the whole run, and the loop that they live in."""

    runner: asyncio.Runner
    upstream: RawUpstream
    base_url: str
    session: aiohttp.ClientSession
    sockets: list[ClientConnection]
    openai: openai.AsyncOpenAI

    async def read_all_routes(self, name: str, socket: ClientConnection) -> dict[str, Read]:
        url = self.base_url
        chat = {"model": name, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
        return {
            "/stream": await read_sse(self.session, "GET", f"{url}/stream", params={"prompt": "hello", "model": name}),
            "/chat": await read_sse(self.session, "POST", f"{url}/chat", json=chat),
            "/ws": await read_socket(socket, {"type": "generate", "id": name, "prompt": "hello", "model": name}),
            "/v1": await read_openai(self.openai, name),
        }

    async def read_answers(self, answers: list[Answer]) -> list[dict[str, Read]]:
        names = [f"text-{index}" for index in range(len(answers))]
        self.upstream.pieces = {name: answer.wire_pieces() for name, answer in zip(names, answers, strict=True)}
        return await asyncio.gather(*map(self.read_all_routes, names, self.sockets))


@asynccontextmanager
async def _connected(
    base_url: str,
) -> AsyncIterator[tuple[aiohttp.ClientSession, list[ClientConnection], openai.AsyncOpenAI]]:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        client = await stack.enter_async_context(
            openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0)
        )
        sockets = [
            await stack.enter_async_context(connect(base_url.replace("http", "ws") + "/ws", max_size=None))
            for _ in range(TEXTS_PER_EXAMPLE)
        ]
        yield session, sockets, client


@pytest.fixture(scope="module")
def clients() -> Iterator[Clients]:
    with raw_upstream() as upstream:
        over = Settings.model_validate(
            {
                "server": {"metrics_port": 0},
                "embedded": {"store": False},
                "providers": {
                    "raw": {"kind": "openai", "base_url": upstream.base_url, "keys": ["sk-0123456789abcdef"]}
                },
                "models": {"*": {"routes": [{"provider": "raw"}]}},
                "readiness": {"mode": "off"},
                "auth": {"enabled": False},
            }
        )
        with serving(over) as service, asyncio.Runner() as runner:
            connected = _connected(service.base_url)
            session, sockets, client = runner.run(connected.__aenter__())
            yield Clients(runner, upstream, service.base_url, session, sockets, client)
            runner.run(connected.__aexit__(None, None, None))


@pytest.mark.timeout(600)
# The service's own thread uses `random` (for the pings of its sockets) while texts are drawn here.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(batch=st.lists(answers, min_size=TEXTS_PER_EXAMPLE, max_size=TEXTS_PER_EXAMPLE))
def test_every_text_arrives_whole_with_one_terminal_event(clients: Clients, batch: list[Answer]) -> None:
    for answer, routes in zip(batch, clients.runner.run(clients.read_answers(batch)), strict=True):
        for route, read in routes.items():
            assert read.text == answer.text, route
            assert read.terminals == ["stop" if route == "/v1" else "done"], route
            if route != "/v1":
                assert read.usage is not None
                assert read.usage["finish_reason"] == "stop"


def test_a_text_cut_at_every_byte_arrives_whole(clients: Clients) -> None:
    answer = Answer(("a\n b", "[DONE]", "\r", "😀"), ascii_only=False, line_end="\r\n", comments=True, splits=())
    wire = answer.wire()
    for start in range(1, len(wire), TEXTS_PER_EXAMPLE):
        cuts = range(start, min(start + TEXTS_PER_EXAMPLE, len(wire)))
        names = [f"cut-{cut}" for cut in cuts]
        clients.upstream.pieces = {name: [wire[:cut], wire[cut:]] for name, cut in zip(names, cuts, strict=True)}

        async def read_cuts(names: list[str] = names) -> list[dict[str, Read]]:
            return await asyncio.gather(*map(clients.read_all_routes, names, clients.sockets))

        for routes in clients.runner.run(read_cuts()):
            assert {read.text for read in routes.values()} == {answer.text}


def test_every_byte_by_itself_arrives_whole(clients: Clients) -> None:
    answer = Answer(("\u2028\n", "é", "[DONE]", "\r\n x"), ascii_only=False, line_end="\r", comments=False, splits=())
    clients.upstream.pieces = {"bytes": [bytes([byte]) for byte in answer.wire()]}
    routes = clients.runner.run(clients.read_all_routes("bytes", clients.sockets[0]))
    assert {read.text for read in routes.values()} == {answer.text}


async def _raw(session: aiohttp.ClientSession, url: str, name: str) -> bytes:
    async with session.get(url, params={"prompt": "hello", "model": name}) as response:
        return await response.read()


def test_a_carriage_return_and_a_literal_done_are_framed_as_documented(clients: Clients) -> None:
    answer = Answer(("[DONE]", "a\rb"), ascii_only=True, line_end="\n", comments=False, splits=())
    clients.upstream.pieces = {"framing": [answer.wire()[:400], answer.wire()[400:]]}
    body = clients.runner.run(_raw(clients.session, f"{clients.base_url}/stream", "framing"))
    events = parse_events([body])
    assert "".join(event.data for event in events if event.event == "message").endswith("[DONE]")
    assert all("\r" not in event.data for event in events)
    assert body.endswith(b"data: [DONE]\n\n")


def test_an_emoji_cut_into_two_escapes_arrives_whole(clients: Clients) -> None:
    halves = Answer(("a \ud83d", "\ude00 b"), ascii_only=True, line_end="\n", comments=False, splits=())
    clients.upstream.pieces = {"halves": halves.wire_pieces()}
    routes = clients.runner.run(clients.read_all_routes("halves", clients.sockets[0]))
    assert {read.text for read in routes.values()} == {"a 😀 b"}
    assert all(len(read.terminals) == 1 for read in routes.values())
