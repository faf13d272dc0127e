"""Tells callers' servers how their jobs ended, until they have heard it."""

import asyncio
import logging
import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import accumulate
from typing import Protocol

from service.domain.clock import Clock
from service.domain.job import DueWebhook, Job
from service.engine.jobs import JobStore
from service.errors import StoreUnavailable
from service.telemetry.metrics import Metrics
from service.webhooks.sender import Sent

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
HELD = 128
"""Messages that one process has at a time, for all callers."""
HELD_EACH = 8
"""Of one caller's: more of them go back to the store, so that others' come up."""
AT_ONCE_EACH = 4
"""Of one caller's, being sent; the others that are held wait for these."""
PACE_S = 0.25
"""What a message is thought to take before one was sent; a guess."""
PUT_BACK_MAX_S = 300.0
"""After so long at the latest a message comes again for which there was no room: its receiver may be quick by then."""
HOLD_SPARE_S = 30.0
"""Beyond what receivers may take: a process that dies in between leaves its message to others after that."""
RETRIES_S = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""The waits of the specification; the result, and with it the message, is kept for ``jobs.result_ttl_s`` alone."""
JITTER = 0.1


class Sender(Protocol):
    """Sends one message."""

    async def send(self, url: str, message_id: str, body: bytes) -> tuple[Sent, str]:
        """Tell what became of it, and why in a few words."""
        ...


class WebhookDelivery:
    """Sends what is due, and notes what became of it. At least once: a receiver tells repetitions by ``webhook-id``.

    A caller whose receivers hang has a few messages on their way and delays nobody else's.
    """

    def __init__(
        self,
        *,
        store: JobStore,
        sender: Sender,
        write: Callable[[Job], bytes],
        timeout_s: float,
        clock: Clock,
        metrics: Metrics,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._sender = sender
        self._write = write
        self._hold_s = timeout_s * HELD_EACH / AT_ONCE_EACH + HOLD_SPARE_S
        self._clock = clock
        self._metrics = metrics
        self._chance = chance
        self._held: set[asyncio.Task[None]] = set()
        self._sent = asyncio.Event()
        """Whether there is room that there was not before."""
        self._callers: defaultdict[str, _Caller] = defaultdict(_Caller)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Deliver within the block; what is on its way at the end goes out once more, from elsewhere."""
        looking = asyncio.create_task(self._repeat(), name="deliver webhooks")
        try:
            yield
        finally:
            tasks = (looking, *self._held)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _repeat(self) -> None:
        while True:
            room = HELD - len(self._held)
            taken = 0
            with self._outlived():
                due = await self._store.due_webhooks(room, self._hold_s) if room else ()
                for webhook in due:
                    await self._take(webhook)
                taken = len(due)
            if taken == room > 0:
                continue  # there may be more
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._sent.wait()
            self._sent.clear()

    async def _take(self, due: DueWebhook) -> None:
        """Send a message in its caller's turn, or put it back where too many of that caller's are held."""
        caller = self._callers[due.job.principal]
        if caller.held >= HELD_EACH:
            wait_s = caller.wait_s(self._clock.monotonic())
            await self._store.settle_webhook(due.job.id, "pending", wait_s=wait_s)
            return
        caller.held += 1
        task = asyncio.create_task(self._hold(due, caller), name=f"webhook of {due.job.id}")
        self._held.add(task)
        task.add_done_callback(self._held.discard)

    async def _hold(self, due: DueWebhook, caller: "_Caller") -> None:
        try:
            with self._outlived():
                async with caller.turns:
                    began_at = self._clock.monotonic()
                    await self.deliver(due)
                    caller.took(self._clock.monotonic() - began_at)
        finally:
            caller.held -= 1
            self._sent.set()

    @contextmanager
    def _outlived(self) -> Iterator[None]:
        """Go on after what fails within: what is due comes up again when nobody holds it any more."""
        try:
            yield
        except StoreUnavailable:
            pass  # the loop that works on jobs tells of it
        except Exception:  # the outer edge of the task: one defect must not stop all that comes
            logger.exception("webhooks: defect")
            self._metrics.unhandled_errors.labels("job").inc()

    async def deliver(self, due: DueWebhook) -> None:
        """Make one attempt."""
        job, attempt = due
        if job.webhook is None:
            raise AssertionError("only jobs with an address are in the outbox")
        sent, why = await self._sender.send(job.webhook, message_id(job), self._write(job))
        self._metrics.webhooks.labels(sent.value).inc()
        retry = self._retry(due)
        if sent is Sent.DELIVERED:
            await self._store.settle_webhook(job.id, "delivered")
        elif sent is Sent.REFUSED or retry >= len(RETRIES_S):
            logger.warning("a webhook is given up", extra={"job_id": job.id, "attempt": attempt, "reason": why})
            await self._store.settle_webhook(job.id, "failed")
        else:
            wait_s = RETRIES_S[retry] * (1 + JITTER * self._chance())
            await self._store.settle_webhook(job.id, "pending", wait_s=wait_s)

    def _retry(self, due: DueWebhook) -> int:
        """Return which retry comes next, from 0: by attempts or by time, whichever is less.

        What was put back was counted as an attempt, and what could not be sent for long was not tried.
        """
        age_s = self._clock.wall() - (due.job.finished_at or 0.0)
        return min(due.attempt - 1, bisect_right(tuple(accumulate(RETRIES_S)), age_s))


class _Caller:
    """What one process has to do with a caller's messages."""

    def __init__(self) -> None:
        self.turns = asyncio.Semaphore(AT_ONCE_EACH)
        self.held = 0
        self._pace_s = PACE_S
        self._booked_at = 0.0
        """Monotonic seconds at which the last message that was put back comes again."""

    def took(self, duration_s: float) -> None:
        """Learn how long a message takes."""
        self._pace_s = (self._pace_s + duration_s) / 2

    def wait_s(self, now: float) -> float:
        """Return when there is room for one more: each comes as much later as one takes."""
        self._booked_at = max(self._booked_at, now + self._pace_s) + self._pace_s / AT_ONCE_EACH
        self._booked_at = min(self._booked_at, now + PUT_BACK_MAX_S)
        return self._booked_at - now


def message_id(job: Job) -> str:
    """Return what all messages of a job have, and none of a later job that has its id, from an idempotency key."""
    return f"msg_{job.id}_{round(job.created_at * 1_000)}"
