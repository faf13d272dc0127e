"""The depth of the queue is told by processes that work on no job."""

import asyncio

from prometheus_client import CollectorRegistry
from typing_extensions import override

from service.config import JobSettings
from service.domain.clock import ManualClock
from service.domain.job import QueueDepth
from service.engine.queue_watch import watching_queue
from service.errors import StoreUnavailable
from service.storage.memory_jobs import MemoryJobStore
from service.telemetry.metrics import Metrics
from tests.support.fake_app import fake_app, until

DEPTH = QueueDepth(waiting={"interactive": 3, "batch": 1}, running=0, deferred=2, oldest_wait_s=77.0)
AWAY = StoreUnavailable("away")


class Store(MemoryJobStore):
    """Says what it is told to, one after the other, and then the last for ever."""

    def __init__(self, *answers: QueueDepth | Exception) -> None:
        super().__init__(JobSettings(), ManualClock())
        self.answers = list(answers)
        self.asked = 0

    @override
    async def depth(self) -> QueueDepth:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_what_waits_is_told_also_after_the_store_was_away_or_a_defect() -> None:
    metrics = Metrics(CollectorRegistry())
    value = metrics.registry.get_sample_value
    async with watching_queue(Store(AWAY, ValueError("defect"), DEPTH), metrics, every_s=0.001):
        await until(lambda: value("llm_api_jobs_oldest_wait_seconds") == 77)
    assert value("llm_api_jobs_waiting", {"priority": "interactive"}) == 3
    assert value("llm_api_unhandled_errors_total", {"place": "job"}) == 1


async def test_a_store_that_is_away_leaves_what_was_known() -> None:
    metrics = Metrics(CollectorRegistry())
    store = Store(DEPTH, AWAY)
    async with watching_queue(store, metrics, every_s=0.001):
        await until(lambda: store.asked > 2)
    assert metrics.registry.get_sample_value("llm_api_jobs_oldest_wait_seconds") == 77


async def test_an_api_without_a_worker_tells_of_jobs_that_nobody_begins() -> None:
    async with fake_app(jobs={"worker": False}) as api:
        tasks = {task.get_name() for task in asyncio.all_tasks()}
        assert "watch the queue of jobs" in tasks
        assert "claim jobs" not in tasks
        assert api.value("llm_api_jobs_oldest_wait_seconds") == 0
    async with fake_app(jobs={"worker": True}):
        assert "watch the queue of jobs" not in {task.get_name() for task in asyncio.all_tasks()}
