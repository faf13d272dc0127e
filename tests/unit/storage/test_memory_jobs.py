"""The job queue of one process: each accepted job ends once, and an acknowledged cancel stands."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry

from service.domain.clock import ManualClock
from service.domain.generation import Choice, Completion, FinishReason, GenerationRequest, Message, Usage
from service.domain.job import Job, JobStatus
from service.domain.principal import ANONYMOUS
from service.errors import Overloaded, UpstreamThrottled
from service.storage import memory_jobs
from service.storage.memory_jobs import MemoryJobQueue
from service.telemetry.metrics import Metrics
from tests.support.fake_app import DEADLINE_S, until

REQUEST = GenerationRequest(model="gpt-4o", messages=(Message.of_text("user", "Hi"),))
DONE = Completion("up", (Choice("Hello", FinishReason.STOP),), Usage(1, 2), "r1")


@dataclass
class Bench:
    """A queue, and what its jobs do: each waits until it is told how to end."""

    clock: ManualClock = field(default_factory=ManualClock)
    metrics: Metrics = field(default_factory=lambda: Metrics(CollectorRegistry()))
    begun: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    outcomes: "dict[str, asyncio.Future[Completion]]" = field(default_factory=dict)
    answers_when_cancelled: bool = False
    _numbers: deque[int] = field(default_factory=lambda: deque(range(1_000)))

    async def run(self, job: Job) -> Completion:
        self.begun.append(job.id)
        try:
            return await self.outcome(job.id)
        except asyncio.CancelledError:
            self.cancelled.append(job.id)
            if self.answers_when_cancelled:
                return DONE
            raise

    def outcome(self, job_id: str) -> "asyncio.Future[Completion]":
        return self.outcomes.setdefault(job_id, asyncio.get_running_loop().create_future())

    def job(self) -> Job:
        return Job(f"job_{self._numbers.popleft()}", ANONYMOUS, REQUEST, self.clock.wall())

    def finished(self, status: str) -> float:
        return self.metrics.registry.get_sample_value("llm_api_jobs_finished_total", {"status": status}) or 0.0

    @asynccontextmanager
    async def queue(
        self, *, concurrency: int = 1, queue_max: int = 2, result_ttl_s: float = 60.0, drain_s: float = 0.0
    ) -> AsyncIterator[MemoryJobQueue]:
        queue = MemoryJobQueue(
            self.run,
            concurrency=concurrency,
            queue_max=queue_max,
            result_ttl_s=result_ttl_s,
            drain_s=drain_s,
            metrics=self.metrics,
            clock=self.clock,
        )
        async with queue.opened():
            yield queue


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def submitted(queue: MemoryJobQueue, bench: Bench) -> str:
    job = bench.job()
    await queue.submit(job)
    return job.id


async def stands(queue: MemoryJobQueue, job_id: str) -> JobStatus | None:
    job = await queue.get(job_id)
    return job.status if job else None


async def ended(queue: MemoryJobQueue, job_id: str) -> Job:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            job = await queue.get(job_id)
            assert job is not None
            if job.status.final:
                return job
            await asyncio.sleep(0)


async def test_jobs_are_done_in_the_order_of_their_coming_and_no_more_at_once_than_allowed(bench: Bench) -> None:
    async with bench.queue(concurrency=2, queue_max=9) as queue:
        ids = [await submitted(queue, bench) for _ in range(4)]
        await until(lambda: len(bench.begun) == 2)
        assert [await stands(queue, job_id) for job_id in ids] == [
            *[JobStatus.IN_PROGRESS] * 2,
            *[JobStatus.QUEUED] * 2,
        ]
        bench.outcome(ids[1]).set_result(DONE)
        await until(lambda: len(bench.begun) == 3)
        assert bench.begun == ids[:3]
        for job_id in ids:
            if not bench.outcome(job_id).done():
                bench.outcome(job_id).set_result(DONE)
        assert (await ended(queue, ids[3])).completion == DONE
        assert bench.begun == ids
    assert bench.finished("complete") == 4


async def test_a_job_carries_the_times_of_its_life(bench: Bench) -> None:
    async with bench.queue() as queue:
        running, waiting = await submitted(queue, bench), await submitted(queue, bench)
        bench.clock.advance(2)
        bench.outcome(running).set_result(DONE)
        first = await ended(queue, running)
        await until(lambda: len(bench.begun) == 2)
        bench.clock.advance(3)
        bench.outcome(waiting).set_result(DONE)
        second = await ended(queue, waiting)
    start = first.created_at
    assert (first.started_at, first.finished_at) == (start, start + 2)
    assert (second.created_at, second.started_at, second.finished_at) == (start, start + 2, start + 5)


async def test_a_failed_job_says_why(bench: Bench) -> None:
    async with bench.queue() as queue:
        job_id = await submitted(queue, bench)
        bench.outcome(job_id).set_exception(UpstreamThrottled("slower"))
        job = await ended(queue, job_id)
    assert job.status is JobStatus.FAILED
    assert job.completion is None
    assert job.error is not None
    assert (job.error.code, job.error.detail, job.error.retryable) == ("upstream_throttled", "slower", True)
    assert bench.finished("failed") == 1


async def test_a_defect_fails_its_job_alone_and_keeps_its_detail(bench: Bench) -> None:
    async with bench.queue() as queue:
        broken, good = await submitted(queue, bench), await submitted(queue, bench)
        bench.outcome(broken).set_exception(ZeroDivisionError("secret detail"))
        bench.outcome(good).set_result(DONE)
        assert (await ended(queue, good)).status is JobStatus.COMPLETE
        error = (await ended(queue, broken)).error
    assert error is not None
    assert error.code == "internal_error"
    assert "secret" not in error.detail
    assert bench.metrics.registry.get_sample_value("llm_api_unhandled_errors_total", {"place": "job"}) == 1


async def test_a_full_queue_refuses_with_a_delay_and_takes_more_once_it_has_room(bench: Bench) -> None:
    async with bench.queue(queue_max=2) as queue:
        ids = [await submitted(queue, bench) for _ in range(3)]
        with pytest.raises(Overloaded) as refused:
            await submitted(queue, bench)
        assert refused.value.retry_after_s
        bench.outcome(ids[0]).set_result(DONE)
        await until(lambda: len(bench.begun) == 2)
        assert await stands(queue, await submitted(queue, bench)) is JobStatus.QUEUED


async def test_a_cancelled_waiting_job_never_runs_and_makes_room(bench: Bench) -> None:
    async with bench.queue(queue_max=1) as queue:
        running, waiting = await submitted(queue, bench), await submitted(queue, bench)
        await until(lambda: bench.begun == [running])
        job = await queue.cancel(waiting)
        assert job is not None
        assert (job.status, job.finished_at) == (JobStatus.CANCELLED, bench.clock.wall())
        last = await submitted(queue, bench)
        bench.outcome(running).set_result(DONE)
        bench.outcome(last).set_result(DONE)
        await ended(queue, last)
        assert bench.begun == [running, last]
        assert await stands(queue, waiting) is JobStatus.CANCELLED


async def test_a_cancelled_running_job_is_ended_before_it_is_acknowledged(bench: Bench) -> None:
    async with bench.queue() as queue:
        running, waiting = await submitted(queue, bench), await submitted(queue, bench)
        await until(lambda: bench.begun == [running])
        job = await queue.cancel(running)
        assert job is not None
        assert job.status is JobStatus.CANCELLED
        assert bench.cancelled == [running]
        await until(lambda: bench.begun == [running, waiting])
    assert bench.finished("cancelled") == 1


async def test_a_job_that_is_cancelled_before_it_could_begin_gives_its_place_back(bench: Bench) -> None:
    async with bench.queue() as queue:
        # The event loop has no turn in between: the job's task exists and has not run.
        first = await submitted(queue, bench)
        assert await queue.cancel(first) is not None
        assert await stands(queue, first) is JobStatus.CANCELLED
        second = await submitted(queue, bench)
        await until(lambda: bench.begun == [second])


async def test_a_late_answer_never_overwrites_a_cancel(bench: Bench) -> None:
    bench.answers_when_cancelled = True
    async with bench.queue() as queue:
        job_id = await submitted(queue, bench)
        await until(lambda: bench.begun == [job_id])
        job = await queue.cancel(job_id)
        assert job is not None
        assert (job.status, job.completion) == (JobStatus.CANCELLED, None)
        assert await stands(queue, job_id) is JobStatus.CANCELLED
    assert (bench.finished("cancelled"), bench.finished("complete")) == (1, 0)


async def test_an_answer_that_is_there_before_the_cancel_stands(bench: Bench) -> None:
    async with bench.queue() as queue:
        job_id = await submitted(queue, bench)
        bench.outcome(job_id).set_result(DONE)
        await ended(queue, job_id)
        job = await queue.cancel(job_id)
        assert job is not None
        assert (job.status, job.completion) == (JobStatus.COMPLETE, DONE)


async def test_a_second_cancel_changes_nothing(bench: Bench) -> None:
    async with bench.queue() as queue:
        job_id = await submitted(queue, bench)
        await until(lambda: bench.begun == [job_id])
        first = await queue.cancel(job_id)
        bench.clock.advance(1)
        assert await queue.cancel(job_id) == first
    assert bench.finished("cancelled") == 1


async def test_an_unknown_job_is_none(bench: Bench) -> None:
    async with bench.queue() as queue:
        assert await queue.get("job_x") is None
        assert await queue.cancel("job_x") is None


@pytest.mark.parametrize(("seconds", "kept"), [(59.9, True), (60.0, True), (60.1, False)])
async def test_a_finished_job_is_kept_for_its_time_alone(bench: Bench, seconds: float, kept: bool) -> None:  # noqa: FBT001 - a column of the table
    async with bench.queue(result_ttl_s=60) as queue:
        job_id = await submitted(queue, bench)
        bench.outcome(job_id).set_result(DONE)
        await ended(queue, job_id)
        bench.clock.advance(seconds)
        assert (await queue.get(job_id) is not None) is kept


async def test_a_job_that_is_not_over_is_never_forgotten(bench: Bench) -> None:
    async with bench.queue(result_ttl_s=60) as queue:
        running, waiting = await submitted(queue, bench), await submitted(queue, bench)
        bench.clock.advance(1_000_000)
        assert [await stands(queue, job_id) for job_id in (running, waiting)] == [
            JobStatus.IN_PROGRESS,
            JobStatus.QUEUED,
        ]


async def test_closing_ends_what_runs_and_begins_nothing_more(bench: Bench) -> None:
    async with bench.queue(concurrency=2, queue_max=9) as queue:
        ids = [await submitted(queue, bench) for _ in range(4)]
        await until(lambda: len(bench.begun) == 2)
        tasks = {task for task in asyncio.all_tasks() if task.get_name() in ids}
    assert len(tasks) == 2
    assert all(task.done() for task in tasks)
    assert sorted(bench.cancelled) == ids[:2]
    assert bench.begun == ids[:2]


async def test_a_stop_waits_for_the_jobs_that_run(bench: Bench) -> None:
    job = bench.job()
    async with bench.queue(drain_s=60.0) as queue:
        await queue.submit(job)
        asyncio.get_running_loop().call_soon(bench.outcome(job.id).set_result, DONE)
    finished = await queue.get(job.id)
    assert finished is not None
    assert finished.status is JobStatus.COMPLETE


async def test_a_stop_says_how_many_jobs_are_lost(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async with bench.queue() as queue:
        for _ in range(3):
            await queue.submit(bench.job())
        await asyncio.sleep(0)
    assert [vars(record)["jobs"] for record in caplog.records if "lost" in record.message] == [3]


async def test_the_oldest_finished_jobs_are_forgotten_beyond_the_bound(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_jobs, "REMEMBERED_MIN", 1)
    async with bench.queue(queue_max=2) as queue:
        jobs = [bench.job() for _ in range(3)]
        for job in jobs:
            bench.outcome(job.id).set_result(DONE)
            await queue.submit(job)
            await ended(queue, job.id)
        assert [await queue.get(job.id) is None for job in jobs] == [True, False, False]
