"""How long Redis takes is told by families of commands, of which no caller can make more."""

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from service.config import RedisSettings
from service.storage.redis import open_redis
from service.telemetry.metrics import REDIS_COMMANDS, Metrics
from tests.support.redis_server import own_redis


def counts(metrics: Metrics) -> dict[str, float]:
    name = "llm_api_redis_command_seconds_count"
    return {
        family: count
        for family in REDIS_COMMANDS
        if (count := metrics.registry.get_sample_value(name, {"family": family}))
    }


async def use(redis: Redis) -> None:
    await redis.set("a", "1")
    await redis.get("a")
    await redis.eval("return 1", 0)
    await redis.xadd("s", {"a": "1"})
    await redis.xread({"s": "$"}, block=10)
    await redis.xread({"s": "0"})
    await redis.ping()
    async with redis.pipeline() as together:
        together.set("b", "1")
        together.get("b")
        await together.execute()
    with pytest.raises(ResponseError):
        await redis.get("s")


async def test_commands_are_told_by_family_and_waits_for_news_are_not(redis_url: str) -> None:
    metrics = Metrics(CollectorRegistry())
    async with open_redis(RedisSettings(url=SecretStr(redis_url), timeout_s=5), metrics=metrics) as redis:
        await use(redis)
    assert counts(metrics) == {"write": 1, "read": 2, "script": 1, "stream": 2, "other": 1, "pipeline": 1}


async def test_a_command_that_is_not_answered_is_told_as_long_as_it_was_waited_for() -> None:
    metrics = Metrics(CollectorRegistry())
    with own_redis() as server:
        async with open_redis(RedisSettings(url=SecretStr(server.url), timeout_s=0.2), metrics=metrics) as redis:
            await redis.ping()
            server.freeze()
            with pytest.raises(TimeoutError):
                await redis.get("a")
            server.thaw()
    found = metrics.registry.get_sample_value("llm_api_redis_command_seconds_bucket", {"family": "read", "le": "0.1"})
    assert (found, counts(metrics)["read"]) == (0, 1)
