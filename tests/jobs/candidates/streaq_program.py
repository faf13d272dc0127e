"""Runs streaq, as a client or as a worker; in an environment of its own."""

import asyncio
import os
import sys
from contextlib import suppress
from typing import Any

import programs
from streaq import TaskStatus, Worker

worker: Any = Worker(
    redis_url=os.environ["STORE"],
    concurrency=int(os.environ["CONCURRENCY"]),
    # Its own default would fetch another task for each that runs, and a killed worker would take those with it.
    prefetch=1,
    idle_timeout=10,
    grace_period=30,
)


@worker.task(max_tries=10, ttl=86_400, timeout=60)
async def generate(job: str) -> str:
    """Do one job."""
    return await asyncio.to_thread(programs.answer, job)


async def submit(job: str) -> dict[str, Any]:
    """Accept a job under its own id, so that it is one however often it is submitted."""
    task = generate.enqueue(job)
    task.id = job
    await task
    return {}


async def state(job: str) -> dict[str, Any]:
    """Tell how it stands."""
    status = await worker.status_by_id(job)
    if status is not TaskStatus.DONE:
        return {"state": "unknown" if status is TaskStatus.NOT_FOUND else "pending", "result": None}
    result = await worker.result_by_id(job, timeout=5)
    if result.success:
        return {"state": "complete", "result": result.result}
    cancelled = type(result.exception).__name__ == "StreaqCancelled"
    return {"state": "cancelled" if cancelled else "failed", "result": repr(result.exception)}


async def cancel(job: str) -> dict[str, Any]:
    """Abort it."""
    return {"cancelled": await worker.abort_by_id(job, timeout=5)}


async def client() -> None:
    """Serve the harness; the connection is made again where it broke."""
    while True:
        with suppress(ConnectionError, OSError):
            async with worker:
                await programs.serve({"submit": submit, "state": state, "cancel": cancel})
                return
        await asyncio.sleep(0.5)


if __name__ == "__main__":
    if sys.argv[1] == "client":
        asyncio.run(client())
    else:
        worker.run_sync()
