"""Batches in Redis: files and lines that are needed stay, turns are shared, and every line has one result."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from service.config import JobSettings, RedisSettings
from service.domain.batch import Batch, BatchFile, BatchStatus
from service.domain.job import Beat, Job, JobOutcome, JobStatus
from service.errors import IdempotencyMismatch, NotFound, Overloaded, RateLimited
from service.storage import redis_batches
from service.storage.redis_batches import RedisBatchStore
from service.storage.redis_jobs import RedisJobStore

DONE = JobOutcome(JobStatus.COMPLETE, answer=b"{}")
LINE = b'{"custom_id":"1","url":"/v1/chat/completions","body":{"model":"m"}}'
QUEUE_MAX = 8


@dataclass(frozen=True, slots=True)
class Bench:
    """Both stores over the same keys, and a client that looks at them."""

    jobs: RedisJobStore
    batches: RedisBatchStore
    client: Any
    prefix: str

    async def file(self, *, lines: int = 3, principal: str = "alice") -> BatchFile:
        """Upload a file."""
        file_id = f"file_{secrets.token_hex(4)}"
        await self.batches.add_lines(file_id, 1, [LINE] * lines)
        return await self.batches.keep_file(BatchFile(file_id, principal, "a.jsonl", 1, lines, 0.0))

    async def begun(self, file: BatchFile, **changed: Any) -> Batch:
        """Begin a batch with a file."""
        plain = Batch(
            id=f"batch_{secrets.token_hex(4)}",
            principal=file.principal,
            endpoint="/v1/chat/completions",
            file_id=file.id,
            window_s=60.0,
            total=file.lines,
        )
        return await self.batches.begin(replace(plain, **changed))

    async def work(self, count: int = 100) -> list[Job]:
        """Do what can be begun."""
        claimed = list(await self.jobs.claim(count))
        for job in claimed:
            assert await self.jobs.finish(job, DONE)
        return claimed

    async def batch(self, batch: Batch) -> Batch:
        """Look at a batch."""
        found = await self.batches.batch(batch.id)
        assert found is not None
        return found

    async def ttl_ms(self, *parts: str) -> int:
        """Return for how long a key stays: -1 without an end, -2 without a key."""
        ttl: int = await self.client.pttl(self.prefix + ":".join(parts))
        return ttl


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Bench]:
    prefix = f"{{batches-{secrets.token_hex(4)}}}:"
    redis = RedisSettings(url=SecretStr(redis_url), timeout_s=1.0)
    settings = JobSettings(queue_max=QUEUE_MAX)
    async with AsyncExitStack() as stack:
        jobs = await stack.enter_async_context(RedisJobStore(redis=redis, settings=settings, prefix=prefix).opened())
        batches = RedisBatchStore(redis=redis, settings=settings, prefix=prefix)
        client: Redis = Redis.from_url(redis_url)
        stack.push_async_callback(client.aclose)
        yield Bench(jobs, await stack.enter_async_context(batches.opened()), client, prefix)


async def test_a_batch_whose_file_is_gone_is_refused(bench: Bench) -> None:
    file = await bench.file()
    await bench.batches.drop_file(file.id)
    with pytest.raises(NotFound):
        await bench.begun(file)
    half = await bench.file(lines=3)
    await bench.client.hdel(f"{bench.prefix}lines:{half.id}", "2")
    with pytest.raises(NotFound):
        await bench.begun(half)
    assert await bench.ttl_ms("file", file.id) == -2
    assert await bench.jobs.claim(9) == []


async def test_a_file_that_is_forgotten_has_its_lines_as_long_as_a_batch_needs_them(bench: Bench) -> None:
    file = await bench.file()
    batch = await bench.begun(file)
    await bench.batches.drop_file(file.id)
    assert await bench.batches.file(file.id) is None
    assert len(await bench.work()) == 3
    assert (await bench.batch(batch)).completed == 3
    assert [result.request for result in await bench.batches.results(batch, 1, 3)] == [LINE] * 3
    assert await bench.ttl_ms("lines", file.id) > 0


async def test_a_file_stays_until_the_last_of_its_batches_is_over(bench: Bench) -> None:
    file = await bench.file()
    first, second = await bench.begun(file), await bench.begun(file)
    await bench.batches.cancel(first.id)
    assert [await bench.ttl_ms(kind, file.id) for kind in ("file", "lines")] == [-1, -1]
    await bench.batches.cancel(second.id)
    assert all([await bench.ttl_ms(kind, file.id) > 0 for kind in ("file", "lines")])


async def test_a_line_that_was_lost_has_that_as_its_result(bench: Bench) -> None:
    file = await bench.file(lines=4)
    batch = await bench.begun(file)
    given_back, running, deferred = await bench.jobs.claim(3)
    await bench.jobs.release(given_back)
    await bench.jobs.release(deferred, wait_s=0.01)
    await bench.client.hdel(f"{bench.prefix}lines:{file.id}", "4")
    await bench.client.delete(*(f"{bench.prefix}job:{job.id}" for job in (given_back, deferred)))
    await asyncio.sleep(0.05)
    assert await bench.work() == []
    assert await bench.jobs.finish(running, DONE)
    over = await bench.batch(batch)
    assert (over.status, over.completed, over.failed) == (BatchStatus.COMPLETED, 1, 3)
    errors = [result.error for result in await bench.batches.results(over, 1, 4) if result.answer is None]
    assert [b'"line_lost"' in (error or b"") for error in errors] == [True] * 3


async def test_thousands_of_lost_lines_hold_nobody_up(bench: Bench) -> None:
    file = await bench.file(lines=300)
    await bench.begun(file)
    await bench.client.delete(f"{bench.prefix}lines:{file.id}")
    await bench.jobs.submit(Job("job_1", "bob", "/generate", b"{}", priority="batch"))
    assert [job.id for job in await bench.jobs.claim(2)] == ["job_1"]


async def test_a_result_that_was_lost_is_told(bench: Bench) -> None:
    batch = await bench.begun(await bench.file())
    await bench.work()
    await bench.client.hdel(f"{bench.prefix}results:{batch.id}", "2")
    first, second, third = await bench.batches.results(await bench.batch(batch), 1, 3)
    assert (first.answer, third.answer) == (b"{}", b"{}")
    assert b'"result_lost"' in (second.error or b"")


async def test_the_batches_of_one_caller_share_its_turns(bench: Bench) -> None:
    for principal in (*["alice"] * 4, "bob"):
        await bench.begun(await bench.file(lines=20, principal=principal))
    assert Counter(job.principal for job in await bench.jobs.claim(20)) == {"alice": 10, "bob": 10}


async def test_a_line_that_is_finished_twice_is_told_so_twice(bench: Bench) -> None:
    batch = await bench.begun(await bench.file(lines=2))
    (job, _) = await bench.jobs.claim(2)
    assert await bench.jobs.finish(job, DONE)
    assert await bench.jobs.finish(job, DONE)
    assert (await bench.batch(batch)).completed == 1


async def test_a_batch_with_a_key_is_begun_once(bench: Bench) -> None:
    file = await bench.file()
    begun = await bench.begun(file, id="batch_1", fingerprint="a")
    assert await bench.begun(file, id="batch_1", fingerprint="a") == begun
    with pytest.raises(IdempotencyMismatch):
        await bench.begun(file, id="batch_1", fingerprint="b")
    assert len(await bench.work()) == 3


async def test_one_caller_has_no_more_open_batches_than_it_may(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_batches, "OPEN_MAX", 2)
    file = await bench.file()
    first, _ = await bench.begun(file), await bench.begun(file)
    with pytest.raises(RateLimited) as refused:
        await bench.begun(file)
    assert refused.value.retry_after_s
    await bench.begun(await bench.file(principal="bob"))
    await bench.batches.cancel(first.id)
    await bench.begun(file)


async def test_batches_and_their_lines_do_not_fill_the_queue_for_others(bench: Bench) -> None:
    file = await bench.file(lines=2 * QUEUE_MAX)
    for _ in range(QUEUE_MAX):
        await bench.begun(file)
    with pytest.raises(Overloaded):
        await bench.begun(file)
    for job in await bench.jobs.claim(QUEUE_MAX):
        await bench.jobs.release(job, wait_s=60)
    await bench.jobs.submit(Job("job_1", "bob", "/generate", b"{}"))


async def test_a_window_ends_while_every_worker_is_busy(bench: Bench) -> None:
    batch = await bench.begun(await bench.file(lines=1), window_s=0.1)
    (job,) = await bench.jobs.claim(1)
    await asyncio.sleep(0.15)
    assert (await bench.jobs.beat([Beat(job.id, job.fence)])).stopped == {job.id}
    over = await bench.batch(batch)
    assert over.status is BatchStatus.EXPIRED
    assert not await bench.jobs.finish(job, DONE)
    (result,) = await bench.batches.results(over, 1, 1)
    assert b'"batch_expired"' in (result.error or b"")
