"""The service, a worker, an upstream that fails on demand, and a Prometheus that looks: everything happens twice.

Twice, since a counter that appears with its first event shows a rate only from its second one on.
"""

import asyncio
import base64
import contextlib
import json
import signal
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx
import yaml
from redis.asyncio import Redis
from websockets.asyncio.client import connect

from observability.__main__ import PLAIN
from service.domain.usage_page import START
from service.engine.attempts import RESERVE
from service.storage.redis_ledger import PREFIX
from tests.support.command import free_port, running
from tests.support.http_server import answering
from tests.support.live import simulating
from tests.support.prometheus import Prometheus, running_prometheus
from tests.support.redis_server import eventually, own_redis

ALICE, BOB, WRONG = (f"{name}-key-0123456789" for name in ("alice", "bob", "wrong"))
UPSTREAM_KEY = "sk-upstream-0123456789"
PACE = ("--ttft-ms", "20", "--gap-ms", "2", "--output-tokens", "12")
VENDORS_LIMITS = ("--requests-per-minute", "1000000", "--tokens-per-minute", "1000000000")
PRICE = {"input": 1, "cached_input": 0.5, "output": 2, "as_of": "2026-11-01", "source": "a test"}
LEASE_S = 5
JOBS_AT_ONCE = 4
RECORDS_MAX = 10
PATIENCE_S = 60.0
HELLO = [{"role": "user", "content": "Hello"}]


