"""Readiness of a fleet: what it costs the provider, what an outage and a revoked key do, what a probe costs us."""

import asyncio
import multiprocessing
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
import yaml
from prometheus_client import CollectorRegistry

from service.config import DrainSettings, ModelSettings, ProviderSettings, ReadinessSettings
from service.config.fingerprint import KeyFingerprints
from service.domain.clock import SystemClock
from service.engine.catalogue import ModelCatalogue
from service.engine.drain import Drain
from service.engine.prober import Prober
from service.engine.readiness import ReadinessCheck
from service.providers.build import open_provider
from service.telemetry.metrics import Metrics
from tests.support.fleet import Member, percentile, seconds
from tests.support.live import simulating
from tests.support.probe_boards import open_redis_boards
from tests.support.redis_server import OwnRedis, own_redis

Show = Callable[[str, list[str]], None]

GOOD, REVOKED = "sk-upstream-0123456789", "sk-revoked-0123456789"
INTERVAL_S = 1.0
CALLS_LATE_S = 0.05
"""How much nearer two calls may come to the simulator than they were made: the first waited longer for a core."""
PROBES = 1_000
LIMIT_MS = 5.0


@pytest.fixture
def upstream() -> Iterator[str]:
    with simulating("--ttft-ms", "1", "--gap-ms", "0") as address:
        yield address


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with own_redis() as running:
        yield running


async def control(session: aiohttp.ClientSession, upstream: str, **changes: object) -> None:
    async with session.post(f"{upstream}/control", json=changes) as response:
        assert response.status == 200, await response.text()


async def arrivals(session: aiohttp.ClientSession, upstream: str) -> list[float]:
    """Return when calls came to the simulator, in seconds."""
    async with session.get(f"{upstream}/ledger") as response:
        calls: list[dict[str, Any]] = await response.json()
    return sorted(call["received_at"] for call in calls)


def settings_of(upstream: str, key: str = GOOD) -> dict[str, Any]:
    return {
        "providers": {"openai": {"kind": "openai", "base_url": f"{upstream}/v1", "keys": [key]}},
        "models": {"sim": {"routes": [{"provider": "openai"}]}},
    }


# Twenty processes' worth of checks


@asynccontextmanager
async def checking(upstream: str, redis: str, count: int) -> AsyncIterator[list[ReadinessCheck]]:
    """Run the checks of so many processes, each with all of its own, over one store."""
    clock = SystemClock()
    settings = settings_of(upstream)
    providers = {"openai": ProviderSettings.model_validate(settings["providers"]["openai"])}
    models = {"sim": ModelSettings.model_validate(settings["models"]["sim"])}
    async with AsyncExitStack() as stack:
        checks = []
        for board in await stack.enter_async_context(open_redis_boards(redis, clock, count)):
            metrics = Metrics(CollectorRegistry())
            provider = await stack.enter_async_context(open_provider("openai", providers["openai"], clock=clock))
            checks.append(
                ReadinessCheck(
                    routes=ModelCatalogue(models).chat_routes,
                    keys=KeyFingerprints(providers),
                    prober=Prober(providers={"openai": provider}, metrics=metrics, clock=clock),
                    board=board,
                    settings=ReadinessSettings(interval_s=INTERVAL_S),
                    drain=Drain(DrainSettings()),
                    metrics=metrics,
                    clock=clock,
                )
            )
        for check in checks:
            await stack.enter_async_context(check.running())
        yield checks


async def test_twenty_processes_make_one_call_in_an_interval(upstream: str, server: OwnRedis, show: Show) -> None:
    intervals = round(seconds("READINESS_INTERVALS", 8))
    async with aiohttp.ClientSession(trust_env=False) as session, checking(upstream, server.url, 20) as checks:
        async with asyncio.timeout(10):
            # The simulator is another process, which has no event.
            while not all(check.verdict.status == "ready" for check in checks):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        end = time.monotonic() + intervals * INTERVAL_S
        while time.monotonic() < end:
            await asyncio.sleep(0.1)
            assert all(check.verdict.status == "ready" for check in checks)
        came = await arrivals(session, upstream)
    gaps = [after - before for before, after in pairwise(came)]
    show(
        "readiness: 20 processes over one store",
        [f"{len(came)} calls in {intervals} intervals of {INTERVAL_S:g} s, the nearest two {min(gaps):.3f} s apart"],
    )
    assert intervals / 2 <= len(came) <= intervals + 2
    assert min(gaps) >= INTERVAL_S - CALLS_LATE_S


# Real processes


class Processes:
    """Services over one store and one simulator, each on a port of its own."""

    def __init__(self, folder: Path, upstream: str, redis: str) -> None:
        self._folder = folder
        self._upstream = upstream
        self._redis = redis
        self.members: list[Member] = []

    async def start(self, name: str, *, key: str = GOOD, count: int = 1) -> list[Member]:
        settings = {
            **settings_of(self._upstream, key),
            "redis": {"url": self._redis, "timeout_s": 0.5},
            "readiness": {"interval_s": INTERVAL_S},
            "auth": {"enabled": False},
        }
        config = self._folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump(settings))
        started = [Member(config, self._folder / f"{name}-{number}.log") for number in range(count)]
        self.members += started
        await asyncio.gather(*(member.start() for member in started))
        return started


@pytest.fixture
async def processes(tmp_path: Path, upstream: str, server: OwnRedis) -> AsyncIterator[Processes]:
    running = Processes(tmp_path, upstream, server.url)
    try:
        yield running
    finally:
        await asyncio.gather(*(member.kill() for member in running.members))


