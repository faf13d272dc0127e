"""Runs streaq, as a client or as a worker; in an environment of its own."""

import asyncio
import logging
import os
import sys
from typing import Any

import httpx
import programs
from streaq import TaskStatus, Worker

worker: Any = Worker(
    redis_url=os.environ["STORE"],
    concurrency=int(os.environ["CONCURRENCY"]),
    # One is the least: zero means as many as run. What a killed worker has fetched waits for the lease as what ran.
    prefetch=1,
    # Renewed when 90 % of it are over. An idle worker looks for dead ones' tasks only as often, so a re-run may take
    # twice as long; shorter leaves a live worker too little time for its renewal.
    idle_timeout=15,
    grace_period=int(float(os.environ["DRAIN_S"])),
)
opened = asyncio.Event()


@worker.task(max_tries=None, ttl=86_400, timeout=600)
async def generate(job: str) -> str:
    """Do one job."""
    async with (
        httpx.AsyncClient(timeout=60, trust_env=False) as client,
        client.stream("POST", programs.URL, content=programs.body(job), headers=programs.HEADERS) as response,
    ):
        return "".join([programs.text_of(line) async for line in response.aiter_lines()])


async def submit(job: str) -> dict[str, Any]:
    """Accept a job under its own id, so that it is one however often it is submitted."""
    await opened.wait()
    task = generate.enqueue(job)
    task.id = job
    await task
    return {}


async def state(job: str) -> dict[str, Any]:
    """Tell how it stands."""
    await opened.wait()
    status = await worker.status_by_id(job)
    if status is not TaskStatus.DONE:
        return {"state": "unknown" if status is TaskStatus.NOT_FOUND else "pending", "result": None}
    result = await worker.result_by_id(job, timeout=5)
    if result.success:
        return {"state": "complete", "result": result.result}
    cancelled = type(result.exception).__name__ == "StreaqCancelled"
    return {"state": "cancelled" if cancelled else "failed", "result": repr(result.exception)}


async def cancel(job: str) -> dict[str, Any]:
    """Abort it; it is when a worker has said so."""
    await opened.wait()
    return {"cancelled": await worker.abort_by_id(job, timeout=5)}


async def keep_open() -> None:
    """Hold a connection, and make it again when it broke."""
    while True:
        try:
            async with worker:
                opened.set()
                await asyncio.Event().wait()
        except Exception as error:  # noqa: BLE001 - a store that is away comes back
            print(repr(error), file=sys.stderr)
        opened.clear()
        await asyncio.sleep(0.2)


async def client() -> None:
    """Serve the harness."""
    holding = asyncio.create_task(keep_open())
    await programs.serve({"submit": submit, "state": state, "cancel": cancel})
    holding.cancel()


if __name__ == "__main__":
    if sys.argv[1] == "client":
        asyncio.run(client())
    else:
        logging.basicConfig(level=logging.INFO)
        worker.run_sync()
