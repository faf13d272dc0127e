"""Live streams over two processes that share a store, each restarted in turn: nothing is lost, or it is said."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.fleet import Client, Member, Reading, fleet, percentile, seconds, texts
from tests.support.live import simulating
from tests.support.redis_server import own_redis

STREAMS = 200
STREAM_S = seconds("LLM_API_TEST_STREAM_S", 20)
GAP_MS = 100
MODEL = f"sim;piece_chars=1;ttft_ms=50;gap_ms={GAP_MS}"
LENGTH = int(STREAM_S * 1_000 / GAP_MS)
ROUNDS = 3
RESUMED_S = seconds("LLM_API_TEST_RESUMED_S", 1.5)
"""Within which 99 of 100 resumptions have their first event. On a machine that does nothing else it is a fifth of a
second, and half a second is what to ask for; restarts take both cores of a small one."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with simulating() as address:
        yield address


class Load:
    """Keeps so many streams running until it is told to end; then lets them finish."""

    def __init__(self, members: list[Member], *, seed: int) -> None:
        self._members = members
        self._chance = random.Random(seed)  # noqa: S311 - which moments, not a secret
        self._texts = texts(self._chance, LENGTH)
        self._ending = False
        self.results: list[tuple[str, Reading]] = []

    async def run(self) -> None:
        await asyncio.gather(*(self._keep_one(number) for number in range(STREAMS)))

    def end(self) -> None:
        self._ending = True

    async def _keep_one(self, number: int) -> None:
        chance = random.Random(self._chance.random())  # noqa: S311
        client = Client(self._members, chance, leaves_after=40)
        await asyncio.sleep(number / STREAMS)  # they do not all begin at once
        while not self._ending:
            text = next(self._texts)
            self.results.append((text, await client.read(text, MODEL)))


async def under_restarts(
    members: list[Member], signal_number: signal.Signals, *, pause_s: float, seed: int
) -> list[tuple[str, Reading]]:
    """Restart each process in turn, three times, under load; give what all clients read."""
    load = Load(members, seed=seed)
    running = asyncio.create_task(load.run())
    await asyncio.sleep(2)
    for _ in range(ROUNDS):
        for member in members:
            status = await member.stop(signal_number)
            assert status == (0 if signal_number is signal.SIGTERM else -signal.SIGKILL)
            await member.start()
            await asyncio.sleep(pause_s)
    load.end()
    async with asyncio.timeout(2 * STREAM_S + 60):
        await running
    return load.results


async def calls(upstream: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{upstream}/ledger/summary") as answer:
        total: int = (await answer.json())["calls"]
        return total


def report(name: str, results: list[tuple[str, Reading]], capsys: pytest.CaptureFixture[str]) -> list[float]:
    resumes = [resume for _, reading in results for resume in reading.resumes_s]
    terminals = dict(Counter(reading.terminal or reading.lost for _, reading in results))
    with capsys.disabled():
        print(  # the figures are what the test is run for
            f"\n{name}: {len(results)} streams of {STREAM_S:g} s, {STREAMS} at a time, {2 * ROUNDS} restarts: "
            f"{terminals}, {len(resumes)} resumes, p50 {percentile(resumes, 0.5) * 1e3:.0f} ms, "
            f"p99 {percentile(resumes, 0.99) * 1e3:.0f} ms, most {max(resumes) * 1e3:.0f} ms"
        )
    return resumes


@pytest.mark.timeout(15 * STREAM_S + 200)
async def test_every_stream_is_whole_through_graceful_restarts(
    upstream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with own_redis() as redis:
        async with fleet(tmp_path, simulator=upstream, redis=redis.url) as members:
            before = await calls(upstream)
            results = await under_restarts(members, signal.SIGTERM, pause_s=0, seed=5)
            resumes = report("SIGTERM", results, capsys)
            assert len(results) >= STREAMS
            assert [reading.terminal or reading.lost for _, reading in results] == ["done"] * len(results)
            assert all(reading.text == text for text, reading in results)
            assert sum(reading.repeated for _, reading in results) == 0
            assert percentile(resumes, 0.99) < RESUMED_S
            assert await calls(upstream) - before == len(results)  # the model was asked once for each


@pytest.mark.timeout(15 * STREAM_S + 200)
async def test_a_kill_is_an_event_and_nothing_else_is_lost(
    upstream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with own_redis() as redis:
        async with fleet(tmp_path, simulator=upstream, redis=redis.url) as members:
            results = await under_restarts(members, signal.SIGKILL, pause_s=STREAM_S / 5, seed=6)
            report("SIGKILL", results, capsys)
            ends = Counter(reading.terminal or reading.lost for _, reading in results)
            assert set(ends) == {"done", "stream_interrupted"}
            for text, reading in results:
                assert reading.text == text if reading.terminal == "done" else text.startswith(reading.text)
            assert sum(reading.repeated for _, reading in results) == 0
