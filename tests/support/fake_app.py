"""The whole application over fake providers, in process or on a socket, in the test's own event loop."""

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from asgi_lifespan import LifespanManager
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from service.admission.memory import MemoryLimiter
from service.app import Opener, create_app
from service.config import Settings
from service.domain.clock import ManualClock
from service.providers.fake import FakeProvider, Script
from service.providers.pool import ProviderPool
from service.resources import Resources
from service.serving.options import uvicorn_options
from service.storage.file_ledger import FileLedgerStore
from service.storage.idempotency import MemoryIdempotencyStore
from service.storage.memory_jobs import MemoryJobStore
from service.storage.memory_streams import MemoryStreamLog
from service.storage.probe_board import MemoryProbeBoard
from service.storage.tickets import MemoryTicketStore
from service.telemetry.metrics import Metrics
from service.wiring import assemble
from tests.support.attempts import PLAIN

ALICE = "alice-key-0123456789"
"""A key that may use every model."""
BOB = "bob-key-0123456789"
"""A key that may use ``gpt-4o`` and ``team/*``."""

DEADLINE_S = 5.0
"""How long a test waits for an event that a correct program brings about at once."""


@dataclass(frozen=True, slots=True)
class FakeApp:
    """An application that runs, and everything that a test moves or looks at."""

    app: FastAPI
    client: httpx.AsyncClient
    """Sends no key by itself."""
    provider: FakeProvider
    """Asked first for every model."""
    backup: FakeProvider
    """The second route of ``two-routes``."""
    resources: Resources
    clock: ManualClock
    asgi: Callable[..., Any]
    """The application with its lifespan's state, for what a client cannot send."""
    base_url: str

    def value(self, metric: str, **labels: str) -> float:
        """Return a sample of the registry; 0 where it was never touched."""
        return self.resources.metrics.registry.get_sample_value(metric, labels) or 0.0

    @property
    def in_flight(self) -> float:
        """How many requests are being answered."""
        (family,) = self.resources.metrics.in_flight.collect()
        return sum(sample.value for sample in family.samples)

    def ends(self, transport: str) -> dict[str, float]:
        """Return how many streams ended, by reason, without the reasons that none had."""
        reasons = ("complete", "client_disconnect", "slow_client", "error", "cancelled", "draining")
        counts = {
            reason: self.value("llm_api_stream_ends_total", transport=transport, reason=reason) for reason in reasons
        }
        return {reason: count for reason, count in counts.items() if count}


def fake_settings(**sections: Any) -> Settings:
    """Make settings with two providers, of which ``fake`` answers for all models, and ``backup`` helps with one."""
    provider = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "keys": ["sk-upstream-0123456789"], **PLAIN}
    given: dict[str, Any] = {
        "embedded": {"store": False},
        "providers": {"fake": provider, "backup": provider},
        "models": {
            "gpt-4o-mini": {"routes": [{"provider": "fake"}]},
            "gpt-4o": {"routes": [{"provider": "fake", "model": "upstream-4o"}]},
            "two-routes": {"routes": [{"provider": "fake"}, {"provider": "backup", "model": "spare"}]},
            "vectors": {"routes": [{"provider": "fake"}], "modes": ["embeddings"]},
            "team/*": {"routes": [{"provider": "fake"}]},
        },
        "readiness": {"mode": "off"},
        "auth": {"enabled": False},
    }
    # A stop need not wait for jobs that nobody will step on.
    given["jobs"] = {"drain_s": 0.001, **sections.pop("jobs", {})}
    return Settings.model_validate({**given, **sections})


def keyed_auth(**more: Any) -> dict[str, Any]:
    """Make the section that switches authentication on, for ``ALICE`` and ``BOB``."""
    keys = {"alice": {"key": ALICE}, "bob": {"key": BOB, "models": ["gpt-4o", "team/*"]}}
    return {"enabled": True, "keys": keys, **more}


def bearer(key: str) -> dict[str, str]:
    """Make the header that shows a key."""
    return {"authorization": f"Bearer {key}"}


@dataclass(frozen=True, slots=True)
class _Parts:
    provider: FakeProvider
    backup: FakeProvider
    clock: ManualClock
    opened: list[Resources]

    @property
    def opener(self) -> Opener:
        """Open what ``service.wiring`` would assemble, over the fakes: no store, no metrics port, no children."""

        @asynccontextmanager
        async def opener(settings: Settings) -> AsyncIterator[Resources]:
            async with AsyncExitStack() as stack:
                stream_log = MemoryStreamLog(settings=settings.streams, clock=self.clock)
                await stack.enter_async_context(stream_log.opened())
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ledger-"))
                ledger = FileLedgerStore(Path(folder))
                stack.callback(ledger.close)
                fakes = {"fake": self.provider, "backup": self.backup}
                pool = ProviderPool(lambda name, _: nullcontext(fakes[name]), self.clock)
                resources = await assemble(
                    stack,
                    settings=settings,
                    providers=await stack.enter_async_context(pool.opened(settings.providers)),
                    tickets=MemoryTicketStore(ttl_s=settings.auth.ticket_ttl_s, clock=self.clock),
                    stream_log=stream_log,
                    limiter=MemoryLimiter(clock=self.clock),
                    board=MemoryProbeBoard(self.clock),
                    idempotency=MemoryIdempotencyStore(self.clock),
                    job_store=MemoryJobStore(settings.jobs, self.clock),
                    ledger_store=ledger,
                    usage=ledger,
                    metrics=Metrics(CollectorRegistry()),
                    clock=self.clock,
                )
                self.opened.append(resources)
                yield resources

        return opener

    def running(self, app: FastAPI, client: httpx.AsyncClient, asgi: Callable[..., Any], base_url: str) -> FakeApp:
        return FakeApp(app, client, self.provider, self.backup, self.opened[0], self.clock, asgi, base_url)


def _parts(script: Script | None) -> _Parts:
    return _Parts(FakeProvider("fake", script=script), FakeProvider("backup"), ManualClock(), [])


@asynccontextmanager
async def fake_app(script: Script | None = None, **sections: Any) -> AsyncIterator[FakeApp]:
    """Run the application in process. Its client gets a response only once it is whole."""
    parts = _parts(script)
    app = create_app(fake_settings(**sections), parts.opener)
    async with LifespanManager(app) as manager:
        transport = httpx.ASGITransport(app=manager.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield parts.running(app, client, manager.app, "http://localhost")


@asynccontextmanager
async def fake_app_on_socket(script: Script | None = None, **sections: Any) -> AsyncIterator[FakeApp]:
    """Run the application on a socket of this event loop, so that the fakes' events step its streams."""
    parts = _parts(script)
    settings = fake_settings(**sections)
    app = create_app(settings, parts.opener)
    config = uvicorn.Config(
        app,
        **uvicorn_options(settings),
        timeout_graceful_shutdown=5,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    listener = socket.create_server(("127.0.0.1", 0))
    base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    # Its two halves and not `serve`, which would take the signals of the test's process.
    await server.startup(sockets=[listener])
    try:
        async with httpx.AsyncClient(base_url=base_url, trust_env=False) as client:
            yield parts.running(app, client, app, base_url)
    finally:
        await server.shutdown(sockets=[listener])


async def soon(event: asyncio.Event) -> None:
    """Wait for an event that a correct program sets at once."""
    await asyncio.wait_for(event.wait(), DEADLINE_S)


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop run until a condition holds that a correct program brings about at once."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - a metric or a closed socket has no event
            await asyncio.sleep(0.001)
