"""How much waits in the background, told by processes that do none of it: whoever works on it may be dead."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.domain.background import in_background
from service.engine.jobs import JobStore
from service.errors import StoreUnavailable
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

EVERY_S = 15.0
"""Between two looks: one round trip for each process, and as often as most are scraped."""


@asynccontextmanager
async def watching_queue(store: JobStore, metrics: Metrics, *, every_s: float = EVERY_S) -> AsyncIterator[None]:
    """Show within the block how many jobs wait, and how long the oldest does.

    While the store is away the gauges stay as they were: what waits there is not gone.
    """
    async with in_background(_watch(store, metrics, every_s), name="watch the queue of jobs"):
        yield


async def _watch(store: JobStore, metrics: Metrics, every_s: float) -> None:
    while True:
        try:
            metrics.note_queue(await store.depth())
        except StoreUnavailable:
            pass  # whoever needs the store says so
        except Exception:  # the outer edge of the task: one defect must not end what an alert looks at
            logger.exception("watching the queue of jobs: defect")
            metrics.unhandled_errors.labels("job").inc()
        await asyncio.sleep(every_s)
