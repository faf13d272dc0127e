"""Tells callers' servers how their jobs ended, until they have heard it."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from service.domain.job import DueWebhook, Job
from service.engine.jobs import JobStore
from service.errors import StoreUnavailable
from service.telemetry.metrics import Metrics
from service.webhooks.sender import Sent

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
AT_ONCE = 20
"""Messages that one process sends at a time."""
HOLD_SPARE_S = 30.0
"""Beyond what a receiver may take: a process that dies in between leaves its message to others after that."""
RETRIES_S = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""The waits of the specification; the result, and with it the message, is kept for ``jobs.result_ttl_s`` alone."""
JITTER = 0.1


class Sender(Protocol):
    """Sends one message."""

    async def send(self, url: str, message_id: str, body: bytes) -> tuple[Sent, str]:
        """Tell what became of it, and why in a few words."""
        ...


class WebhookDelivery:
    """Sends what is due, and notes what became of it. At least once: a receiver tells repetitions by ``webhook-id``."""

    def __init__(
        self,
        *,
        store: JobStore,
        sender: Sender,
        write: Callable[[Job], bytes],
        timeout_s: float,
        metrics: Metrics,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._sender = sender
        self._write = write
        self._hold_s = timeout_s + HOLD_SPARE_S
        self._metrics = metrics
        self._chance = chance

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Deliver within the block; what is on its way at the end goes out once more, from elsewhere."""
        task = asyncio.create_task(self._repeat(), name="deliver webhooks")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _repeat(self) -> None:
        while True:
            try:
                due = await self._store.due_webhooks(AT_ONCE, self._hold_s)
                await asyncio.gather(*(self.deliver(webhook) for webhook in due))
            except StoreUnavailable:
                due = ()  # the loop that works on jobs tells of it
            except Exception:  # the outer edge of the task: one defect must not stop all that comes
                logger.exception("webhooks: defect")
                self._metrics.unhandled_errors.labels("job").inc()
                due = ()
            if len(due) < AT_ONCE:
                await asyncio.sleep(LOOK_EVERY_S)

    async def deliver(self, due: DueWebhook) -> None:
        """Make one attempt."""
        job, attempt = due
        if job.webhook is None:
            raise AssertionError("only jobs with an address are in the outbox")
        sent, why = await self._sender.send(job.webhook, f"msg_{job.id}", self._write(job))
        self._metrics.webhooks.labels(sent.value).inc()
        if sent is Sent.DELIVERED:
            await self._store.settle_webhook(job.id, "delivered")
        elif sent is Sent.REFUSED or attempt > len(RETRIES_S):
            logger.warning("a webhook is given up", extra={"job_id": job.id, "attempt": attempt, "reason": why})
            await self._store.settle_webhook(job.id, "failed")
        else:
            wait_s = RETRIES_S[attempt - 1] * (1 + JITTER * self._chance())
            await self._store.settle_webhook(job.id, "pending", wait_s=wait_s)
