"""Jobs of a fleet in Redis: one script for all that changes them."""

import logging
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, cast

import msgspec
from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from service.config import JobSettings, RedisSettings
from service.domain.generation import Usage
from service.domain.idempotency import other_body
from service.domain.job import (
    DEADLINE_PASSED,
    LOST,
    UNREADABLE,
    Beat,
    BeatAnswer,
    DueWebhook,
    GoneJob,
    Job,
    JobError,
    JobOutcome,
    JobStatus,
    QueueDepth,
    WebhookStatus,
    queue_full,
)
from service.domain.principal import Priority
from service.storage.redis import close_redis, redis_client, script_errors
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

SCRIPT = "".join(
    files("service.storage").joinpath(name).read_text("utf-8") for name in ("queue.lua", "batches.lua", "jobs.lua")
)
PREFIX = "{llm-api:jobs}:"
"""The braces put all keys into one slot of a Redis Cluster, so that a script may touch them together."""
PATIENCE_S = 1.0
"""What each command has beyond ``redis.timeout_s``: one that is given up may have been carried out."""
MAX_CONNECTIONS = 32
AWAY_S = 5.0
"""Without a word from any worker for so long, or for half of the lease, the store was away, or all of them were."""
WATCHED_S = 5.0
"""A watcher counts as one for so long after it last looked."""
GONE_S = 7 * 86_400.0
"""How long it is known, after that, that there was a result."""

_OTHER_REQUEST = 2
_UNREADABLE = (KeyError, ValueError, msgspec.MsgspecError)


class _Line(msgspec.Struct):
    """What is read of a line."""

    body: msgspec.Raw


