"""Claims jobs, does them, and says so while it does; what it cannot finish goes back."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from service.config import JobSettings
from service.domain.clock import Clock
from service.domain.job import Beat, Job, JobError, JobOutcome, JobStatus
from service.engine.drain import Drain, Stage
from service.engine.jobs import JobNews, JobRunner, JobStore, NotYet
from service.errors import InternalError, StoreUnavailable
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

POLL_S = 0.25
"""Between two looks at a queue in which there was nothing."""
BEAT_S = 1.0
"""Between two signs of life; a cancelled job is stopped within this time."""
DEPTH_EVERY_BEATS = 5
SETTLE_S = 5.0
"""What a stop gives those that are done to say so, and those that are not to be given back."""
FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 1.0
"""Between two attempts while the store is away: they double from the one to the other."""

T = TypeVar("T")


class _Running:
    """A job that this process works on."""

    task: asyncio.Task[None]

    def __init__(self, job: Job) -> None:
        self.job = job
        self.is_taken_away = False
        """Whether it is not ours any more."""
        self.is_done = False
        """Whether all that is left is to say how it ended."""
        self.is_watched = False
        self._pieces: list[str] = []
        self._has_told = 0

    @property
    def is_ours(self) -> bool:
        """Whether we work on it."""
        return not (self.is_done or self.is_taken_away)

    def add(self, piece: str | None) -> None:
        """Note a piece of its text; None where it begins again."""
        if piece is None:
            self._pieces.clear()
            self._has_told = 0
        else:
            self._pieces.append(piece)

    def beat(self) -> Beat:
        """Return the next sign of life."""
        news = self.is_watched and len(self._pieces) > self._has_told
        if news:
            self._has_told = len(self._pieces)
        return Beat(self.job.id, self.job.fence, "".join(self._pieces) if news else None)


class Worker:
    """Works on as many jobs at once as it may, until it is stopped."""

    def __init__(
        self,
        *,
        store: JobStore,
        runner: JobRunner,
        news: JobNews,
        settings: JobSettings,
        drain: Drain,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._store = store
        self._runner = runner
        self._wake = news.submitted
        self._beat_now = news.cancelled
        self._settings = settings
        self._drain = drain
        self._metrics = metrics
        self._clock = clock
        self._running: dict[str, _Running] = {}
        self._stops_at: float | None = None
        """Monotonic seconds until which the jobs that run may go on, once nothing is claimed any more."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work within the block. On leaving, or when the drain begins, nothing more is claimed.

        What runs then has ``jobs.drain_s`` seconds to finish, and goes back if it does not.
        """
        claiming = asyncio.create_task(
            self._repeated(self._claim, "claiming jobs", lambda: self._stops_at is None), name="claim jobs"
        )
        beating = asyncio.create_task(self._repeated(self._beat, "keeping jobs", lambda: True), name="keep jobs")
        try:
            with self._drain.told(Stage.NOTICED, self._stop_claiming):
                yield
        finally:
            self._stop_claiming()
            await claiming
            await self._stop()
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating

    def _stop_claiming(self) -> None:
        if self._stops_at is None:
            self._stops_at = self._clock.monotonic() + self._settings.drain_s
            self._wake.set()

    async def _repeated(self, step: Callable[[], Awaitable[None]], what: str, goes_on: Callable[[], bool]) -> None:
        backoff_s = FIRST_BACKOFF_S
        is_away = False
        while goes_on():
            try:
                await step()
            except StoreUnavailable as error:
                if not is_away:
                    logger.warning("%s: waiting for the shared store", what, extra={"error": str(error)})
                is_away = True
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            except Exception:  # the outer edge of the task: one defect must not stop all that comes
                logger.exception("%s: defect", what)
                self._metrics.unhandled_errors.labels("job").inc()
                await asyncio.sleep(MAX_BACKOFF_S)
            else:
                if is_away:
                    logger.info("%s: the shared store is back", what)
                is_away = False
                backoff_s = FIRST_BACKOFF_S

    async def _claim(self) -> None:
        self._wake.clear()
        free = self._settings.concurrency - len(self._running)
        jobs = await self._store.claim(free) if free else ()
        for job in await self._confirmed(jobs):
            for other in self._running.values():
                if other.job.id == job.id:  # it was taken from us, while we could not be heard
                    self._take_away(other)
            if job.run == 1:
                self._metrics.job_wait.labels(job.priority).observe(max(0.0, self._clock.wall() - job.created_at))
            elif job.attempts > 1:  # what is given back does not count as one
                self._metrics.jobs_redelivered.inc()
            running = _Running(job)
            running.task = asyncio.create_task(self._do(running), name=f"{job.id} {job.fence}")
            self._running[running.task.get_name()] = running
            # Not left to the task itself: one that is cancelled before it begins never runs.
            running.task.add_done_callback(self._give_place_back)
        if (len(jobs) < free or not free) and self._stops_at is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()

    async def _confirmed(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Say that we have these jobs, before one of them can end this process; return those that are ours."""
        if not jobs:
            return ()
        try:
            answer = await self._store.beat([Beat(job.id, job.fence) for job in jobs])
        except StoreUnavailable:  # the next beat says it
            return jobs
        return [job for job in jobs if job.id not in answer.stopped]

    @staticmethod
    def _take_away(running: _Running) -> None:
        if running.is_ours:
            running.is_taken_away = True
            running.task.cancel()

    def _give_place_back(self, task: asyncio.Task[None]) -> None:
        del self._running[task.get_name()]
        self._wake.set()

    async def _beat(self) -> None:
        for number in range(DEPTH_EVERY_BEATS):
            self._beat_now.clear()
            ours = {running.job.id: running for running in self._running.values() if running.is_ours}
            answer = await self._store.beat([running.beat() for running in ours.values()])
            for job_id in answer.stopped:
                self._take_away(ours[job_id])
            for job_id, running in ours.items():
                running.is_watched = job_id in answer.watched
            if number == 0:
                self._metrics.note_queue(await self._store.depth())
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._beat_now.wait()

    async def _do(self, running: _Running) -> None:
        job = running.job
        began = self._clock.monotonic()
        try:
            outcome = await self._outcome(running)
        except asyncio.CancelledError:
            if running.is_taken_away:
                self._metrics.jobs_taken_away.inc()
                return
            # The process stops.
            self._metrics.jobs_put_back.labels("stop").inc()
            await self._settled(lambda: self._store.release(job))
            return
        except NotYet as later:
            wait_s, is_setback = later.wait_s, later.is_setback
            running.is_done = True
            self._metrics.jobs_put_back.labels("setback" if is_setback else "wait").inc()
            await self._settled(lambda: self._store.release(job, wait_s=wait_s, is_setback=is_setback))
            return
        except Exception:  # the outer edge of the task: a defect must not take the worker with it
            logger.exception("job failed by a defect", extra=self._runner.log_fields(job))
            self._metrics.unhandled_errors.labels("job").inc()
            defect = JobError(InternalError.code, "the job failed by a defect of the service", retryable=False)
            outcome = JobOutcome(JobStatus.FAILED, error=defect)
        running.is_done = True
        if await self._settled(lambda: self._store.finish(job, outcome)):
            self._metrics.jobs_finished.labels(outcome.status.value).inc()
            self._metrics.job_run.observe(self._clock.monotonic() - began)
        else:
            logger.warning("a result came too late: the job was not ours any more", extra=self._runner.log_fields(job))
            self._metrics.jobs_taken_away.inc()

    async def _outcome(self, running: _Running) -> JobOutcome:
        """Do a job. A cancellation that nobody asked this task for is a defect of whoever raised it."""
        try:
            return await self._runner.run(running.job, running.add)
        except asyncio.CancelledError as error:
            if running.task.cancelling():
                raise
            raise AssertionError("cancelled by nobody") from error

    async def _settled(self, step: Callable[[], Awaitable[T]]) -> T:
        """Say to the store how a job ended, as often as it takes."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                return await step()
            except StoreUnavailable:
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    async def _stop(self) -> None:
        tasks = [running.task for running in self._running.values()]
        left_s = 0.0 if self._stops_at is None else self._stops_at - self._clock.monotonic()
        if tasks and left_s > 0:
            await asyncio.wait(tasks, timeout=left_s)
        unfinished = [running for running in self._running.values() if not running.is_done]
        for running in unfinished:
            running.task.cancel()
        if unfinished:
            logger.info("jobs go back into the queue", extra={"jobs": len(unfinished)})
        if self._running:
            await asyncio.wait([running.task for running in self._running.values()], timeout=SETTLE_S)
        late = [running.task for running in self._running.values()]
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        if late:
            logger.error("the store took no word of jobs that ended: they run again", extra={"jobs": len(late)})