@dataclass
class Scene:
    """What runs."""

    api: str
    metrics: dict[str, str]
    """Addresses of ``/metrics``, by the kind of process."""
    prometheus: Prometheus
    began_at: float
    """Seconds since the epoch, before there was anything."""
    hook: str
    """The address of a caller's server."""
    store: str
    """That of the shared store."""
    ended_at: float = 0.0
    """When everything had happened: what is asked afterwards is asked for this time, however long that takes."""
    outcomes: dict[str, int] = field(default_factory=dict)
    """What clients saw, for whoever reads a failed test."""

    async def play(self) -> None:
        """Let everything happen once, but for the loss of a worker."""
        await _Round(self).play()

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the series that an expression has in the end."""
        return self.prometheus.query(expr, at=self.ended_at)

    def exposed(self, process: str) -> str:
        """Return what a process tells of itself."""
        with urlopen(self.metrics[process], timeout=10) as answer:  # noqa: S310 - loopback
            text: str = answer.read().decode()
            return text

    def wait_for_targets(self, count: int) -> None:
        """Wait until so many are scraped."""
        if not eventually(lambda: _slowly(lambda: self.prometheus.query(f"count(up == 1) == {count}")), PATIENCE_S):
            raise RuntimeError("not all that is to be scraped is there")

    def wait_for_scrapes(self, count: int) -> None:
        """Wait until each target was scraped so many times more."""
        seen = self.prometheus.scrapes()
        if not eventually(lambda: _slowly(lambda: self.prometheus.scrapes() >= seen + count), PATIENCE_S):
            raise RuntimeError("Prometheus does not scrape")


def _slowly(condition: Any) -> bool:
    time.sleep(0.2)
    return bool(condition())


def settings(folder: Path, *, simulator: str, redis: str) -> Path:
    """Write the configuration."""
    timeouts_s = {"connect": 2, "first_token": 1, "between_tokens": 1, "total": 10}
    quick = {"retries": {"max_attempts": 2, "base_s": 0.01}, "timeouts_s": timeouts_s, "keys": [UPSTREAM_KEY]}
    once = {**quick, "retries": {"max_attempts": 1}}
    upstream = {"kind": "openai", "base_url": f"{simulator}/v1"}
    given = {
        "redis": {"url": redis, "timeout_s": 0.5},
        "providers": {
            "openai": {**upstream, **quick},
            "anthropic": {"kind": "anthropic", "base_url": simulator, **quick},
            "spare": {**upstream, **quick},
            "refused": {**upstream, **quick},
            "narrow": {**upstream, **once, "limits": {"concurrency": 1}},
            "stingy": {
                **upstream,
                **quick,
                "retries": {"base_s": 0.01, "budget_ratio": 0, "budget_per_s": 0},
                "breaker": {"enabled": False},
            },
            "broken": {"kind": "openai", "base_url": f"http://127.0.0.1:{free_port()}/v1", **once},
        },
        "models": {
            "gpt-4o-mini": {"routes": [{"provider": "openai"}], "price_usd_per_million_tokens": PRICE},
            "claude-3-haiku-20240307": {
                "routes": [{"provider": "anthropic"}],
                "price_usd_per_million_tokens": PRICE,
            },
            "text-embedding-3-small": {"routes": [{"provider": "openai"}], "price_usd_per_million_tokens": PRICE},
            "sim*": {"routes": [{"provider": "openai"}], "price_usd_per_million_tokens": PRICE},
            "unpriced*": {"routes": [{"provider": "openai"}]},
            "bad*": {"routes": [{"provider": "openai"}], "price_usd_per_million_tokens": PRICE},
            "busy*": {"routes": [{"provider": "anthropic"}]},
            "slow*": {"routes": [{"provider": "openai"}, {"provider": "spare"}]},
            "fallback*": {"routes": [{"provider": "broken"}, {"provider": "openai"}]},
            "broken*": {"routes": [{"provider": "broken"}]},
            "narrow*": {"routes": [{"provider": "narrow"}]},
            "stingy*": {"routes": [{"provider": "stingy"}]},
            "refused*": {"routes": [{"provider": "refused"}]},
        },
        "resilience": {"hedging": {"enabled": True, "delay_s": 0.15, "budget_ratio": 1}},
        "admission": {"queue_wait_s": 1},
        "readiness": {"mode": "key", "interval_s": 1, "model": "gpt-4o-mini"},
        "auth": {
            "keys": {
                "alice": {"key": ALICE, "limits": {"tokens_per_minute": 10_000_000, "concurrency": 64}},
                "bob": {"key": BOB, "models": ["gpt-4o-mini"], "limits": {"requests_per_minute": 1}},
            }
        },
        "jobs": {"worker": False, "concurrency": JOBS_AT_ONCE, "lease_s": LEASE_S},
        "usage": {"export_dir": str(folder / "usage"), "records_max": RECORDS_MAX},
        "webhooks": {"secrets": ["whsec_" + base64.b64encode(b"s" * 32).decode()], "timeout_s": 2},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.end_headers()


@contextmanager
def receiving() -> Iterator[str]:
    """Run a caller's server, that is told of the ends of jobs."""
    with answering(_Receiver) as address:
        yield f"{address}/hook"


@contextmanager
def played(folder: Path) -> Iterator[Scene]:
    """Let everything happen, with everybody still there within the block."""
    ports = {name: free_port() for name in ("serve", "worker", "other worker")}
    metrics = {name: f"http://127.0.0.1:{port}/metrics" for name, port in ports.items()}
    target = {"targets": [f"127.0.0.1:{port}" for port in ports.values()], "labels": {"namespace": "test"}}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(PLAIN / "rules" / "*.yaml")],
        "scrape_configs": [{"job_name": "llm-api", "static_configs": [target]}],
    }
    began_at = time.time()
    with (
        own_redis() as redis,
        simulating(*PACE, *VENDORS_LIMITS, "--key", UPSTREAM_KEY) as simulator,
        receiving() as hook,
    ):
        environ = {"LLM_API_CONFIG": str(settings(folder, simulator=simulator, redis=redis.url))}

        def start(command: str, name: str) -> Any:
            return running(command, "--port", "0", "--metrics-port", str(ports[name]), settings=environ)

        with start("serve", "serve") as serving, start("worker", "worker") as worker:
            api = serving.address("API")
            with running_prometheus(folder, config) as prometheus, start("worker", "other worker"):
                scene = Scene(api, metrics, prometheus, began_at, hook, redis.url)
                scene.wait_for_targets(len(ports))
                scene.wait_for_scrapes(2)
                for _ in range(2):
                    asyncio.run(scene.play())
                    scene.wait_for_scrapes(3)
                asyncio.run(_lose_worker(scene, worker))
                scene.wait_for_scrapes(3)
                scene.ended_at = time.time()
                yield scene