class RedisJobStore:
    """Obeys :class:`service.engine.jobs.JobStore` for all processes over one store."""

    def __init__(
        self,
        *,
        redis: RedisSettings,
        settings: JobSettings,
        metrics: Metrics | None = None,
        prefix: str = PREFIX,
        away_s: float | None = None,
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._metrics = metrics
        self._prefix = prefix
        self._away_s = min(AWAY_S, settings.lease_s / 2) if away_s is None else away_s
        self._script: AsyncScript | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["RedisJobStore"]:
        """Give the store, over connections of its own."""
        client: Redis = redis_client(
            self._redis, metrics=self._metrics, patience_s=PATIENCE_S, max_connections=MAX_CONNECTIONS
        )
        self._script = client.register_script(SCRIPT)
        try:
            yield self
        finally:
            await close_redis(client)

    async def submit(self, job: Job) -> Job:
        """See :class:`service.engine.jobs.JobStore`."""
        accepted, *record = await self._run(
            "submit",
            job.id,
            self._settings.queue_max,
            job.principal,
            job.route,
            job.body,
            job.priority,
            job.weight,
            0 if job.deadline_s is None else max(1, _ms(job.deadline_s)),
            job.fingerprint,
            job.webhook or "",
            job.traceparent or "",
        )
        if accepted == _OTHER_REQUEST:
            raise other_body()
        if not accepted:
            raise queue_full(self._settings.queue_max)
        return _job(job.id, record[0])

    async def get(self, job_id: str, *, watching: bool = False) -> Job | GoneJob | None:
        """See :class:`service.engine.jobs.JobStore`."""
        if watching:
            return _found(job_id, await self._run("watch", job_id, _ms(WATCHED_S)))
        return _found(job_id, await self._run("get", job_id))

    async def cancel(self, job_id: str) -> Job | GoneJob | None:
        """See :class:`service.engine.jobs.JobStore`."""
        return _found(job_id, await self._run("cancel", job_id, *self._kept()))

    async def claim(self, count: int) -> Sequence[Job]:
        """See :class:`service.engine.jobs.JobStore`."""
        claimed = await self._run(
            "claim",
            count,
            _ms(self._settings.lease_s),
            _ms(self._away_s),
            self._settings.attempts_max,
            *self._kept(),
            msgspec.json.encode(LOST),
            msgspec.json.encode(DEADLINE_PASSED),
            secrets.token_hex(6),
        )
        jobs: list[Job] = []
        for name, record in claimed:
            job_id = name.decode()
            try:
                jobs.append(_job(job_id, record))
            except _UNREADABLE:
                logger.exception("job failed: its record cannot be read", extra={"job_id": job_id})
                fence = _fields(record)["fence"]
                error = msgspec.json.encode(UNREADABLE)
                await self._run("finish", job_id, fence, *self._kept(), JobStatus.FAILED.value, "error", error)
        return jobs

    async def beat(self, beats: Sequence[Beat]) -> BeatAnswer:
        """See :class:`service.engine.jobs.JobStore`."""
        triples = (part for beat in beats for part in (beat.job_id, beat.fence, beat.progress or ""))
        stopped, watched = await self._run(
            "beat",
            _ms(self._settings.lease_s),
            _ms(self._away_s),
            *self._kept(),
            msgspec.json.encode(DEADLINE_PASSED),
            *triples,
        )
        return BeatAnswer(frozenset(_texts(stopped)), frozenset(_texts(watched)))

    async def finish(self, job: Job, outcome: JobOutcome) -> bool:
        """See :class:`service.engine.jobs.JobStore`."""
        given = {
            "answer": outcome.answer,
            "usage": None if outcome.usage is None else msgspec.json.encode(outcome.usage),
            "cost": outcome.cost_nano_usd,
            "error": None if outcome.error is None else msgspec.json.encode(outcome.error),
        }
        pairs = (part for name, value in given.items() if value is not None for part in (name, value))
        done = await self._run("finish", job.id, job.fence, *self._kept(), outcome.status.value, *pairs)
        return bool(done)

    async def release(self, job: Job, *, wait_s: float = 0.0, is_setback: bool = False) -> bool:
        """See :class:`service.engine.jobs.JobStore`."""
        return bool(await self._run("release", job.id, job.fence, _ms(wait_s), int(is_setback)))

    async def depth(self) -> QueueDepth:
        """See :class:`service.engine.jobs.JobStore`."""
        interactive, batch, running, deferred, oldest_ms = await self._run("depth")
        return QueueDepth({"interactive": interactive, "batch": batch}, running, deferred, int(oldest_ms) / 1_000)

    async def due_webhooks(self, count: int, hold_s: float) -> Sequence[DueWebhook]:
        """See :class:`service.engine.jobs.JobStore`."""
        due = await self._run("hooks", count, _ms(hold_s))
        readable: list[DueWebhook] = []
        for name, attempt, record in due:
            job_id = name.decode()
            try:
                readable.append(DueWebhook(_job(job_id, record), attempt))
            except _UNREADABLE:
                logger.exception("nobody is told of a job: its record cannot be read", extra={"job_id": job_id})
                await self.settle_webhook(job_id, "failed")
        return readable

    async def settle_webhook(self, job_id: str, status: WebhookStatus, *, wait_s: float = 0.0) -> None:
        """See :class:`service.engine.jobs.JobStore`."""
        await self._run("hooked", job_id, status, _ms(wait_s))

    def _kept(self) -> tuple[int, int]:
        return _ms(self._settings.result_ttl_s), _ms(GONE_S)

    async def _run(self, command: str, *arguments: Any) -> Any:
        if self._script is None:
            raise AssertionError("the store is not opened")
        with script_errors():
            return await self._script(keys=[self._prefix], args=[command, *arguments])


def _found(job_id: str, reply: list[Any]) -> Job | GoneJob | None:
    state = reply[0]
    if state < 0:
        return None
    if state == 0:
        return GoneJob(reply[1].decode())
    return _job(job_id, reply[1])


def _job(job_id: str, record: list[Any]) -> Job:
    now_ms, position = int(record[0]), record[1]
    fields = _fields(record)
    created_ms = int(fields["created"])
    deadline_ms = int(fields["deadline"]) if "deadline" in fields else None
    return Job(
        id=job_id,
        principal=fields["principal"].decode(),
        route=fields["route"].decode(),
        body=_body(fields),
        priority=cast("Priority", fields["priority"].decode()),
        deadline_s=None if deadline_ms is None else (deadline_ms - created_ms) / 1_000,
        left_s=None if deadline_ms is None else (deadline_ms - now_ms) / 1_000,
        created_at=created_ms / 1_000,
        is_new=created_ms == now_ms,
        webhook=fields["webhook"].decode() if "webhook" in fields else None,
        webhook_status=cast("WebhookStatus", fields["webhook_status"].decode()) if "webhook" in fields else None,
        fingerprint=fields["fingerprint"].decode(),
        traceparent=fields["traceparent"].decode() if "traceparent" in fields else None,
        status=JobStatus(fields["status"].decode()),
        attempts=int(fields["attempts"]) - int(fields.get("released", 0)),
        fence=fields.get("fence", b"").decode(),
        setbacks=int(fields.get("setbacks", 0)),
        waits=int(fields.get("waits", 0)),
        position=None if position < 0 else position,
        started_at=_time(fields, "started"),
        finished_at=_time(fields, "finished"),
        expires_at=_time(fields, "expires"),
        progress=fields.get("progress", b"").decode(),
        answer=fields.get("answer"),
        usage=msgspec.json.decode(fields["usage"], type=Usage) if "usage" in fields else None,
        cost_nano_usd=int(fields["cost"]) if "cost" in fields else None,
        error=msgspec.json.decode(fields["error"], type=JobError) if "error" in fields else None,
    )


def _fields(record: list[Any]) -> dict[str, bytes]:
    _, _, *pairs = record
    return dict(zip(_texts(pairs[::2]), pairs[1::2], strict=True))


def _body(fields: dict[str, bytes]) -> bytes:
    body = fields.get("body", b"")
    if "batch" not in fields:
        return body
    # A line of a batch's file is kept as it was uploaded, with its name and its route beside the body.
    return bytes(msgspec.json.decode(body, type=_Line).body)


def _time(fields: dict[str, bytes], name: str) -> float | None:
    return int(fields[name]) / 1_000 if name in fields else None


def _texts(items: Sequence[bytes]) -> Iterator[str]:
    return (item.decode() for item in items)


def _ms(seconds: float) -> int:
    return round(seconds * 1_000)
