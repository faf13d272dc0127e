"""The store's trouble stays the store's: a service under load while it is frozen, killed and back again."""

import asyncio
import contextlib
import gc
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from tests.support.fleet import percentile, seconds
from tests.support.live import LiveService, serving, settings_over
from tests.support.redis_server import eventually, own_redis

PLAIN, BUDGETED = "plain-key-0123456789", "budgeted-key-0123456789"
CLIENTS = 8
BEFORE_S = 2.0
FROZEN_S = seconds("LIMITS_FROZEN_S", 5)
HUNG_S = 2.0
PHASES = ("before", "frozen", "killed", "back")
PRICE = {"input": 1, "output": 1, "as_of": "2026-11-01", "source": "a page"}

Show = Callable[[str, list[str]], None]


class Load:
    """Clients that ask one after the other, and what they got."""

    def __init__(self, service: LiveService) -> None:
        self.service = service
        self.answers: list[tuple[str, int, str, float]] = []
        """Key, status, code, seconds."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with httpx.AsyncClient(base_url=self.service.base_url, trust_env=False, timeout=30) as client:
            tasks = [
                asyncio.create_task(self._ask(client, BUDGETED if number == 0 else PLAIN)) for number in range(CLIENTS)
            ]
            yield
            for task in tasks:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in done), done

    async def _ask(self, client: httpx.AsyncClient, key: str) -> None:
        while True:
            began = time.perf_counter()
            response = await client.post(
                "/generate",
                json={"prompt": "echo:hi", "model": "gpt-4o", "max_tokens": 5},
                headers={"authorization": f"Bearer {key}"},
            )
            took_s = time.perf_counter() - began
            code = "" if response.status_code == 200 else response.json()["code"]
            self.answers.append((key, response.status_code, code, took_s))
            await asyncio.sleep(0.02)

    def taken(self) -> list[tuple[str, int, str, float]]:
        answers, self.answers = self.answers, []
        return answers


def outcomes(answers: list[tuple[str, int, str, float]], key: str) -> Counter[tuple[int, str]]:
    return Counter((status, code) for whose, status, code, _ in answers if whose == key)


def p99_s(answers: list[tuple[str, int, str, float]]) -> float:
    return percentile([took_s for *_, took_s in answers], 0.99)


def told(phase: str, answers: list[tuple[str, int, str, float]]) -> str:
    times_ms = f"p99 {1_000 * p99_s(answers):.1f} ms, longest {1_000 * max(took_s for *_, took_s in answers):.1f} ms"
    plain, budgeted = dict(outcomes(answers, PLAIN)), dict(outcomes(answers, BUDGETED))
    return f"{phase}: {len(answers)} requests, {times_ms}; without a budget {plain}, with one {budgeted}"


async def back_after(is_local: Callable[[], bool]) -> float:
    """Wait until the store decides again; return how long that took."""
    began = time.monotonic()
    await asyncio.to_thread(eventually, lambda: not is_local())
    return time.monotonic() - began


@pytest.mark.timeout(120 + FROZEN_S)
async def test_frozen_killed_and_back(simulator: str, tmp_path: Path, show: Show) -> None:
    auth = {
        "enabled": True,
        "keys": {
            "plain": {"key": PLAIN, "limits": {"requests_per_minute": 1_000_000, "concurrency": 100}},
            "budgeted": {"key": BUDGETED, "limits": {"usd_per_day": 100}},
        },
    }
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(own_redis(tmp_path))
        settings = settings_over(
            simulator,
            auth=auth,
            redis={"url": first.url},
            models={"gpt-4o": {"routes": [{"provider": "openai"}], "price_usd_per_million_tokens": PRICE}},
        )
        service = stack.enter_context(serving(settings))
        registry = service.resources.metrics.registry

        def is_local() -> bool:
            return registry.get_sample_value("llm_api_rate_limiter_local") == 1

        # What other tests left behind is not the service's, and to look through it takes a quarter of a second.
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        load = Load(service)
        async with load.running():
            await asyncio.sleep(1)
            load.taken()  # what is done for the first time takes longer
            await asyncio.sleep(BEFORE_S)
            before = load.taken()
            first.freeze()
            await asyncio.sleep(FROZEN_S)
            frozen = load.taken()
            assert is_local()
            first.thaw()
            thawed_s = await back_after(is_local)
            first.kill()
            await asyncio.to_thread(eventually, is_local)
            load.taken()
            await asyncio.sleep(1)
            killed = load.taken()
            with own_redis(tmp_path):
                back_s = await back_after(is_local)
                load.taken()
                await asyncio.sleep(1)
                back = load.taken()
    added_ms = 1_000 * (p99_s(frozen) - p99_s(before))
    lines = [told(name, answers) for name, answers in zip(PHASES, (before, frozen, killed, back), strict=True)]
    lines.append(f"frozen for {FROZEN_S:g} s: added p99 {added_ms:.1f} ms; asked again {thawed_s:.2f} s after the thaw")
    lines.append(f"killed and started anew: asked again after {back_s:.2f} s")
    show("limits while the store is away", lines)
    ok, away = (200, ""), (503, "store_unavailable")
    everything = [*before, *frozen, *killed, *back]
    assert max(took_s for *_, took_s in everything) < HUNG_S
    assert added_ms < 60
    assert set(outcomes(everything, PLAIN)) == {ok}
    # One request may have been on its way when the store went or came.
    for answers, wanted in ((before, ok), (frozen, away), (killed, away), (back, ok)):
        found = outcomes(answers, BUDGETED)
        assert set(found) <= {ok, away}
        assert found.total() - found[wanted] <= 1
        assert found[wanted] > 1
    assert max(thawed_s, back_s) < 5