async def _lose_worker(scene: Scene, worker: Any) -> None:
    """Kill a worker over its jobs, and wait until another one has done them."""
    async with httpx.AsyncClient(base_url=scene.api, timeout=PATIENCE_S, headers=_bearer(ALICE)) as client:
        body = {"prompt": "x", "model": "sim;gap_ms=100;tokens=60", "max_tokens": 60}
        ids = [(await client.post("/generate/async", json=body)).json()["job_id"] for _ in range(2 * JOBS_AT_ONCE)]
        await asyncio.sleep(1)  # both look for jobs several times in it, and neither can have them all
        worker.process.send_signal(signal.SIGKILL)
        await asyncio.gather(*(_ended(client, job_id) for job_id in ids))


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def _ended(client: httpx.AsyncClient, job_id: str) -> str:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            status: str = (await client.get(f"/generate/async/{job_id}")).json()["status"]
            if status != "pending":
                return status
            await asyncio.sleep(0.1)


class _Round:
    """One time of everything."""

    _client: httpx.AsyncClient

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    async def play(self) -> None:
        """Do it."""
        async with httpx.AsyncClient(
            base_url=self._scene.api, timeout=PATIENCE_S, headers=_bearer(ALICE), trust_env=False
        ) as self._client:
            await self._overflow()
            await self._successes()
            await self._socket()
            await self._resumed()
            await self._left()
            await self._callers_faults()
            await self._providers_faults()
            await self._crowd()
            await self._jobs()

    def _note(self, what: str, result: object) -> None:
        key = f"{what}: {result}"
        self._scene.outcomes[key] = self._scene.outcomes.get(key, 0) + 1

    async def _ask(self, model: str, *, key: str = ALICE) -> int:
        body = {"prompt": "Hello", "model": model, "max_tokens": 64}
        response = await self._client.post("/generate", json=body, headers=_bearer(key))
        self._note(f"generate {model}", response.json().get("code", response.status_code))
        return response.status_code

    async def _stream(self, model: str) -> str:
        response = await self._client.get("/stream", params={"prompt": "Hello", "model": model})
        ending = "[DONE]" if response.text.endswith("data: [DONE]\n\n") else "error"
        self._note(f"stream {model}", f"{response.status_code} {ending}")
        return response.text

    async def _overflow(self) -> None:
        """Put what is no record into the ledger, more of it than it holds, while a sink is away."""
        async with Redis.from_url(self._scene.store) as store:
            now_ms = str(int(time.time() * 1_000))
            await store.hset(f"{PREFIX}sinks", mapping={"away": START, "away:at": now_ms})
            for _ in range(RECORDS_MAX + 200):
                await store.xadd(f"{PREFIX}records", {"x": "no record"})
        await asyncio.sleep(2)  # the sink that is there looks each second

    async def _successes(self) -> None:
        await self._ask("gpt-4o-mini")
        await self._ask("claude-3-haiku-20240307")
        await self._ask("sim;cached_tokens=3")
        await self._ask("unpriced")
        await self._stream("gpt-4o-mini")
        await self._stream("claude-3-haiku-20240307")
        await self._stream("slow;ttft_ms=400")
        chat = {"model": "gpt-4o-mini", "messages": HELLO, "max_tokens": 9, "user_id": "user-1"}
        await self._client.post("/chat", json=chat)
        for path in ("/v1/chat/completions", "/v1/messages"):
            body = {"model": "sim", "messages": HELLO, "max_tokens": 9}
            self._note(path, (await self._client.post(path, json=body)).status_code)
        vectors = {"model": "text-embedding-3-small", "input": "Hello"}
        self._note("embeddings", (await self._client.post("/v1/embeddings", json=vectors)).status_code)

    async def _socket(self) -> None:
        address = self._scene.api.replace("http", "ws", 1) + "/ws"
        ask = {"type": "generate", "prompt": "Hello", "model": "gpt-4o-mini"}
        async with connect(address, additional_headers=_bearer(ALICE), proxy=None) as socket:
            await socket.send(json.dumps({**ask, "id": "1"}))
            while json.loads(await socket.recv())["type"] not in {"done", "error"}:
                pass
            await socket.send(json.dumps({**ask, "id": "2", "model": "sim;gap_ms=200"}))
            while json.loads(await socket.recv())["type"] != "delta":
                pass

    async def _resumed(self) -> None:
        params = {"prompt": "Hello", "model": "sim;gap_ms=30", "resumable": "true"}
        async with self._client.stream("GET", "/stream", params=params) as response:
            stream_id = response.headers["x-stream-id"]
            await anext(response.aiter_bytes())
        rest = await self._client.get(f"/streams/{stream_id}", params={"after": 1})
        self._note("resumed", rest.status_code)
        for name in (stream_id, "unknown"):
            after = {"after": 1_000 if name == stream_id else 0}
            self._note("resumed again", (await self._client.get(f"/streams/{name}", params=after)).status_code)

    async def _left(self) -> None:
        params = {"prompt": "Hello", "model": "sim;gap_ms=300"}
        async with self._client.stream("GET", "/stream", params=params) as response:
            await anext(response.aiter_bytes())

    async def _callers_faults(self) -> None:
        for _ in range(2):
            await self._ask("gpt-4o-mini", key=BOB)
        await self._ask("gpt-4o-mini", key=WRONG)
        await self._ask("nobody-knows-it")
        await self._client.post("/generate", json={"prompt": ""})
        await self._client.get("/nowhere")

    async def _providers_faults(self) -> None:
        for fault in ("400", "429;retry_after_s=0", "500", "malformed"):
            await self._ask(f"bad-{fault.partition(';')[0]};fault={fault}")
        await self._ask("busy;fault=529")
        await self._stream("bad-late;fault=stall")
        hurried = {"prompt": "Hello", "model": "bad-slow;ttft_ms=900"}
        within = {"x-request-timeout-ms": "300"}
        self._note("hurried", (await self._client.post("/generate", json=hurried, headers=within)).json().get("code"))
        await self._stream("bad-cut;fault=cut;after_chunks=3")
        await self._ask("refused;fault=401")
        for _ in range(int(RESERVE) + 1):
            await self._ask("stingy;fault=500")
        for _ in range(6):
            await self._ask("broken")
        await self._stream("fallback")
        await self._ask(f"fallback-{time.monotonic_ns()}")

    async def _crowd(self) -> None:
        asked: list[Awaitable[int]] = [self._ask("narrow;ttft_ms=400") for _ in range(6)]
        await asyncio.gather(*asked)

    async def _jobs(self) -> None:
        closed = f"http://127.0.0.1:{free_port()}/hook"
        wanted = (("sim", self._scene.hook), ("bad-job;fault=400", None), ("sim", closed), ("broken", None))
        ids = []
        for model, hook in wanted:
            body = {"prompt": "Hello", "model": model, "max_tokens": 9, **({"webhook": hook} if hook else {})}
            ids.append((await self._client.post("/generate/async", json=body)).json()["job_id"])
        for job_id in ids[:3]:
            self._note("job", await _ended(self._client, job_id))
        with contextlib.suppress(httpx.HTTPError):
            await self._client.delete(f"/generate/async/{ids[3]}")  # put back after a setback, it would wait
