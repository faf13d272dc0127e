"""Background jobs: accepting, doing, telling, cancelling; the queue behind them is a port."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Protocol

from service.domain.clock import Clock
from service.domain.generation import Completion, GenerationRequest
from service.domain.job import Job
from service.domain.principal import Principal, RequestContext
from service.engine.generation import GenerationService
from service.errors import CircuitOpen, JobNotFound, Overloaded, RateLimited, StoreUnavailable, UpstreamThrottled

LIMIT_WAIT_S = 60.0
"""A job waits so long for its turn at a limit, again and again; for a budget that is spent it does not."""
_PASSING = (Overloaded, CircuitOpen, UpstreamThrottled)
"""What a job waits for, however long it takes: it has time."""


class JobQueue(Protocol):
    """Where jobs wait, and what remembers them."""

    async def submit(self, job: Job) -> None:
        """Accept a job; raise ``Overloaded`` when the queue is full. An accepted job is done, or says why not."""
        ...

    async def get(self, job_id: str) -> Job | None:
        """Return the job as it stands, or None if it is unknown or forgotten."""
        ...

    async def cancel(self, job_id: str) -> Job | None:
        """End a job that is not over yet, its upstream call included; return it as it stands then."""
        ...


class JobService:
    """What callers can do with jobs. A job belongs to the principal that submitted it."""

    def __init__(self, *, queue: JobQueue, generation: GenerationService, clock: Clock) -> None:
        self._queue = queue
        self._generation = generation
        self._clock = clock

    async def submit(self, request: GenerationRequest, context: RequestContext) -> Job:
        """Accept a generation to be done later; raise ``ModelNotFound`` or ``Overloaded``."""
        self._generation.check_model(request.model, context)
        job = Job(
            id=f"job_{secrets.token_urlsafe(18)}",
            principal=context.principal,
            request=request,
            created_at=self._clock.wall(),
        )
        await self._queue.submit(job)
        return job

    async def get(self, job_id: str, principal: Principal) -> Job:
        """Return a job of the principal's; raise ``JobNotFound``, for someone else's too."""
        return self._owned(job_id, await self._queue.get(job_id), principal)

    async def cancel(self, job_id: str, principal: Principal) -> Job:
        """Cancel a job of the principal's; one that is over stays as it is. Raise ``JobNotFound``."""
        self._owned(job_id, await self._queue.get(job_id), principal)
        return self._owned(job_id, await self._queue.cancel(job_id), principal)

    @staticmethod
    def _owned(job_id: str, job: Job | None, principal: Principal) -> Job:
        if job is None or job.principal.name != principal.name:
            raise JobNotFound(f"there is no job {job_id!r}")
        return job


class JobRunner:
    """Does one job: what a queue calls when a job's turn has come.

    A job was accepted already, so it does not fail at a limit that soon lets it through: it waits for that.
    """

    def __init__(
        self, *, generation: GenerationService, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._generation = generation
        self._sleep = sleep

    async def __call__(self, job: Job) -> Completion:
        """Generate what the job asks for; raise any ``ServiceError``."""
        context = RequestContext(request_id=job.id, principal=job.principal, background=True)
        while True:
            try:
                return await self._generation.complete(job.request, context)
            except RateLimited as error:
                wait_s = error.retry_after_s
                if wait_s is None or wait_s > LIMIT_WAIT_S:
                    raise
                await self._sleep(wait_s)
            except _PASSING as error:
                await self._sleep(error.retry_after_s or 1.0)
            except StoreUnavailable as error:
                if error.retry_after_s is None:
                    raise
                await self._sleep(min(LIMIT_WAIT_S, error.retry_after_s))
