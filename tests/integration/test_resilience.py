"""An upstream that fails, limits, refuses keys and is repaired, and the whole service before it, over sockets.

Figures are printed at the end of the run.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from service.config import Settings
from tests.support.live import LiveService, serving, simulating

RATE = 100
"""Requests in a second where an outage is shown."""
ROTATING_RATE = 200
OUTAGE_S = 6.0
Show = Callable[[str, list[str]], None]


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    """Run a simulator of this module's own: its control route is used."""
    with simulating("--ttft-ms", "1", "--gap-ms", "0", "--output-tokens", "3") as address:
        yield address


@contextmanager
def served(
    upstream: str, *, keys: Any = None, key_files: list[Path] | None = None, **provider: Any
) -> Iterator[LiveService]:
    """Serve over one provider whose settings are the defaults but for what is given."""
    given = {"kind": "openai", "base_url": f"{upstream}/v1", **provider}
    given |= {"key_files": [str(path) for path in key_files]} if key_files else {"keys": keys or ["k1"]}
    settings = {
        "server": {"metrics_port": 0},
        "embedded": {"store": False},
        "providers": {"openai": given},
        "models": {"sim*": {"routes": [{"provider": "openai"}]}},
        "readiness": {"mode": "off"},
        "auth": {"enabled": False},
    }
    with serving(Settings.model_validate(settings)) as service:
        yield service


@dataclass
class Answers:
    """What came of requests: when each was sent and answered, its status and its code."""

    rows: list[tuple[float, float, int, str]] = field(default_factory=list)

    def count(self) -> Counter[str]:
        return Counter(code or str(status) for _, _, status, code in self.rows)

    def sent(self, since: float, until: float) -> list[tuple[float, float, int, str]]:
        return [row for row in self.rows if since <= row[0] < until]


class Bench:
    """A client of the service, and the hands on the upstream."""

    def __init__(self, service: LiveService, upstream: str, http: aiohttp.ClientSession) -> None:
        self.service = service
        self.upstream = upstream
        self.http = http

    async def control(self, **changes: Any) -> float:
        """Change the upstream; return when it has changed."""
        async with self.http.post(f"{self.upstream}/control", json=changes) as response:
            assert response.status == 200, await response.text()
        return time.monotonic()

    async def calls(self) -> int:
        """Return how many calls the upstream got since its ledger was emptied."""
        async with self.http.get(f"{self.upstream}/ledger/summary") as response:
            count: int = (await response.json())["calls"]
            return count

    async def ask(self, answers: Answers, model: str = "sim") -> None:
        began = time.monotonic()
        body = {"model": model, "prompt": "Hi"}
        async with self.http.post(f"{self.service.base_url}/generate", json=body) as response:
            code = "" if response.status == 200 else (await response.json())["code"]
            answers.rows.append((began, time.monotonic(), response.status, code))

    @asynccontextmanager
    async def load(self, rate: int, answers: Answers) -> AsyncIterator[None]:
        """Send requests at a rate, whatever becomes of them, while the context is open; leave when all are answered."""
        stop = asyncio.Event()
        task = asyncio.create_task(self._send(rate, answers, stop))
        try:
            yield
        finally:
            stop.set()
            await task

    async def _send(self, rate: int, answers: Answers, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                group.create_task(self.ask(answers))
                due += 1 / rate
                await asyncio.sleep(max(0.0, due - loop.time()))

    def value(self, name: str, **labels: str) -> float:
        return self.service.resources.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def benched(service: LiveService, upstream: str) -> AsyncIterator[Bench]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        async with http.delete(f"{upstream}/control"):
            pass
        yield Bench(service, upstream, http)


@pytest.mark.parametrize("fault", ["500", "reset"])
async def test_full_outage_is_noticed_spared_and_left_behind(upstream: str, show: Show, fault: str) -> None:
    answers = Answers()
    with served(upstream) as service:
        async with benched(service, upstream) as bench, bench.load(RATE, answers):
            await asyncio.sleep(1)
            before = await bench.calls()
            broken_at = await bench.control(directives=f"fault={fault}")
            await asyncio.sleep(OUTAGE_S)
            attempts = await bench.calls() - before
            repaired_at = await bench.control(directives="")
            async with asyncio.timeout(30):
                while not any(row[2] == 200 and row[0] > repaired_at for row in answers.rows):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)
    during = answers.sent(broken_at, repaired_at)
    opened_s = min(row[1] for row in during if row[3] == "circuit_open") - broken_at
    recovered_s = min(row[0] for row in answers.rows if row[2] == 200 and row[0] > repaired_at) - repaired_at
    refused = [row[1] - row[0] for row in during if row[3] == "circuit_open"]
    show(
        f"full outage of the provider ({fault}), {RATE} requests/s",
        [
            f"attempts at the upstream: {attempts} for {len(during)} requests = {attempts / len(during):.3f} (≤ 1.1)",
            f"circuit open after {opened_s:.3f} s (≤ 5), first answer {recovered_s:.3f} s after the repair (≤ 10)",
            (
                f"what came meanwhile: {dict(Counter(row[3] or '200' for row in during))}; "
                f"a refusal took {sorted(refused)[len(refused) // 2] * 1000:.1f} ms (median)"
            ),
        ],
    )
    assert attempts <= 1.1 * len(during)
    assert opened_s <= 5
    assert recovered_s <= 10
    assert {row[3] for row in during} <= {"", "circuit_open", "upstream_unavailable"}
    after = answers.sent(repaired_at + recovered_s + 0.1, float("inf"))
    assert after
    assert {row[2] for row in after} == {200}


