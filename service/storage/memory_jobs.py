"""Jobs of a single process: everything is lost when it ends."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from service.config import JobSettings
from service.domain.clock import Clock
from service.domain.idempotency import other_body
from service.domain.job import (
    DEADLINE_PASSED,
    Beat,
    BeatAnswer,
    DueWebhook,
    GoneJob,
    Job,
    JobOutcome,
    JobStatus,
    QueueDepth,
    WebhookStatus,
    queue_full,
)
from service.domain.principal import Priority

WATCHED_S = 5.0
"""A watcher counts as one for so long after it last looked."""
REMEMBERED_MIN = 1_000
"""Finished jobs that are remembered however short the queue may be."""
_PRIORITIES: tuple[Priority, ...] = ("interactive", "batch")


@dataclass(slots=True)
class _Kept:
    """A job, and its place."""

    job: Job
    tag: float
    number: int
    queued_at: float
    watched_until: float = 0.0
    webhook_attempts: int = 0
    claims: int = 0
    ended_by: str | None = None
    """The fence of the claim that ended it."""


class MemoryJobStore:
    """Obeys :class:`service.engine.jobs.JobStore` for one process, whose worker cannot die without it.

    At most ``queue_max`` jobs wait. As many finished ones are remembered, and ``REMEMBERED_MIN`` in any case; beyond
    that the oldest are forgotten.
    """

    def __init__(self, settings: JobSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._queues: dict[Priority, list[tuple[float, int, str]]] = {priority: [] for priority in _PRIORITIES}
        self._tags: dict[Priority, dict[str, float]] = {priority: {} for priority in _PRIORITIES}
        self._begun: dict[Priority, float] = dict.fromkeys(_PRIORITIES, 0.0)
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._deferred: dict[str, float] = {}
        """Jobs that wait for a time, and until when."""
        self._running: dict[str, None] = {}
        self._deadlines: set[str] = set()
        self._outbox: dict[str, float] = {}
        """Jobs of which a server is to be told, and when."""
        self._finished: OrderedDict[str, None] = OrderedDict()
        self._gone: OrderedDict[str, GoneJob] = OrderedDict()
        self._count = 0

    async def submit(self, job: Job) -> Job:
        """See :class:`service.engine.jobs.JobStore`."""
        self._forget_old()
        known = self._kept.get(job.id)
        if known is not None:
            if known.job.fingerprint != job.fingerprint:
                raise other_body()
            return self._shown(known)
        if len(self._waiting) + len(self._deferred) >= self._settings.queue_max:
            raise queue_full(self._settings.queue_max)
        self._count += 1
        now = self._clock.wall()
        kept = self._kept[job.id] = _Kept(replace(job, created_at=now), self._take_turn(job), self._count, now)
        if job.deadline_s is not None:
            self._deadlines.add(job.id)
        self._queue(kept)
        return replace(self._shown(kept), is_new=True)

    async def get(self, job_id: str, *, watching: bool = False) -> Job | GoneJob | None:
        """See :class:`service.engine.jobs.JobStore`."""
        self._forget_old()
        self._expire()
        kept = self._kept.get(job_id)
        if kept is None:
            return self._gone.get(job_id)
        if watching:
            kept.watched_until = self._clock.wall() + WATCHED_S
        return self._shown(kept)

    async def cancel(self, job_id: str) -> Job | GoneJob | None:
        """See :class:`service.engine.jobs.JobStore`."""
        kept = self._kept.get(job_id)
        if kept is not None and not kept.job.status.final:
            self._finish(kept, JobOutcome(JobStatus.CANCELLED))
        return self._gone.get(job_id) if kept is None else self._shown(kept)

    async def claim(self, count: int) -> Sequence[Job]:
        """See :class:`service.engine.jobs.JobStore`."""
        self._expire()
        claimed: list[Job] = []
        now = self._clock.wall()
        for kept in [self._kept[job_id] for job_id, at in self._deferred.items() if at <= now]:
            del self._deferred[kept.job.id]
            kept.tag = self._take_turn(kept.job)
            self._queue(kept)
        for priority in _PRIORITIES:
            queue = self._queues[priority]
            while queue and len(claimed) < count:
                tag, _, job_id = heappop(queue)
                if job_id not in self._waiting:
                    continue  # cancelled, or too late, while it waited
                kept = self._kept[job_id]
                del self._waiting[job_id]
                self._running[job_id] = None
                self._begun[priority] = max(self._begun[priority], tag)
                job = kept.job
                kept.claims += 1
                kept.job = replace(
                    job,
                    status=JobStatus.IN_PROGRESS,
                    attempts=job.attempts + 1,
                    fence=str(kept.claims),
                    started_at=now if job.started_at is None else job.started_at,
                )
                claimed.append(replace(kept.job, left_s=self._left_s(kept.job)))
            if not queue:
                self._tags[priority].clear()
                self._begun[priority] = 0.0
        return claimed

    async def beat(self, beats: Sequence[Beat]) -> BeatAnswer:
        """See :class:`service.engine.jobs.JobStore`."""
        self._expire()
        now = self._clock.wall()
        watched: set[str] = set()
        stopped: set[str] = set()
        for beat in beats:
            kept = self._theirs(beat.job_id, beat.fence)
            if kept is None:
                stopped.add(beat.job_id)
                continue
            if beat.progress is not None:
                kept.job = replace(kept.job, progress=beat.progress)
            if kept.watched_until > now:
                watched.add(beat.job_id)
        return BeatAnswer(frozenset(stopped), frozenset(watched))

    async def finish(self, job: Job, outcome: JobOutcome) -> bool:
        """See :class:`service.engine.jobs.JobStore`."""
        kept = self._theirs(job.id, job.fence)
        if kept is None:
            known = self._kept.get(job.id)
            return known is not None and known.ended_by == job.fence
        kept.ended_by = job.fence
        self._finish(kept, outcome)
        return True

    async def release(self, job: Job, *, wait_s: float = 0.0, is_setback: bool = False) -> bool:
        """See :class:`service.engine.jobs.JobStore`."""
        kept = self._theirs(job.id, job.fence)
        if kept is None:
            return False
        del self._running[job.id]
        setbacks = kept.job.setbacks + is_setback
        kept.job = replace(kept.job, status=JobStatus.QUEUED, attempts=kept.job.attempts - 1, setbacks=setbacks)
        if wait_s:
            kept.job = replace(kept.job, waits=kept.job.waits + (not is_setback))
            self._deferred[job.id] = self._clock.wall() + wait_s
        else:
            kept.tag = min(kept.tag, self._begun[job.priority])
            self._queue(kept)
        return True

    async def depth(self) -> QueueDepth:
        """See :class:`service.engine.jobs.JobStore`."""
        waiting = dict.fromkeys(_PRIORITIES, 0)
        for job_id in self._waiting:
            waiting[self._kept[job_id].job.priority] += 1
        now = self._clock.wall()
        queued_at = min((self._kept[job_id].queued_at for job_id in self._waiting), default=now)
        return QueueDepth(waiting, len(self._running), len(self._deferred), max(0.0, now - queued_at))

    async def due_webhooks(self, count: int, hold_s: float) -> Sequence[DueWebhook]:
        """See :class:`service.engine.jobs.JobStore`."""
        self._forget_old()
        now = self._clock.wall()
        due: list[DueWebhook] = []
        for job_id in [job_id for job_id, at in self._outbox.items() if at <= now][:count]:
            kept = self._kept[job_id]
            self._outbox[job_id] = now + hold_s
            kept.webhook_attempts += 1
            due.append(DueWebhook(kept.job, kept.webhook_attempts))
        return due

    async def settle_webhook(self, job_id: str, status: WebhookStatus, *, wait_s: float = 0.0) -> None:
        """See :class:`service.engine.jobs.JobStore`."""
        kept = self._kept.get(job_id)
        if kept is None:
            return
        kept.job = replace(kept.job, webhook_status=status)
        if status == "pending":
            self._outbox[job_id] = self._clock.wall() + wait_s
        else:
            self._outbox.pop(job_id, None)

    def _left_s(self, job: Job) -> float | None:
        return None if job.deadline_s is None else job.created_at + job.deadline_s - self._clock.wall()

    def _theirs(self, job_id: str, fence: str) -> _Kept | None:
        kept = self._kept.get(job_id)
        if kept is None or kept.job.status is not JobStatus.IN_PROGRESS or kept.job.fence != fence:
            return None
        return kept

    def _next_tag(self, job: Job) -> float:
        return max(self._begun[job.priority], self._tags[job.priority].get(job.principal, 0.0))

    def _take_turn(self, job: Job) -> float:
        tag = self._next_tag(job)
        self._tags[job.priority][job.principal] = tag + 1 / job.weight
        return tag

    def _queue(self, kept: _Kept) -> None:
        self._waiting[kept.job.id] = None
        kept.queued_at = self._clock.wall()
        heappush(self._queues[kept.job.priority], (kept.tag, kept.number, kept.job.id))

    def _shown(self, kept: _Kept) -> Job:
        job = replace(kept.job, body=b"", left_s=self._left_s(kept.job))
        if job.status is not JobStatus.QUEUED:
            return job
        place = (self._next_tag(job) if job.id in self._deferred else kept.tag, kept.number)
        before = sum(
            1
            for priority in (_PRIORITIES if job.priority == "batch" else ("interactive",))
            for tag, number, job_id in self._queues[priority]
            if job_id in self._waiting and (priority != job.priority or (tag, number) < place)
        )
        return replace(job, position=before)

    def _finish(self, kept: _Kept, outcome: JobOutcome) -> None:
        now = self._clock.wall()
        job_id = kept.job.id
        self._waiting.pop(job_id, None)
        self._deferred.pop(job_id, None)
        self._running.pop(job_id, None)
        self._deadlines.discard(job_id)
        kept.job = kept.job.ended(outcome, finished_at=now, expires_at=now + self._settings.result_ttl_s)
        self._finished[job_id] = None
        if kept.job.webhook is not None:
            self._outbox[job_id] = now

    def _expire(self) -> None:
        for kept in [self._kept[job_id] for job_id in self._deadlines]:
            if (self._left_s(kept.job) or 0.0) <= 0:
                self._finish(kept, JobOutcome(JobStatus.EXPIRED, error=DEADLINE_PASSED))

    def _forget_old(self) -> None:
        now = self._clock.wall()
        remembered_max = max(self._settings.queue_max, REMEMBERED_MIN)
        while self._finished:
            job_id = next(iter(self._finished))
            if (self._kept[job_id].job.expires_at or 0.0) > now and len(self._finished) <= remembered_max:
                return
            self._gone[job_id] = GoneJob(self._kept[job_id].job.principal)
            del self._finished[job_id], self._kept[job_id]
            self._outbox.pop(job_id, None)
            if len(self._gone) > remembered_max:
                self._gone.popitem(last=False)
