"""Clients that leave at random moments: the upstream's connection closes with theirs, and the service keeps nothing.

The service and the simulator are processes of their own, as they run anywhere; the clients speak through plain sockets,
so that they leave exactly as they mean to. Figures are printed at the end of the run.
"""

import asyncio
import gc
import json
import os
import random
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import pytest
from websockets.asyncio.client import connect

from service.serving.protocols import HttpProtocol
from tests.support.fake_app import fake_app_on_socket, until
from tests.support.leaks import CAN_BE_MEASURED, KEY, Holdings, WatchedService, watched_service
from tests.support.live import simulating
from tests.support.redis_server import eventually

pytestmark = [
    pytest.mark.skipif(not CAN_BE_MEASURED, reason="looks into /proc"),
    pytest.mark.timeout(600),
]

SEED = 5
LEAVERS = 1_000
LEAVERS_AT_ONCE = 25
"""So few leave most of two cores idle: what is timed is the service, not the queue for a processor."""
P99_S = 0.25
"""From a client's close to the upstream's."""

ABORTS = int(os.environ.get("TEST_ABORTS", "10000"))
WARM_UP = 1_000
"""Aborts before the first look: by then pools, caches and allocators have what they will keep."""
ABORTS_AT_ONCE = 100
MORE_RSS_BYTES = 8 * 1024 * 1024
"""What fragments and caches may add: one part in eighteen. 900 bytes lost with each of 10,000 aborts would be more."""
MORE_OBJECTS_FOR_EACH_ABORT = 0.25
"""A request that is not forgotten is some 30 objects, so that one in 120 would be more."""

HEADERS_AFTER_S = 0.1
"""Earlier than by default, so that there is a time between the headers and the first token."""
BEFORE_THE_LAST = "omega"
TOKENS = 30
"""The last but one of which is ``BEFORE_THE_LAST``."""
PROMPT = "echo:" + "word" + " word" * (TOKENS - 3) + f" {BEFORE_THE_LAST} end"
MAY_TAKE_S = 30.0
"""How long a client's part may take; only a defect takes it."""


class Moment(StrEnum):
    """When a client leaves."""

    AT_ONCE = "at once"
    BEFORE_HEADERS = "before the headers"
    BEFORE_TOKEN = "before the first token"
    BETWEEN = "between two tokens"
    NEAR_END = "before the last token"


class Way(StrEnum):
    """How a client leaves."""

    FIN = "FIN"
    RST = "RST"
    CLOSE_FRAME = "close frame"
    """On a WebSocket."""


FIRST_S, GAP_S = 0.3, 0.02
TOTAL_S = FIRST_S + (TOKENS - 1) * GAP_S
"""When the last token of an answer is due."""
SPANS = {
    Moment.AT_ONCE: (0.0, 0.02),
    Moment.BEFORE_HEADERS: (0.02, HEADERS_AFTER_S),
    Moment.BEFORE_TOKEN: (HEADERS_AFTER_S, FIRST_S),
    Moment.BETWEEN: (FIRST_S, TOTAL_S - 2 * GAP_S),
    Moment.NEAR_END: (TOTAL_S - 2 * GAP_S, TOTAL_S),
}
"""From when to when, in seconds after the request was sent, a moment lies."""


