"""The worker's loop: what it begins, how it says that it lives, and what it leaves behind when it stops."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from typing_extensions import override

from service.config import DrainSettings, JobSettings
from service.domain.clock import SystemClock
from service.domain.job import Beat, BeatAnswer, Job, JobOutcome, JobStatus
from service.engine.drain import Drain
from service.engine.jobs import JobNews, NotYet
from service.errors import StoreUnavailable
from service.storage.memory_jobs import MemoryJobStore
from service.telemetry.metrics import Metrics
from service.worker import loop
from service.worker.loop import Worker
from tests.support.fake_app import DEADLINE_S, until

DONE = JobOutcome(JobStatus.COMPLETE, answer=b"{}")


class ShakyStore(MemoryJobStore):
    """A store that is away when it is told to be."""

    is_away = False
    beats: Sequence[Beat] = ()
    released: list[float]

    @override
    async def claim(self, count: int) -> Sequence[Job]:
        self._look()
        return await super().claim(count)

    @override
    async def beat(self, beats: Sequence[Beat]) -> BeatAnswer:
        self._look()
        self.beats = beats
        return await super().beat(beats)

    @override
    async def finish(self, job: Job, outcome: JobOutcome) -> bool:
        self._look()
        return await super().finish(job, outcome)

    @override
    async def release(self, job: Job, *, wait_s: float = 0.0, is_setback: bool = False) -> bool:
        self._look()
        self.released.append(wait_s)
        return await super().release(job, wait_s=wait_s, is_setback=is_setback)

    def _look(self) -> None:
        if self.is_away:
            raise StoreUnavailable("away")


@dataclass
class Bench:
    """A worker, and what its jobs do: each waits until it is told how to end."""

    settings: JobSettings = field(default_factory=lambda: JobSettings(concurrency=2, drain_s=0.2))
    begun: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    outcomes: "dict[str, asyncio.Future[JobOutcome]]" = field(default_factory=dict)
    progress: dict[str, Callable[[str | None], object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.store = ShakyStore(self.settings, SystemClock())
        self.store.released = []
        self.news = JobNews()
        self.drain = Drain(DrainSettings(delay_s=0, timeout_s=1))

    def log_fields(self, job: Job) -> dict[str, str]:
        return {"job_id": job.id}

    async def run(self, job: Job, progress: Callable[[str | None], object]) -> JobOutcome:
        self.begun.append(job.id)
        self.progress[job.id] = progress
        try:
            return await self.outcome(job.id)
        except asyncio.CancelledError:
            self.cancelled.append(job.id)
            self.outcomes.pop(job.id, None)
            raise

    def outcome(self, job_id: str) -> "asyncio.Future[JobOutcome]":
        return self.outcomes.setdefault(job_id, asyncio.get_running_loop().create_future())

    async def submit(self) -> str:
        job_id = f"job_{secrets.token_hex(4)}"
        await self.store.submit(Job(job_id, "alice", "/generate", b"{}"))
        self.news.submitted.set()
        return job_id

    async def status(self, job_id: str) -> JobStatus:
        job = await self.store.get(job_id)
        assert isinstance(job, Job)
        return job.status

    async def stands(self, job_id: str, status: JobStatus) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while await self.status(job_id) is not status:  # noqa: ASYNC110 - it is what a caller does
                await asyncio.sleep(0.005)

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        worker = Worker(
            store=self.store,
            runner=self,  # type: ignore[arg-type] # all that the loop asks of a runner
            news=self.news,
            settings=self.settings,
            drain=self.drain,
            metrics=self.metrics,
            clock=SystemClock(),
        )
        async with worker.running():
            yield


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(loop, "BEAT_S", 0.02)
    monkeypatch.setattr(loop, "SETTLE_S", 0.3)
    return Bench()


async def test_it_works_on_no_more_at_once_than_it_may(bench: Bench) -> None:
    ids = [await bench.submit() for _ in range(4)]
    async with bench.working():
        await until(lambda: len(bench.begun) == 2)
        await asyncio.sleep(0.05)
        assert bench.begun == ids[:2]
        bench.outcome(ids[1]).set_result(DONE)
        await until(lambda: len(bench.begun) == 3)
        for job_id in (ids[0], ids[2], ids[3]):
            bench.outcome(job_id).set_result(DONE)
        for job_id in ids:
            await bench.stands(job_id, JobStatus.COMPLETE)
    assert bench.begun == ids
    assert bench.value("llm_api_jobs_finished_total", status="complete") == 4


async def test_what_was_submitted_beside_it_is_begun_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "POLL_S", 3_600.0)
    async with bench.working():
        await asyncio.sleep(0.01)
        job_id = await bench.submit()
        await until(lambda: bench.begun == [job_id])


async def test_what_was_submitted_elsewhere_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "POLL_S", 0.02)
    async with bench.working():
        await asyncio.sleep(0.01)
        job_id = await bench.submit()
        bench.news.submitted.clear()
        await until(lambda: bench.begun == [job_id])


async def test_a_job_that_was_cancelled_is_stopped(bench: Bench) -> None:
    job_id = await bench.submit()
    async with bench.working():
        await until(lambda: bench.begun == [job_id])
        await bench.store.cancel(job_id)
        await until(lambda: bench.cancelled == [job_id])
        assert await bench.status(job_id) is JobStatus.CANCELLED
        assert bench.store.released == []
        await until(lambda: bench.value("llm_api_jobs_taken_away_total") == 1)


async def test_the_store_hears_of_a_job_before_it_is_begun(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    beat, begun = bench.store.beat, []

    async def after_a_cancel(beats: Sequence[Beat]) -> BeatAnswer:
        if beats:
            begun.append(list(bench.begun))
            await bench.store.cancel(taken)
        return await beat(beats)

    monkeypatch.setattr(bench.store, "beat", after_a_cancel)
    monkeypatch.setattr(loop, "BEAT_S", DEADLINE_S)
    async with bench.working():
        await asyncio.sleep(0.01)
        taken, job_id = await bench.submit(), await bench.submit()
        await until(lambda: bool(bench.begun))
        assert begun == [[]]
        assert bench.begun == [job_id]


async def test_a_watched_job_tells_its_text_and_only_when_there_is_more(bench: Bench) -> None:
    job_id = await bench.submit()
    async with bench.working():
        await until(lambda: bench.begun == [job_id])
        bench.progress[job_id]("Hel")
        await asyncio.sleep(0.05)
        assert [beat.progress for beat in bench.store.beats] == [None]
        await bench.store.get(job_id, watching=True)
        await until(lambda: [beat.progress for beat in bench.store.beats] == ["Hel"])
        await until(lambda: [beat.progress for beat in bench.store.beats] == [None])
        bench.progress[job_id](None)
        bench.progress[job_id]("Bye")
        await until(lambda: [beat.progress for beat in bench.store.beats] == ["Bye"])


async def test_a_job_that_has_to_wait_goes_back(bench: Bench) -> None:
    job_id = await bench.submit()
    async with bench.working():
        await until(lambda: bench.begun == [job_id])
        bench.outcomes.pop(job_id).set_exception(NotYet(0.05))
        await until(lambda: len(bench.begun) == 2)
    assert bench.store.released[0] == 0.05


async def test_a_defect_fails_the_job_and_not_the_worker(bench: Bench) -> None:
    bad, good = await bench.submit(), await bench.submit()
    async with bench.working():
        bench.outcome(bad).set_exception(RuntimeError("boom"))
        bench.outcome(good).set_result(DONE)
        await bench.stands(bad, JobStatus.FAILED)
        await bench.stands(good, JobStatus.COMPLETE)
    job = await bench.store.get(bad)
    assert isinstance(job, Job)
    assert job.error is not None
    assert (job.error.code, "boom" in job.error.detail) == ("internal_error", False)
    assert bench.value("llm_api_unhandled_errors_total", place="job") == 1


async def test_a_cancellation_that_nobody_asked_for_is_a_defect(bench: Bench) -> None:
    job_id = await bench.submit()
    async with bench.working():
        await until(lambda: bench.begun == [job_id])
        bench.outcome(job_id).cancel()
        await bench.stands(job_id, JobStatus.FAILED)
    assert bench.store.released == []
    assert bench.value("llm_api_unhandled_errors_total", place="job") == 1


async def test_a_job_that_comes_back_to_a_worker_that_was_not_heard_is_worked_on_once(bench: Bench) -> None:
    job_id = await bench.submit()
    async with bench.working():
        await until(lambda: bench.begun == [job_id])
        job = await bench.store.get(job_id)
        assert isinstance(job, Job)
        # What the store does when the lease is over.
        await MemoryJobStore.release(bench.store, job)
        bench.news.submitted.set()
        await until(lambda: len(bench.begun) == 2)
        assert bench.cancelled == [job_id]
        await asyncio.sleep(0.05)
        assert len(bench.begun) == 2
        bench.outcome(job_id).set_result(DONE)
        await bench.stands(job_id, JobStatus.COMPLETE)


async def test_a_stop_lets_what_runs_finish_and_begins_nothing(bench: Bench) -> None:
    first, second, third = [await bench.submit() for _ in range(3)]
    async with bench.working():
        await until(lambda: len(bench.begun) == 2)
        stopping = asyncio.create_task(bench.drain.run())
        await asyncio.sleep(0.01)
        bench.outcome(first).set_result(DONE)
        bench.outcome(second).set_result(DONE)
        await stopping
    assert [await bench.status(job_id) for job_id in (first, second)] == [JobStatus.COMPLETE] * 2
    assert await bench.status(third) is JobStatus.QUEUED
    assert bench.begun == [first, second]


async def test_a_stop_gives_back_what_takes_too_long(bench: Bench) -> None:
    job_id = await bench.submit()
    async with bench.working():
        await until(lambda: bench.begun == [job_id])
    assert bench.cancelled == [job_id]
    job = await bench.store.get(job_id)
    assert isinstance(job, Job)
    assert (job.status, job.attempts) == (JobStatus.QUEUED, 0)


async def test_a_result_outlives_an_outage_of_the_store(bench: Bench) -> None:
    job_id = await bench.submit()
    async with bench.working():
        await until(lambda: bench.begun == [job_id])
        bench.store.is_away = True
        bench.outcome(job_id).set_result(DONE)
        await asyncio.sleep(0.15)
        assert await bench.status(job_id) is JobStatus.IN_PROGRESS
        bench.store.is_away = False
        await bench.stands(job_id, JobStatus.COMPLETE)
    assert bench.begun == [job_id]


async def test_a_stop_with_the_store_away_ends_in_its_time(bench: Bench) -> None:
    job_id = await bench.submit()
    async with asyncio.timeout(DEADLINE_S), bench.working():
        await until(lambda: bench.begun == [job_id])
        bench.store.is_away = True
    assert bench.cancelled == [job_id]


async def test_the_queues_depth_is_shown(bench: Bench) -> None:
    for _ in range(3):
        await bench.submit()
    async with bench.working():
        await until(lambda: bench.value("llm_api_jobs_running") == 2)
        await until(lambda: bench.value("llm_api_jobs_waiting", priority="interactive") == 1)
        assert bench.value("llm_api_jobs_oldest_wait_seconds") > 0


async def test_nothing_is_left_running(bench: Bench) -> None:
    before: set[asyncio.Task[Any]] = asyncio.all_tasks()
    async with bench.working():
        await bench.submit()
        await until(lambda: len(bench.begun) == 1)
    assert asyncio.all_tasks() == before
