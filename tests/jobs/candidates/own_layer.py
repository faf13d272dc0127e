"""Our own queue, as callers and operators meet it: `llm-api serve`, `llm-api worker`, HTTP."""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import yaml

from tests.jobs.candidate import Command, Queue, State, Surroundings
from tests.support.command import environment, free_port

START_S = 60
LEASE_S = 10
TRIES = 40
"""A submission that meets the store away is made again, as a caller would; with a key of its own it is one job."""


class OwnLayer:
    """The candidate."""

    name = "own layer"

    def __init__(self, *, lease_s: float = LEASE_S, drain_s: float = 30.0) -> None:
        self._lease_s = lease_s
        self._drain_s = drain_s

    @asynccontextmanager
    async def opened(self, surroundings: Surroundings) -> AsyncIterator[Queue]:
        """Start one process that accepts jobs and works on none."""
        with tempfile.TemporaryDirectory(prefix="own-") as folder:
            config = Path(folder, "config.yaml")
            config.write_text(yaml.safe_dump(self._settings(surroundings)))  # noqa: ASYNC240 - nothing else runs yet
            port = free_port()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "service", "serve", "--port", str(port), "--metrics-port", "0"),
                env=environment({"LLM_API_CONFIG": str(config)}),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            try:
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                    await _up(client)
                    yield _Queue(client, config, surroundings)
            finally:
                process.kill()
                await process.wait()

    def _settings(self, surroundings: Surroundings) -> dict[str, object]:
        return {
            "server": {"metrics_port": 0},
            "redis": {"url": surroundings.store},
            "providers": {
                "sim": {"kind": "openai", "base_url": f"{surroundings.upstream}/v1", "keys": ["sk-upstream-0123456789"]}
            },
            "models": {f"{surroundings.model_prefix}*": {"routes": [{"provider": "sim"}]}},
            "readiness": {"mode": "off"},
            "auth": {"enabled": False},
            "jobs": {
                "worker": False,
                "concurrency": surroundings.concurrency,
                "lease_s": self._lease_s,
                "drain_s": self._drain_s,
            },
        }


class _Queue:
    def __init__(self, client: httpx.AsyncClient, config: Path, surroundings: Surroundings) -> None:
        self._client = client
        self._config = config
        self._surroundings = surroundings
        self._ids: dict[str, str] = {}

    async def submit(self, job: str) -> None:
        body = {
            "prompt": "Hello.",
            "model": f"{self._surroundings.model_prefix}{job}",
            "max_tokens": self._surroundings.max_tokens,
        }
        for _ in range(TRIES):
            answer = await self._client.post("/generate/async", json=body, headers={"Idempotency-Key": f"key-{job}"})
            if answer.status_code == 202:
                self._ids[job] = answer.json()["job_id"]
                return
            assert answer.status_code in {409, 503}, answer.text
            await asyncio.sleep(0.25)
        raise AssertionError(answer.text)

    async def state(self, job: str) -> State:
        answer = await self._client.get(f"/generate/async/{self._ids[job]}")
        assert answer.status_code == 200, answer.text
        fields = answer.json()
        return State(fields["status"], fields["error"]["code"] if "error" in fields else fields.get("text"))

    async def cancel(self, job: str) -> bool:
        answer = await self._client.delete(f"/generate/async/{self._ids[job]}")
        assert answer.status_code == 200, answer.text
        return bool(answer.json()["status"] == "cancelled")

    def worker(self, number: int) -> Command:
        del number
        arguments = [sys.executable, "-m", "service", "worker", "--port", "0", "--metrics-port", "0"]
        return Command(arguments, environment({"LLM_API_CONFIG": str(self._config)}))


async def _up(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(START_S):
        while True:
            try:
                if (await client.get("/health")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)