async def test_outage_costs_a_tenth_more_even_where_no_circuit_opens(upstream: str, show: Show) -> None:
    answers = Answers()
    with served(upstream, breaker={"enabled": False}, retries={"base_s": 0.01}) as service:
        async with benched(service, upstream) as bench:
            await bench.control(directives="fault=500")
            async with bench.load(RATE, answers):
                await asyncio.sleep(4)
            attempts = await bench.calls()
    requests = len(answers.rows)
    show(
        "full outage without circuit breakers",
        [f"attempts at the upstream: {attempts} for {requests} requests = {attempts / requests:.3f}, reserve included"],
    )
    assert requests + 10 <= attempts <= 1.1 * requests + 10
    assert answers.count() == {"upstream_unavailable": requests}


async def test_passing_failures_are_not_seen_by_callers(upstream: str, show: Show) -> None:
    answers = Answers()
    with served(upstream) as service:
        async with benched(service, upstream) as bench:
            await bench.control(directives="fault=500;every=25")
            async with bench.load(RATE, answers):
                await asyncio.sleep(3)
            attempts = await bench.calls()
    show(
        "one call in 25 fails with a 500",
        [f"{dict(answers.count())} of {len(answers.rows)} requests; {attempts} attempts"],
    )
    assert answers.count() == {"200": len(answers.rows)}
    assert attempts > len(answers.rows)


async def test_codes_that_no_waiting_heals_are_not_asked_again(upstream: str, show: Show) -> None:
    lines = []
    for keys in (["k1"], ["k1", "k2"]):
        answers = Answers()
        with served(upstream, keys=keys) as service:
            async with benched(service, upstream) as bench:
                await bench.control(directives="fault=quota")
                for _ in range(50):
                    await bench.ask(answers)
                attempts = await bench.calls()
                dead = bench.value("llm_api_provider_keys_dead", provider="openai")
                retries = bench.value(
                    "llm_api_upstream_attempts_total",
                    provider="openai",
                    kind="retry",
                    outcome="upstream_misconfigured",
                )
        lines.append(f"{len(keys)} keys, 50 requests: {attempts} calls, {retries:.0f} retries, {dead:.0f} dead keys")
        assert (attempts, dead, retries) == (len(keys), len(keys), 0)
        assert answers.count() == {"upstream_misconfigured": 50}
        assert {row[2] for row in answers.rows} == {502}
    show("quota codes", lines)


@pytest.mark.parametrize("fault", ["cut", "reset", "stall", "eof"])
async def test_nothing_is_repeated_after_the_first_content(upstream: str, fault: str) -> None:
    with served(upstream, timeouts_s={"between_tokens": 0.3}) as service:
        async with benched(service, upstream) as bench:
            texts = []
            for number in range(5):
                model = f"sim;tokens=20;fault={fault};after_chunks=3;gap_ms=5;key={number}"
                parameters = {"model": model, "prompt": "Hi"}
                async with bench.http.get(f"{service.base_url}/stream", params=parameters) as response:
                    assert response.status == 200
                    texts.append(await response.text())
            assert await bench.calls() == 5
    assert all("event: error" in text and "[DONE]" not in text for text in texts)


async def test_streams_that_fail_before_their_content_are_repeated_unseen(upstream: str) -> None:
    with served(upstream) as service:
        async with benched(service, upstream) as bench:
            model = "sim;tokens=5;fault=cut;after_chunks=0;times=2"
            async with bench.http.get(
                f"{service.base_url}/stream", params={"model": model, "prompt": "Hi"}
            ) as response:
                text = await response.text()
            assert await bench.calls() == 3
    assert "[DONE]" in text
    assert "event: error" not in text


async def test_retry_after_of_the_upstream_is_kept_to(upstream: str) -> None:
    answers = Answers()
    with served(upstream) as service:
        async with benched(service, upstream) as bench:
            await bench.ask(answers, "sim;fault=429;retry_after_s=0.5;times=1")
            assert await bench.calls() == 2
    ((sent, answered, status, _),) = answers.rows
    assert status == 200
    assert answered - sent >= 0.5


async def test_wait_that_is_too_long_is_passed_on_to_the_caller(upstream: str) -> None:
    with served(upstream, timeouts_s={"total": 5}) as service:
        async with benched(service, upstream) as bench:
            body = {"model": "sim;fault=429;retry_after_s=40", "prompt": "Hi"}
            for _ in range(3):
                async with bench.http.post(f"{service.base_url}/generate", json=body) as response:
                    assert response.status == 503
                    assert 35 <= int(response.headers["retry-after"]) <= 40
            assert await bench.calls() == 1, "the key rests for this model"


