"""Following a background job: every change that can be seen, until it is over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.domain.job import Job
from service.domain.principal import Principal
from service.engine.drain import Drain, Stage
from service.engine.jobs import JobService

LOOK_EVERY_S = 0.5
"""The worker tells its progress once a second."""


@asynccontextmanager
async def watched(
    jobs: JobService, job_id: str, principal: Principal, drain: Drain
) -> AsyncIterator[AsyncIterator[Job]]:
    """Give the job as it stands, and as it stands after each change; the last one is over.

    Raises on entering what :meth:`JobService.get` does, and ``Draining`` later, where this process stops and another
    has to be asked.
    """
    first = await jobs.get(job_id, principal, watching=True)
    stopping = asyncio.Event()
    with drain.told(Stage.REFUSING, stopping.set):
        yield _changes(jobs, first, principal, stopping, drain)


async def _changes(
    jobs: JobService, job: Job, principal: Principal, stopping: asyncio.Event, drain: Drain
) -> AsyncIterator[Job]:
    yield job
    while not job.status.final:
        try:
            async with asyncio.timeout(LOOK_EVERY_S):
                await stopping.wait()
        except TimeoutError:
            pass
        else:
            raise drain.error()
        before, job = job, await jobs.get(job.id, principal, watching=True)
        if job != before:
            yield job