async def ready(session: aiohttp.ClientSession, member: Member) -> tuple[int, dict[str, Any]]:
    async with session.get(f"http://127.0.0.1:{member.port}/ready") as response:
        return response.status, await response.json()


async def until_all(session: aiohttp.ClientSession, members: list[Member], status: str) -> float:
    """Wait until each says this; return how long it took."""
    began_at = time.monotonic()
    async with asyncio.timeout(30):
        while {(await ready(session, member))[1]["status"] for member in members} != {status}:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return time.monotonic() - began_at


async def test_an_outage_leaves_all_ready_and_a_revoked_key_none(
    processes: Processes, upstream: str, show: Show
) -> None:
    lines = []
    async with aiohttp.ClientSession(trust_env=False) as session:
        await control(session, upstream, keys=[GOOD])
        members = await processes.start("good", count=3)
        await until_all(session, members, "ready")
        await asyncio.sleep(4 * INTERVAL_S)
        came = await arrivals(session, upstream)
        nearest_s = min(after - before for before, after in pairwise(came))
        lines.append(f"3 processes at rest: {len(came)} calls, the nearest two {nearest_s:.3f} s apart")
        assert nearest_s >= INTERVAL_S - CALLS_LATE_S

        await control(session, upstream, directives="fault=503")
        took_s = await until_all(session, members, "degraded")
        answers = set()
        for member in members:
            assert (await ready(session, member))[0] == 200
            for _ in range(10):
                address = f"http://127.0.0.1:{member.port}/generate"
                async with session.post(address, json={"prompt": "x", "model": "sim"}) as response:
                    answers.add((response.status, (await response.json())["code"]))
        assert answers <= {(502, "upstream_unavailable"), (503, "circuit_open")}
        assert answers
        reason = (await ready(session, members[0]))[1]["reason"]
        lines.append(
            f"total outage: 3 of 3 ready and degraded after {took_s:.1f} s ({reason}); answers {sorted(answers)}"
        )

        await control(session, upstream, directives="")
        lines.append(f"repaired: 3 of 3 ready again after {await until_all(session, members, 'ready'):.1f} s")

        (refused,) = await processes.start("revoked", key=REVOKED)
        seen = set()
        end = time.monotonic() + 5 * INTERVAL_S
        while time.monotonic() < end:
            status, body = await ready(session, refused)
            seen.add((status, body["status"]))
            await asyncio.sleep(0.02)
        assert seen <= {(503, "starting"), (503, "unready")}
        assert (503, "unready") in seen
        assert "upstream_misconfigured" in body["reason"]
        assert REVOKED not in str(body)
        async with session.get(f"http://127.0.0.1:{refused.port}/health") as response:
            assert response.status == 200
        assert (await ready(session, members[0]))[1]["status"] == "ready"
        lines.append(f"started with a revoked key: {sorted(seen)} for {5 * INTERVAL_S:g} s, /health 200")
        show("readiness: real processes", lines)


# What a probe costs


def _burn(end: float) -> None:
    while time.monotonic() < end:
        pass


def _echo(told: Connection) -> None:
    """Send back what comes: what any process at all needs for an answer while the cores are busy."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4_096):
            writer.write(data)

    async def listen() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(listen())


@contextmanager
def busy_cores() -> Iterator[int]:
    """Keep every core busy, at the same priority as ours; give the port of an echo that has to live with that too."""
    context = multiprocessing.get_context("spawn")
    told, tells = context.Pipe(duplex=False)
    others = [context.Process(target=_burn, args=(time.monotonic() + 60,)) for _ in range(os.cpu_count() or 1)]
    others.append(context.Process(target=_echo, args=(tells,)))
    for other in others:
        other.start()
    try:
        yield told.recv()
    finally:
        for other in others:
            other.kill()
            other.join()


class Asker:
    """Asks again and again on one connection, and keeps how long each answer took."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.took_ms: list[float] = []

    @classmethod
    async def to(cls, port: int) -> Self:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, path: str) -> bytes:
        # A moment in which whoever answers goes to sleep, as between real probes.
        await asyncio.sleep(0.002)
        began_at = time.perf_counter()
        self.writer.write(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length: ")
        if length:
            await self._reader.readexactly(int(length.partition(b"\r\n")[0]))
        self.took_ms.append((time.perf_counter() - began_at) * 1_000)
        return head

    @property
    def p99_ms(self) -> float:
        return percentile(self.took_ms, 0.99)


async def test_probes_are_cheap_while_the_cores_are_busy(processes: Processes, show: Show) -> None:
    (member,) = await processes.start("one")
    async with aiohttp.ClientSession(trust_env=False) as session:
        await until_all(session, [member], "ready")
    paths = ("/ready", "/health")
    with busy_cores() as echo_port:
        echo = await Asker.to(echo_port)
        probes = {path: await Asker.to(member.port) for path in paths}
        for _ in range(PROBES):
            await echo.ask("/")
            for path, probe in probes.items():
                assert (await probe.ask(path)).startswith(b"HTTP/1.1 200")
        for asker in (echo, *probes.values()):
            asker.writer.close()
    show(
        f"probes while all of {os.cpu_count()} cores are busy, {PROBES} of each",
        [
            f"{path}: p50 {percentile(asker.took_ms, 0.5):.2f} ms, p99 {asker.p99_ms:.2f} ms"
            for path, asker in [*probes.items(), ("a bare echo", echo)]
        ],
    )
    for probe in probes.values():
        # What the machine takes from any process is not ours.
        assert probe.p99_ms - echo.p99_ms <= LIMIT_MS