async def test_revoked_key_is_one_401_for_us_and_none_for_callers(upstream: str) -> None:
    answers = Answers()
    with served(upstream, keys=["k1", "k2", "k3"]) as service:
        async with benched(service, upstream) as bench:
            await bench.control(keys=["k2", "k3"])
            async with bench.load(RATE, answers):
                await asyncio.sleep(1)
            assert bench.value("llm_api_provider_keys_dead", provider="openai") == 1
    assert answers.count() == {"200": len(answers.rows)}


def put(path: Path, text: str) -> None:
    """Replace a file as Kubernetes does: by a move."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


async def test_keys_are_rotated_under_load_without_a_failure(upstream: str, show: Show, tmp_path: Path) -> None:
    path = tmp_path / "key"
    put(path, "key-0")
    answers = Answers()
    with served(upstream, key_files=[path]) as service:
        async with benched(service, upstream) as bench:
            await bench.control(keys=["key-0"])
            began = time.monotonic()
            async with bench.load(ROTATING_RATE, answers):
                for number in range(1, 6):
                    await asyncio.sleep(0.7)
                    # The vendor has the new key, we get it, and the old one is revoked in the next moment.
                    await bench.control(keys=[f"key-{number - 1}", f"key-{number}"])
                    put(path, f"key-{number}")
                    await bench.control(keys=[f"key-{number}"])
                await asyncio.sleep(0.7)
            seconds = time.monotonic() - began
            refused = bench.value(
                "llm_api_upstream_attempts_total", provider="openai", kind="first", outcome="upstream_misconfigured"
            )
            dead = bench.value("llm_api_provider_keys_dead", provider="openai")
    show(
        f"one key file replaced 5 times at {ROTATING_RATE} requests/s, the old key revoked at once",
        [
            (
                f"{len(answers.rows)} requests in {seconds:.1f} s: {dict(answers.count())}; "
                f"{refused:.0f} met the old key and went on with the new one"
            )
        ],
    )
    assert answers.count() == {"200": len(answers.rows)}
    assert len(answers.rows) >= 0.9 * ROTATING_RATE * seconds
    assert refused >= 1
    assert dead == 0


async def test_keys_revoked_before_their_files_change_cost_nothing_while_another_lives(
    upstream: str, show: Show, tmp_path: Path
) -> None:
    paths = [tmp_path / "key-1", tmp_path / "key-2"]
    for path in paths:
        put(path, f"{path.name}-0")
    answers = Answers()
    with served(upstream, key_files=paths) as service:
        async with benched(service, upstream) as bench:
            accepted = {path.name: f"{path.name}-0" for path in paths}
            await bench.control(keys=[*accepted.values()])
            async with bench.load(ROTATING_RATE, answers):
                for path in (*paths, *paths):
                    accepted[path.name] = f"{path.name}-{time.monotonic_ns()}"
                    await bench.control(keys=[*accepted.values()])
                    await asyncio.sleep(0.5)
                    put(path, accepted[path.name])
                    await asyncio.sleep(1.2)
            assert bench.value("llm_api_provider_keys_dead", provider="openai") == 0
    show(
        f"two key files, each revoked 0.5 s before it is replaced, at {ROTATING_RATE} requests/s",
        [f"{len(answers.rows)} requests: {dict(answers.count())}"],
    )
    assert answers.count() == {"200": len(answers.rows)}


async def test_late_first_token_is_hedged_with_another_key_and_both_are_counted(upstream: str) -> None:
    given = {
        "server": {"metrics_port": 0},
        "embedded": {"store": False},
        "providers": {
            "slow": {"kind": "openai", "base_url": f"{upstream}/v1", "keys": ["k1"]},
            "fast": {"kind": "openai", "base_url": f"{upstream}/v1", "keys": ["k2"]},
        },
        "models": {
            "m": {
                "routes": [
                    {"provider": "slow", "model": "sim;ttft_ms=3000;tokens=3"},
                    {"provider": "fast", "model": "sim;tokens=3"},
                ]
            }
        },
        "resilience": {"hedging": {"enabled": True, "delay_s": 0.1, "budget_ratio": 1}},
        "readiness": {"mode": "off"},
        "auth": {"enabled": False},
    }
    with serving(Settings.model_validate(given)) as service:
        async with benched(service, upstream) as bench:
            began = time.monotonic()
            async with bench.http.get(f"{service.base_url}/stream", params={"model": "m", "prompt": "Hi"}) as response:
                text = await response.text()
            assert time.monotonic() - began < 2
            assert await bench.calls() == 2
            async with bench.http.get(f"{upstream}/ledger/summary") as response:
                assert (await response.json())["client_left"] == 1
            for provider in ("slow", "fast"):
                assert bench.value("llm_api_tokens_total", provider=provider, model="m", type="input") >= 1
    assert "[DONE]" in text
