"""A batch outlives the processes that work on it and those that were asked for it: one result for each of its lines.

``LLM_API_BATCH_LINES=10000`` runs the figure that is quoted.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.command import environment
from tests.support.fleet import Member
from tests.support.live import simulating
from tests.support.redis_server import own_redis

pytestmark = pytest.mark.timeout(600)

LINES = int(os.environ.get("LLM_API_BATCH_LINES", "1000"))
CONCURRENCY = 8
KILLS = 2
PATIENCE_S = 500.0


def settings(store: str, upstream: str) -> str:
    return yaml.safe_dump(
        {
            "server": {"metrics_port": 0},
            "redis": {"url": store},
            "providers": {"sim": {"kind": "openai", "base_url": f"{upstream}/v1", "keys": ["sk-upstream-0123456789"]}},
            "models": {"sim": {"routes": [{"provider": "sim"}]}},
            "readiness": {"mode": "off"},
            "auth": {"enabled": False},
            "jobs": {"worker": False, "concurrency": CONCURRENCY, "lease_s": 5, "batch_file_bytes_max": 20_000_000},
        }
    )


async def worker(config: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "worker", "--port", "0", "--metrics-port", "0"),
        env=environment({"LLM_API_CONFIG": str(config)}),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )


def requests() -> bytes:
    body = {"model": "sim", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    lines = (
        {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for number in range(LINES)
    )
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def test_each_line_has_one_result_whoever_is_killed(tmp_path: Path) -> None:
    with own_redis() as store, simulating("--ttft-ms", "20", "--gap-ms", "1") as upstream:
        config = tmp_path / "config.yaml"
        config.write_text(settings(store.url, upstream))
        member = Member(config, tmp_path / "serve.log")
        await member.start()
        workers = [await worker(config) for _ in range(2)]
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{member.port}", timeout=60) as client:
                parts: Any = {"purpose": (None, "batch"), "file": ("requests.jsonl", requests())}
                file_id = (await client.post("/v1/files", files=parts)).json()["id"]
                asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
                batch_id = (await client.post("/v1/batches", json=asked)).json()["id"]
                for kill in range(1, KILLS + 1):
                    await reached(client, batch_id, LINES * kill // (KILLS + 2))
                    workers[0].kill()
                    await workers.pop(0).wait()
                    workers.append(await worker(config))
                await member.stop(signal.SIGKILL)
                await member.start()
                workers[0].send_signal(signal.SIGTERM)
                assert await workers.pop(0).wait() == 0
                batch = await reached(client, batch_id, LINES)
                content = (await client.get(f"/v1/files/{batch['output_file_id']}/content")).text
                ledger = (await client.get(f"{upstream}/ledger/summary")).json()
        finally:
            for process in workers:
                process.kill()
                await process.wait()
            await member.kill()
    results = [json.loads(line) for line in content.splitlines()]
    assert [result["custom_id"] for result in results] == [f"line-{number}" for number in range(LINES)]
    assert Counter(result["response"]["status_code"] for result in results) == {200: LINES}
    extra = ledger["calls"] - LINES
    print(f"{LINES} lines, {KILLS} workers killed, one stopped, the API killed: {extra} calls were made twice")
    assert 0 <= extra <= KILLS * CONCURRENCY


async def reached(client: httpx.AsyncClient, batch_id: str, lines: int) -> dict[str, Any]:
    """Wait until so many lines are done; return the batch."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        batch: dict[str, Any] = (await client.get(f"/v1/batches/{batch_id}")).json()
        if batch["request_counts"]["completed"] >= lines and (lines < LINES or batch["status"] == "completed"):
            return batch
        assert time.monotonic() < deadline, batch
        await asyncio.sleep(0.1)
