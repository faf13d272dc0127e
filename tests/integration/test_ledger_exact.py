"""The ledger against the invoice of whoever bills: to the token, whatever dies.

``LEDGER_REQUESTS=10000`` runs the figure that is quoted.
"""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from service.config import RedisSettings, UsageSettings
from service.domain.usage_record import UsageRecord, summed
from service.storage.redis_ledger import RedisLedgerStore
from tests.support.fleet import Member, fleet
from tests.support.live import simulating
from tests.support.redis_server import OwnRedis, own_redis

pytestmark = pytest.mark.timeout(900)

REQUESTS = int(os.environ.get("LEDGER_REQUESTS", "600"))
AT_ONCE = 40
KILLS = 6 if REQUESTS < 5_000 else 20
"""Processes that are killed, at moments spread over the run."""
FREEZE_S = 1.5
LEASE_S = 3.0
SETTLED_WITHIN_S = 90.0

FAULTS = ("429", "500", "529", "reset", "cut", "eof", "malformed", "empty", "error_in_200", "no_usage")


async def test_the_ledger_is_the_invoice_to_the_token(tmp_path: Path, show: Callable[[str, list[str]], None]) -> None:
    chance = random.Random(9)  # noqa: S311 - no secret
    with own_redis() as redis, simulating("--ttft-ms", "5", "--gap-ms", "3") as simulator:
        sections = {
            "providers": {"sim": {"kind": "simulator", "base_url": f"{simulator}/v1"}},
            "models": {
                "sim*": {
                    "routes": [{"provider": "sim"}],
                    "price_usd_per_million_tokens": {"input": 3, "output": 15, "as_of": "2026-11-01", "source": "test"},
                }
            },
            "usage": {"dir": str(tmp_path / "usage"), "lease_s": LEASE_S},
            "drain": {"delay_s": 0, "timeout_s": 5},
        }
        async with fleet(tmp_path, simulator=simulator, redis=redis.url, count=2, **sections) as members:
            todo = iter(range(REQUESTS))
            done: list[int] = []
            outcomes: Counter[str] = Counter()

            async def client() -> None:
                async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
                    for number in todo:
                        outcomes[await _one(http, members, chance, number)] += 1
                        done.append(number)

            clients = [asyncio.create_task(client()) for _ in range(AT_ONCE)]
            await _trouble(members, redis, chance, done)
            await asyncio.gather(*clients)
            records = await _settled(redis.url, simulator)
        async with httpx.AsyncClient(timeout=60) as http:
            invoice: list[dict[str, Any]] = (await http.get(f"{simulator}/ledger")).json()

    by_id = {call.id: call for record in records for call in record.calls}
    total = summed(record.usage for record in records)
    billed_input = sum(call["input_tokens"] for call in invoice)
    billed_output = sum(call["output_tokens_delivered"] for call in invoice)
    ends = Counter(record.outcome for record in records)
    show(
        "the ledger and the invoice",
        [
            f"{REQUESTS} requests, {len(records)} generations, {len(invoice)} calls, {KILLS} processes killed",
            f"how they ended: {dict(ends)}",
            f"invoice: {billed_input} input and {billed_output} output tokens",
            f"ledger: {total.input_tokens} input and {total.output_tokens} output tokens",
            f"taken from the invoice: {sum(call.invoiced for call in by_id.values())} calls",
            f"still estimated: {sum(call.usage.estimated for call in by_id.values())} calls",
        ],
    )
    assert len({record.id for record in records}) == len(records)
    assert len(by_id) == sum(len(record.calls) for record in records)
    # No call of the invoice is missing, or stands there with other figures.
    wrong = [
        (call["fault"], call["status"], call["stream"], call["input_tokens"], call["output_tokens_delivered"], found)
        for call in invoice
        if (found := by_id.get(call["client_request_id"])) is None
        or (found.usage.input_tokens, found.usage.output_tokens)
        != (call["input_tokens"], call["output_tokens_delivered"])
    ]
    assert wrong == []
    assert (total.input_tokens, total.output_tokens) == (billed_input, billed_output)
    assert {"ok", "cancelled", "crashed"} <= set(ends)


async def _one(http: httpx.AsyncClient, members: list[Member], chance: random.Random, number: int) -> str:
    """Make one request of some kind; it may meet a process that is dead or dies."""
    alive = [member for member in members if member.is_endpoint] or members
    base = f"http://127.0.0.1:{chance.choice(alive).port}"
    kind = chance.choices(("plain", "stream", "leave", "hang up", "fault", "retried"), (20, 30, 15, 10, 15, 10))[0]
    words = chance.randrange(5, 80)
    model = "sim"
    if kind == "fault":
        model = f"sim;fault={chance.choice(FAULTS)}"
    elif kind == "retried":
        model = f"sim;fault=500;times={chance.randrange(1, 3)};key=r{number}"
    body = {
        "model": model,
        "max_tokens": words,
        "user": f"user-{number % 7}",
        "messages": [{"role": "user", "content": f"request {number} " + "word " * words}],
    }
    streamed = kind in ("stream", "leave") or (kind == "fault" and chance.random() < 0.5)
    with suppress(httpx.HTTPError):
        if kind == "hang up":
            with suppress(TimeoutError):
                async with asyncio.timeout(chance.random() * 0.2):
                    await http.post(f"{base}/v1/chat/completions", json=body)
            return kind
        if not streamed:
            await http.post(f"{base}/v1/chat/completions", json=body)
            return kind
        async with http.stream("POST", f"{base}/v1/chat/completions", json={**body, "stream": True}) as answer:
            left = chance.randrange(1, 40) if kind == "leave" else 10**9
            async for _ in answer.aiter_lines():
                left -= 1
                if left < 0:
                    return kind
        return kind
    return "met a process that was dead, or died"


async def _trouble(members: list[Member], redis: OwnRedis, chance: random.Random, done: list[int]) -> None:
    """Kill processes and freeze the store, at moments spread over the run."""
    for number in range(KILLS):
        while len(done) < REQUESTS * (number + 1) // (KILLS + 2):  # noqa: ASYNC110 - clients have no event for it
            await asyncio.sleep(0.01)
        if number % 3 == 2:
            redis.freeze()
            await asyncio.sleep(FREEZE_S)
            redis.thaw()
        member = chance.choice(members)
        await member.stop(signal.SIGKILL)
        await member.start()


async def _settled(redis_url: str, simulator: str) -> list[UsageRecord]:
    """Return the records once each call of the invoice is in one, or there was time enough."""
    store = RedisLedgerStore(
        redis=RedisSettings(url=SecretStr(redis_url), timeout_s=5.0), settings=UsageSettings(lease_s=LEASE_S)
    )
    loop = asyncio.get_running_loop()
    until = loop.time() + SETTLED_WITHIN_S
    async with store.opened(), httpx.AsyncClient(timeout=60) as http:
        while True:
            records = [record async for record in store.read(0, 1e12)]
            seen = {call.id for record in records for call in record.calls}
            invoice = (await http.get(f"{simulator}/ledger")).json()
            missing = [call for call in invoice if call["client_request_id"] not in seen]
            if not missing or loop.time() > until:
                return records
            await asyncio.sleep(0.5)
