"""Runs Celery, as a client or as a worker; in an environment of its own."""

import asyncio
import os
import sys
from typing import Any

import programs
from celery import Celery
from celery.result import AsyncResult

STORE = os.environ["STORE"].replace("unix://", "redis+socket://")
VISIBILITY_S = 30
"""A task that takes longer is run twice, and a killed worker's comes back no earlier: 30 s leave room in 45 s."""
TRANSPORT = {
    "visibility_timeout": VISIBILITY_S,
    # By default what is overdue is looked for every 100 s.
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}

app: Any = Celery("jobs", broker=STORE, backend=STORE)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_track_started=True,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    # A task that comes again although its result is there is not run again.
    worker_deduplicate_successful_tasks=True,
    worker_soft_shutdown_timeout=float(os.environ["DRAIN_S"]),
    visibility_timeout=VISIBILITY_S,
    broker_transport_options=TRANSPORT,
    result_backend_transport_options={"visibility_timeout": VISIBILITY_S},
    result_backend_always_retry=True,
    result_expires=86_400,
    result_extended=True,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    task_publish_retry=True,
)


@app.task(name="generate")
def generate(job: str) -> str:
    """Do one job."""
    return programs.answer(job)


async def submit(job: str) -> dict[str, Any]:
    """Accept a job; under its own id, which Celery does not make unique."""
    await asyncio.to_thread(generate.apply_async, (job,), task_id=job)
    return {}


async def state(job: str) -> dict[str, Any]:
    """Tell how it stands."""

    def look() -> dict[str, Any]:
        meta = app.backend.get_task_meta(job)
        if meta["status"] == "SUCCESS":
            return {"state": "complete", "result": meta["result"]}
        if meta["status"] == "REVOKED":
            return {"state": "cancelled", "result": None}
        if meta["status"] == "FAILURE":
            return {"state": "failed", "result": repr(meta["result"])}
        return {"state": "pending", "result": None}

    return await asyncio.to_thread(look)


async def cancel(job: str) -> dict[str, Any]:
    """Revoke it: a broadcast to the workers that live now. It counts as acknowledged if one of them answered."""

    def revoke() -> bool:
        if AsyncResult(job, app=app).ready():
            return False
        return bool(app.control.revoke(job, terminate=True, reply=True, timeout=1.0))

    return {"cancelled": await asyncio.to_thread(revoke)}


if __name__ == "__main__":
    if sys.argv[1] == "client":
        asyncio.run(programs.serve({"submit": submit, "state": state, "cancel": cancel}))
    else:
        app.worker_main(
            ["worker", "--concurrency", os.environ["CONCURRENCY"], "--loglevel", "WARNING", "--without-gossip"]
        )
