"""Following a background job: every change that can be seen, until it is over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.domain.job import Job
from service.domain.principal import Principal
from service.engine.drain import Drain, Stage
from service.engine.jobs import JobService
from service.errors import StoreUnavailable

LOOK_EVERY_S = 0.5
"""The worker tells its progress once a second."""
FAILED_LOOKS_MAX = 10
"""Looks in a row that the store does not answer; the job goes on meanwhile."""


@asynccontextmanager
async def watched(
    jobs: JobService, job_id: str, principal: Principal, drain: Drain
) -> AsyncIterator[AsyncIterator[Job]]:
    """Give the job as it stands, and as it stands after each change; the last one is over.

    Raises on entering what :meth:`JobService.get` does. Later ``Draining``, where this process stops and another has to
    be asked, and ``StoreUnavailable`` where the store is away for long.
    """
    first = await jobs.get(job_id, principal, watching=True)
    stopping = asyncio.Event()
    with drain.told(Stage.REFUSING, stopping.set):
        yield _changes(jobs, first, principal, stopping, drain)


async def _changes(
    jobs: JobService, job: Job, principal: Principal, stopping: asyncio.Event, drain: Drain
) -> AsyncIterator[Job]:
    yield job
    failed_looks = 0
    while not job.status.final:
        try:
            async with asyncio.timeout(LOOK_EVERY_S):
                await stopping.wait()
        except TimeoutError:
            pass
        else:
            raise drain.error()
        before = job
        try:
            job = await jobs.get(job.id, principal, watching=True)
        except StoreUnavailable:
            failed_looks += 1
            if failed_looks > FAILED_LOOKS_MAX:
                raise
            continue
        failed_looks = 0
        if job != before:
            yield job
