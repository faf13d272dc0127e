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
"""A task that takes longer is run twice, so it may not be shorter than the longest job; ours take 0.2 s here."""

app: Any = Celery("jobs", broker=STORE, backend=STORE)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_track_started=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={"visibility_timeout": VISIBILITY_S, "unacked_restore_limit": None},
    result_expires=86_400,
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
        result = AsyncResult(job, app=app)
        status = result.state
        if status == "SUCCESS":
            return {"state": "complete", "result": result.result}
        if status == "REVOKED":
            return {"state": "cancelled", "result": None}
        if status == "FAILURE":
            return {"state": "failed", "result": repr(result.result)}
        return {"state": "pending", "result": None}

    return await asyncio.to_thread(look)


async def cancel(job: str) -> dict[str, Any]:
    """Revoke it. That is a broadcast to the workers that live now; nothing acknowledges it."""
    if (await state(job))["state"] != "pending":
        return {"cancelled": False}
    await asyncio.to_thread(app.control.revoke, job, terminate=True)
    return {"cancelled": True}


if __name__ == "__main__":
    if sys.argv[1] == "client":
        asyncio.run(programs.serve({"submit": submit, "state": state, "cancel": cancel}))
    else:
        app.worker_main(
            ["worker", "--concurrency", os.environ["CONCURRENCY"], "--loglevel", "WARNING", "--without-gossip"]
        )
