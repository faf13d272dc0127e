"""Runs arq, as a client or as a worker; in an environment of its own."""

import asyncio
import importlib
import os
import sys
from typing import Any

import httpx
import programs

arq: Any = importlib.import_module("arq")
jobs: Any = importlib.import_module("arq.jobs")
connections: Any = importlib.import_module("arq.connections")

SETTINGS = connections.RedisSettings.from_dsn(os.environ["STORE"])
SETTINGS.conn_retries, SETTINGS.conn_retry_delay, SETTINGS.retry_on_timeout = 40, 0.25, True
TIMEOUT_S = 25
"""A job that takes longer is ended; a killed worker's comes back 10 s after it: together they fit in 45 s."""


async def generate(_: dict[str, Any], job: str) -> str:
    """Do one job."""
    async with (
        httpx.AsyncClient(timeout=60, trust_env=False) as client,
        client.stream("POST", programs.URL, content=programs.body(job), headers=programs.HEADERS) as response,
    ):
        return "".join([programs.text_of(line) async for line in response.aiter_lines()])


async def client() -> None:
    """Serve the harness."""
    pool = await arq.create_pool(SETTINGS)

    async def submit(job: str) -> dict[str, Any]:
        await pool.enqueue_job("generate", job, _job_id=job)  # nothing happens if there is one of that id
        return {}

    async def state(job: str) -> dict[str, Any]:
        one = jobs.Job(job, pool)
        info = await one.result_info()
        if info is not None:
            if info.success:
                return {"state": "complete", "result": info.result}
            cancelled = isinstance(info.result, asyncio.CancelledError)
            return {"state": "cancelled" if cancelled else "failed", "result": repr(info.result)}
        known = (await one.status()) != jobs.JobStatus.not_found
        return {"state": "pending" if known else "unknown", "result": None}

    async def cancel(job: str) -> dict[str, Any]:
        return {"cancelled": await jobs.Job(job, pool).abort(timeout=5)}

    await programs.serve({"submit": submit, "state": state, "cancel": cancel})


if __name__ == "__main__":
    if sys.argv[1] == "client":
        asyncio.run(client())
    else:
        worker = arq.Worker(
            [arq.func(generate, name="generate", timeout=TIMEOUT_S, max_tries=1_000)],
            redis_settings=SETTINGS,
            max_jobs=int(os.environ["CONCURRENCY"]),
            allow_abort_jobs=True,
            keep_result=86_400,
            job_completion_wait=int(float(os.environ["DRAIN_S"])),
            poll_delay=0.1,
        )
        worker.run()