@dataclass(frozen=True, slots=True)
class Route:
    """What is asked, and where."""

    name: str
    path: str
    vendor: str = "ours"
    streams: bool = True

    def request(self, leaver: "Leaver") -> bytes:
        """Write it."""
        target, body = self.path, b""
        if self.name == "GET /stream":
            target += "?" + urlencode({"prompt": PROMPT, "model": leaver.model})
        else:
            body = json.dumps(self._body(leaver.model)).encode()
        method = self.name.split()[0]
        return (
            f"{method} {target} HTTP/1.1\r\nhost: service\r\nauthorization: Bearer {KEY}\r\n"
            f"x-request-id: {leaver.name}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body

    def _body(self, model: str) -> dict[str, Any]:
        if self.path == "/generate":
            return {"prompt": PROMPT, "model": model}
        body = {"messages": [{"role": "user", "content": PROMPT}], "model": model, "max_tokens": 100}
        return {**body, "stream": True} if self.streams else body


SOCKET = Route("WS /ws", "/ws")
ROUTES = (
    Route("GET /stream", "/stream"),
    Route("POST /chat", "/chat"),
    Route("POST /v1/chat/completions", "/v1/chat/completions"),
    Route("POST /v1/messages", "/v1/messages"),
    SOCKET,
    Route("POST /generate, whole", "/generate", streams=False),
    Route("POST /chat, whole", "/chat", streams=False),
    Route("POST /v1/chat/completions, whole", "/v1/chat/completions", streams=False),
    Route("POST /v1/messages, whole", "/v1/messages", streams=False),
)


@dataclass(frozen=True, slots=True)
class Leaver:
    """One client, and what it is going to do."""

    name: str
    route: Route
    model: str
    moment: Moment
    way: Way
    after_s: float
    """When it leaves, counted from its request; before the last token of a stream it goes by what it has read."""

    @property
    def titles(self) -> tuple[str, ...]:
        """Return the groups that it belongs to."""
        return ("all", self.moment, self.way, self.route.name)

    @property
    def reads_to_the_end(self) -> bool:
        """Whether it leaves as soon as the last token but one has come."""
        return self.route.streams and self.moment is Moment.NEAR_END


def crowd(count: int, *, prefix: str) -> Iterator[Leaver]:
    """Make up clients; the same each time."""
    chance = random.Random(f"{SEED} {prefix}")  # noqa: S311 - the same ones each time, not a secret
    for number in range(count):
        name = f"{prefix}-{number}"
        route, moment = chance.choice(ROUTES), chance.choice(list(Moment))
        face = chance.choice(("sim", "claude-sim"))
        yield Leaver(
            name=name,
            route=route,
            model=f"{face}-{name};ttft_ms={FIRST_S * 1000:g};gap_ms={GAP_S * 1000:g}",
            moment=moment,
            way=chance.choice((Way.FIN, Way.RST, *[Way.CLOSE_FRAME] * (route is SOCKET))),
            after_s=chance.uniform(*SPANS[moment]),
        )


class Clients:
    """Runs leavers against one service."""

    def __init__(self, base_url: str, *, at_once: int) -> None:
        address = urlsplit(base_url)
        self._host, self._port = address.hostname, address.port
        self._slots = asyncio.Semaphore(at_once)

    async def run(self, leavers: Sequence[Leaver]) -> dict[str, float]:
        """Return when each left, by the clock that all processes of the machine share."""
        async with asyncio.TaskGroup() as group:
            tasks = {leaver.name: group.create_task(self._run_one(leaver)) for leaver in leavers}
        return {name: task.result() for name, task in tasks.items()}

    async def _run_one(self, leaver: Leaver) -> float:
        async with self._slots, asyncio.timeout(MAY_TAKE_S):
            return await (self._run_socket(leaver) if leaver.route is SOCKET else self._run_request(leaver))

    async def _run_request(self, leaver: Leaver) -> float:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(leaver.route.request(leaver))
        if leaver.reads_to_the_end:
            await reader.readuntil(BEFORE_THE_LAST.encode())
        else:
            await asyncio.sleep(leaver.after_s)  # a client's patience, not a wait for something
        left_at = time.monotonic()
        _leave(writer.transport, leaver.way)
        return left_at

    async def _run_socket(self, leaver: Leaver) -> float:
        headers = {"authorization": f"Bearer {KEY}", "x-request-id": leaver.name}
        url = f"ws://{self._host}:{self._port}/ws"
        # With its usual bound on what is unread, this client would not read the answer to its own close frame.
        connection = await connect(url, additional_headers=headers, proxy=None, max_queue=None)
        await connection.send(
            json.dumps({"type": "generate", "id": "a", "prompt": PROMPT, "model": leaver.model, "max_tokens": 100})
        )
        if leaver.reads_to_the_end:
            while BEFORE_THE_LAST not in str(await connection.recv()):
                pass
        else:
            await asyncio.sleep(leaver.after_s)
        left_at = time.monotonic()
        if leaver.way is Way.CLOSE_FRAME:
            await connection.close()
        else:
            _leave(connection.transport, leaver.way)
            await connection.wait_closed()
        return left_at


def _leave(transport: asyncio.BaseTransport, way: Way) -> None:
    raw = transport.get_extra_info("socket")
    if way is Way.RST:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    else:
        raw.shutdown(socket.SHUT_RDWR)
    assert isinstance(transport, asyncio.WriteTransport)
    transport.abort()


@dataclass(frozen=True, slots=True)
class Upstream:
    """The simulator, looked at."""

    url: str

    def summary(self) -> dict[str, Any]:
        """Return the totals of its ledger."""
        found: dict[str, Any] = httpx.get(f"{self.url}/ledger/summary", trust_env=False).json()
        return found

    def calls(self) -> dict[str, dict[str, Any]]:
        """Return its records by the name of the client whose call it was."""
        records = httpx.get(f"{self.url}/ledger", trust_env=False).json()
        return {
            record["model"].partition(";")[0].removeprefix("claude-").removeprefix("sim-"): record for record in records
        }

    def is_quiet(self) -> bool:
        """Whether no call is open."""
        return not self.summary()["open_calls"]


@dataclass(frozen=True, slots=True)
class Place:
    """A service and its upstream, freshly started."""

    service: WatchedService
    upstream: Upstream

    def run(self, leavers: Sequence[Leaver], *, at_once: int) -> dict[str, float]:
        """Let clients come and go; return when each left, once all is quiet again."""

        async def run() -> dict[str, float]:
            return await Clients(self.service.base_url, at_once=at_once).run(leavers)

        left_at = asyncio.run(run())
        assert eventually(self.upstream.is_quiet), self.upstream.summary()
        assert eventually(lambda: self.service.active() == 0), self.service.metrics()
        return left_at

    def settled(self, before: Holdings | None = None) -> Holdings:
        """Return what the service holds once its clients' connections are gone, and no more tasks than before."""
        seen: list[Holdings] = []

        def is_settled() -> bool:
            seen.append(now := self.service.holdings())
            return now.clients == 0 and (
                before is None or (now.tasks, now.descriptors) == (before.tasks, before.descriptors)
            )

        eventually(is_settled)
        return seen[-1]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with (
        simulating() as simulator,
        watched_service(simulator, tmp_path, streams={"headers_after_s": HEADERS_AFTER_S}) as service,
    ):
        yield Place(service, Upstream(simulator))


def in_ms(seconds: Sequence[float]) -> str:
    """Write the median, the 99th percentile and the longest."""
    if len(seconds) < 2:
        return "-"
    p50, p99, most = (figure * 1000 for figure in (statistics.median(seconds), p99_of(seconds), max(seconds)))
    return f"p50 {p50:.1f}, p99 {p99:.1f}, max {most:.1f} ms"


def p99_of(seconds: Sequence[float]) -> float:
    """Return the 99th percentile."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[98]


def test_the_upstream_call_of_whoever_leaves_is_closed_within_a_quarter_of_a_second(
    place: Place, show: Callable[[str, list[str]], None]
) -> None:
    place.run(list(crowd(50, prefix="warm")), at_once=10)
    before = place.settled()
    leavers = list(crowd(LEAVERS, prefix="leaver"))
    left_at = place.run(leavers, at_once=LEAVERS_AT_ONCE)
    after = place.settled(before)

    calls = place.upstream.calls()
    cut = [leaver for leaver in leavers if leaver.name in calls and calls[leaver.name]["client_left"]]
    # Also those that the service read to the end behind its client's back.
    late = {
        leaver.name: delay_s
        for leaver in leavers
        if leaver.name in calls and (delay_s := calls[leaver.name]["closed_monotonic_s"] - left_at[leaver.name]) > 0
    }
    unclosed = [leaver.name for leaver in cut if calls[leaver.name]["connection_closed_monotonic_s"] is None]
    lines = {line["request_id"]: line for line in place.service.log_lines() if line["message"] == "request"}
    unnamed = [
        (leaver, lines.get(leaver.name))
        for leaver in cut
        if lines.get(leaver.name, {}).get("outcome") != "client_disconnect"
    ]

    report = [f"{len(leavers)} left; {len(calls)} upstream calls in all, {len(cut)} of theirs were cut"]
    for title in ("all", *Moment, *Way, *(route.name for route in ROUTES)):
        delays = [late[leaver.name] for leaver in leavers if leaver.name in late and title in leaver.titles]
        report.append(f"{title:33}{len(delays):>5} closed after the client: {in_ms(delays)}")
    report += [f"before: {before}", f"after:  {after}"]
    show("1,000 leavers: from the client's close to the upstream's", report)

    assert unclosed == []
    assert len(cut) > LEAVERS / 2  # a reset may overtake its own request, and a slow machine the answer
    assert p99_of(list(late.values())) <= P99_S
    assert unnamed == []
    assert (after.clients, after.tasks, after.descriptors) == (0, before.tasks, before.descriptors)
    assert place.service.defects() == {}


def test_aborts_leave_nothing_behind(place: Place, show: Callable[[str, list[str]], None]) -> None:
    place.run(list(crowd(WARM_UP, prefix="warm")), at_once=ABORTS_AT_ONCE)
    before = place.settled()
    begun_at = time.monotonic()
    place.run(list(crowd(ABORTS, prefix="abort")), at_once=ABORTS_AT_ONCE)
    took_s = time.monotonic() - begun_at
    after = place.settled(before)
    summary = place.upstream.summary()
    more_rss, more_objects = after.rss_bytes - before.rss_bytes, after.objects - before.objects
    show(
        f"{ABORTS} aborts after {WARM_UP}",
        [
            f"{took_s:.1f} s; {summary['calls']} upstream calls, {summary['client_left']} of them cut",
            f"before: {before}",
            f"after:  {after}",
            f"memory {more_rss / 1024:+.0f} KiB ({more_rss / before.rss_bytes:+.2%}); objects {more_objects:+}",
        ],
    )
    assert (after.clients, after.tasks, after.descriptors) == (0, before.tasks, before.descriptors)
    assert more_rss < MORE_RSS_BYTES
    assert more_objects < ABORTS * MORE_OBJECTS_FOR_EACH_ABORT
    assert place.service.defects() == {}
    assert summary["client_left"] > ABORTS / 4
    assert summary["open_connections"] <= ABORTS_AT_ONCE


async def test_an_idle_connection_that_is_reset_is_not_held_by_its_timer() -> None:
    async with fake_app_on_socket() as api:
        address = urlsplit(api.base_url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        port = writer.get_extra_info("sockname")[1]
        writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await reader.readuntil(b"}")
        # Not isinstance: it asks each object for its class, and some proxies are in no mood to tell.
        served = [found for found in gc.get_objects() if type(found) is HttpProtocol and found.client is not None]
        kept_alive = [
            found for found in served if found.client == ("127.0.0.1", port) and found.timeout_keep_alive_task
        ]
        _leave(writer.transport, Way.RST)
        await until(lambda: all(found not in found.connections for found in kept_alive))
        assert [found.timeout_keep_alive_task for found in kept_alive] == [None]
