"""The job queue of a single process: everything is lost when it ends."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from service.domain.clock import Clock
from service.domain.generation import Completion
from service.domain.job import Job, JobError, JobStatus
from service.errors import Overloaded, ServiceError
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

RETRY_AFTER_FULL_S = 5.0
"""What a caller is told when the queue is full; a guess, since jobs' lengths are not known."""
REMEMBERED_MIN = 1_000
"""Finished jobs that are remembered however short the queue may be."""


class MemoryJobQueue:
    """Keeps jobs in memory and does at most ``concurrency`` of them at once, in the order of their coming.

    At most ``queue_max`` jobs wait. As many finished ones are remembered, and ``REMEMBERED_MIN`` in any case; beyond
    that the oldest are forgotten. A stop waits ``drain_s`` seconds for those that run.
    """

    def __init__(
        self,
        run: Callable[[Job], Awaitable[Completion]],
        *,
        concurrency: int,
        queue_max: int,
        result_ttl_s: float,
        metrics: Metrics,
        clock: Clock,
        drain_s: float,
    ) -> None:
        self._run = run
        self._concurrency = concurrency
        self._queue_max = queue_max
        self._remembered_max = max(queue_max, REMEMBERED_MIN)
        self._result_ttl_s = result_ttl_s
        self._metrics = metrics
        self._clock = clock
        self._drain_s = drain_s
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[str] = deque()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._finished: deque[tuple[float, str]] = deque()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["MemoryJobQueue"]:
        """Give the queue; on leaving, let the jobs that run end, for a bounded time, and drop those that wait."""
        try:
            yield self
        finally:
            lost = len(self._waiting)
            self._waiting.clear()
            running = list(self._running.values())
            if running:
                _, unfinished = await asyncio.wait(running, timeout=self._drain_s)
                lost += len(unfinished)
                for task in unfinished:
                    task.cancel()
                await asyncio.gather(*unfinished, return_exceptions=True)
            if lost:
                logger.warning("jobs are lost with this process, which kept them in memory", extra={"jobs": lost})

    async def submit(self, job: Job) -> None:
        """See :class:`service.engine.jobs.JobQueue`."""
        self._forget_old()
        if len(self._waiting) >= self._queue_max:
            raise Overloaded(
                f"{self._queue_max} jobs are waiting already; try again later", retry_after_s=RETRY_AFTER_FULL_S
            )
        self._jobs[job.id] = job
        self._waiting.append(job.id)
        self._start_waiting()

    async def get(self, job_id: str) -> Job | None:
        """See :class:`service.engine.jobs.JobQueue`."""
        self._forget_old()
        return self._jobs.get(job_id)

    async def cancel(self, job_id: str) -> Job | None:
        """See :class:`service.engine.jobs.JobQueue`."""
        job = self._jobs.get(job_id)
        if job is None or job.status.final:
            return job
        self._finish(replace(job, status=JobStatus.CANCELLED))
        task = self._running.get(job_id)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        else:
            self._waiting.remove(job_id)
        return self._jobs[job_id]

    def _start_waiting(self) -> None:
        while self._waiting and len(self._running) < self._concurrency:
            job = self._jobs[self._waiting.popleft()]
            job = replace(job, status=JobStatus.IN_PROGRESS, started_at=self._clock.wall())
            self._jobs[job.id] = job
            task = asyncio.create_task(self._do(job), name=job.id)
            self._running[job.id] = task
            # Not left to the task itself: one that is cancelled before it begins never runs.
            task.add_done_callback(self._give_place_back)

    async def _do(self, job: Job) -> None:
        try:
            completion = await self._run(job)
        except ServiceError as error:
            self._finish(
                replace(
                    job, status=JobStatus.FAILED, error=JobError(error.code, error.message, retryable=error.retryable)
                )
            )
        except Exception:  # the outer edge of the task: a defect must not take the queue with it
            logger.exception("job failed by a defect", extra={"job_id": job.id})
            self._metrics.unhandled_errors.labels("job").inc()
            defect = JobError("internal_error", "the job failed by a defect of the service", retryable=False)
            self._finish(replace(job, status=JobStatus.FAILED, error=defect))
        else:
            # Nobody asks for the provider's own bytes again, and they are most of what a job weighs.
            self._finish(replace(job, status=JobStatus.COMPLETE, completion=replace(completion, raw=b"")))

    def _give_place_back(self, task: asyncio.Task[None]) -> None:
        del self._running[task.get_name()]
        self._start_waiting()

    def _finish(self, job: Job) -> None:
        if self._jobs[job.id].status.final:  # cancelled while its answer was on the way: the acknowledged cancel stands
            return
        now = self._clock.wall()
        self._jobs[job.id] = replace(job, finished_at=now)
        self._finished.append((now, job.id))
        self._metrics.jobs_finished.labels(job.status.value).inc()

    def _forget_old(self) -> None:
        horizon = self._clock.wall() - self._result_ttl_s
        while self._finished and (self._finished[0][0] < horizon or len(self._finished) > self._remembered_max):
            del self._jobs[self._finished.popleft()[1]]
