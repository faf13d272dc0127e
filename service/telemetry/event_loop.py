"""How late the event loop is: whoever computes in it holds up everybody else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.domain.background import in_background
from service.telemetry.metrics import Metrics

EVERY_S = 0.25
"""Between two looks."""


@asynccontextmanager
async def watching_event_loop(metrics: Metrics) -> AsyncIterator[None]:
    """Measure within the block how much later than asked for a task is woken."""
    async with in_background(_watch(metrics), name="watch the event loop"):
        yield


async def _watch(metrics: Metrics) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + EVERY_S
        await asyncio.sleep(EVERY_S)
        metrics.event_loop_lag.observe(max(0.0, loop.time() - due))
