"""A process that keeps limits in a shared store and does nothing else: to be run several times, and killed."""

import asyncio
import json
import random
import sys
import time
from contextlib import suppress
from typing import Any

from service.admission.base import LimitReached
from service.admission.redis import RedisLimiter
from service.domain.limits import Demand, Limits, Scope
from tests.support.limiters import redis_limiter

WORKERS = 20
TOKENS = 10
"""As each request is estimated."""


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


async def load(limiter: RedisLimiter, scope: Scope, *, count: int, over_s: float) -> None:
    """Ask so many times, evenly over so many seconds, whatever the answers; tell how many passed, and when.

    The store decided over no less than the ``inner`` time, and no more than the ``outer``.
    """
    loop = asyncio.get_running_loop()
    admitted = 0
    started: list[float] = []
    ended: list[float] = []

    async def ask() -> None:
        nonlocal admitted
        started.append(time.time())
        with suppress(LimitReached):
            limiter.settle(await limiter.reserve([scope], Demand()), Demand())
            admitted += 1
        ended.append(time.time())

    await limiter.ping()
    say(ready=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    began = loop.time()
    tasks: set[asyncio.Task[None]] = set()  # those that are over are let go: collecting thousands stops the load
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number * over_s / count - loop.time()))
        task = asyncio.create_task(ask())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    inner, outer = (min(ended), max(started)), (min(started), max(ended))
    say(admitted=admitted, asked=count, inner=inner, outer=outer)


async def churn(limiter: RedisLimiter, scope: Scope) -> None:
    """Ask, run and leave at any moment, for ever; tell of each hundred that left."""
    left = 0

    async def one(chance: random.Random) -> None:
        reservation = await limiter.reserve([scope], Demand(tokens=TOKENS))
        try:
            await asyncio.sleep(chance.expovariate(500))
        finally:
            limiter.settle(reservation, Demand())  # so that what is missing in the end is of those that were killed

    async def worker(chance: random.Random) -> None:
        nonlocal left
        while True:
            request = asyncio.create_task(one(chance))
            await asyncio.wait([request], timeout=chance.expovariate(1_000))
            request.cancel()
            with suppress(asyncio.CancelledError, LimitReached):
                await request
            left += 1
            if left % 100 == 0:
                say(left=100)

    await asyncio.gather(*(worker(random.Random()) for _ in range(WORKERS)))  # noqa: S311 - any will do


async def main(url: str, prefix: str, options: dict[str, Any]) -> None:
    scope = Scope("key", "alice", Limits(**options["limits"]))
    async with redis_limiter(url, prefix=prefix, lease_s=options["lease_s"]) as limiter:
        if "count" in options:
            await load(limiter, scope, count=options["count"], over_s=options["over_s"])
        else:
            await churn(limiter, scope)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
