"""Limiters on a clock of the test's, in memory and on a real server, and the few words that tests of them share."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from redis.asyncio import Redis

from service.admission.memory import MemoryLimiter
from service.admission.redis import SCRIPT, RedisLimiter
from service.config import RedisSettings
from service.domain.clock import ManualClock
from service.domain.limits import NANO, Demand, Limits, Reservation, Scope, ScopeKind
from service.storage.redis import open_redis
from service.telemetry.metrics import Metrics

MORNING = 1_800_000_000 - 1_800_000_000 % 86_400 + 3_600
"""One o'clock (UTC) of some day, in seconds since the epoch."""


@dataclass
class Bench:
    """A limiter whose time a test moves."""

    limiter: MemoryLimiter | RedisLimiter
    clock: ManualClock = field(default_factory=lambda: ManualClock(wall=MORNING))
    redis: Redis | None = None
    clock_key: str = ""

    async def advance(self, ms: int) -> None:
        """Let so much time pass."""
        self.clock.advance(ms / 1_000)
        await self.tell_time()

    async def tell_time(self) -> None:
        """Let the store have the same time."""
        if self.redis is not None:
            await self.redis.set(self.clock_key, round(self.clock.wall() * 1_000))

    async def reserve(self, *scopes: Scope, tokens: int = 0, usd: float = 0, keep: float = 0) -> Reservation:
        """Ask for one request."""
        return await self.limiter.reserve(scopes, Demand(tokens, round(usd * NANO)), keep=keep)

    async def settle(self, reservation: Reservation, *, tokens: int = 0, usd: float = 0) -> None:
        """Settle, and wait until that has happened."""
        self.limiter.settle(reservation, Demand(tokens, round(usd * NANO)))
        await self._flush()

    async def give_back(self, reservation: Reservation) -> None:
        """Give all of it back, and wait until that has happened."""
        self.limiter.give_back(reservation)
        await self._flush()

    async def promise(self, pace: str = "p", ticket: str = "t", *, work_s: float = 1, at_least_s: float = 0) -> float:
        """Book room."""
        return await self.limiter.promise(pace, ticket, work_s=work_s, at_least_s=at_least_s)

    async def _flush(self) -> None:
        if isinstance(self.limiter, RedisLimiter):
            await self.limiter.flush()


def scope(kind: ScopeKind = "key", name: str = "alice", **limits: Any) -> Scope:
    """Make a scope with limits."""
    return Scope(kind, name, Limits(**limits))


@asynccontextmanager
async def memory_bench() -> AsyncIterator[Bench]:
    """Give a limiter in memory."""
    clock = ManualClock(wall=MORNING)
    yield Bench(MemoryLimiter(clock=clock), clock)


@asynccontextmanager
async def redis_bench(url: str, **options: Any) -> AsyncIterator[Bench]:
    """Give a limiter on a server, with keys of its own; all of the script but its time is the real one."""
    prefix = f"{{llm-api:test-limits-{secrets.token_hex(6)}}}:"
    script, clock_key = script_on_a_clock(prefix)
    settings = RedisSettings(url=SecretStr(url), timeout_s=5)
    limiter = RedisLimiter(
        settings=settings, metrics=Metrics(CollectorRegistry()), prefix=prefix, script=script, **options
    )
    async with open_redis(settings) as redis, limiter.running():
        bench = Bench(limiter, redis=redis, clock_key=clock_key)
        await bench.tell_time()
        yield bench


def script_on_a_clock(prefix: str) -> tuple[str, str]:
    """Return the script with a key's milliseconds for its time, and the key.

    Keys expire on the server's own clock all the same: they have a minute more, in which no test's time may stand.
    """
    clock_key = f"{prefix}clock"
    time = (
        f"(function() local ms = tonumber(redis.call('GET', '{clock_key}'))"
        " return { math.floor(ms / 1000), ms % 1000 * 1000 } end)()"
    )
    script = SCRIPT
    for old, new in (("redis.call('TIME')", time), ("MARGIN = 1000", "MARGIN = 60000")):
        assert script.count(old) == 1
        script = script.replace(old, new)
    return script, clock_key


@asynccontextmanager
async def redis_limiter(url: str, *, prefix: str, timeout_s: float = 5, **options: Any) -> AsyncIterator[RedisLimiter]:
    """Give a limiter on a server, on the server's own clock."""
    settings = RedisSettings(url=SecretStr(url), timeout_s=timeout_s)
    limiter = RedisLimiter(settings=settings, metrics=Metrics(CollectorRegistry()), prefix=prefix, **options)
    async with limiter.running():
        yield limiter
