"""The composition root: turns settings into resources, and is the only place that picks implementations."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from pydantic import SecretStr

from service.auth.authenticator import KeyAuthenticator
from service.auth.base import TicketStore
from service.config import Profile, ProviderKind, Settings
from service.domain.clock import Clock, SystemClock
from service.engine.catalogue import ModelCatalogue
from service.engine.drain import Drain
from service.engine.generation import GenerationService
from service.engine.jobs import JobRunner, JobService
from service.engine.readiness import ReadinessCheck
from service.engine.resumption import ResumableStreams
from service.engine.stream_log import StreamLog
from service.providers.base import Provider
from service.providers.build import open_provider
from service.providers.local import open_local_model
from service.providers.simulator import open_simulator
from service.resources import Resources
from service.storage.embedded import embedded_store_available, open_embedded_store
from service.storage.memory_jobs import MemoryJobQueue
from service.storage.memory_streams import MemoryStreamLog
from service.storage.redis import open_redis
from service.storage.redis_streams import RedisStreamLog
from service.storage.tickets import MemoryTicketStore, RedisTicketStore
from service.telemetry.metrics import Metrics
from service.telemetry.server import open_metrics_server

logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_embedded(settings: Settings) -> AsyncIterator[Settings]:
    """Start what is left to us (embedded model, simulator, store); give settings that name the addresses.

    Given those settings, it starts nothing: a parent that opened them for its workers hands them on.
    """
    async with AsyncExitStack() as stack:
        update: dict[str, object] = {}
        if settings.redis.url is None and _wants_store(settings):
            url = await stack.enter_async_context(open_embedded_store(settings.embedded))
            update["redis"] = settings.redis.model_copy(update={"url": SecretStr(url)})
        providers = dict(settings.providers)
        for name, provider in settings.providers.items():
            if provider.base_url is not None:
                continue
            if provider.kind is ProviderKind.LOCAL:
                address = await stack.enter_async_context(open_local_model(settings.embedded))
            elif provider.kind is ProviderKind.SIMULATOR:
                address = await stack.enter_async_context(open_simulator())
            else:
                continue
            providers[name] = type(provider).model_validate({**provider.model_dump(), "base_url": address})
        yield settings.model_copy(update={**update, "providers": providers})


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Open everything that one process needs; close it in reverse order, also when opening fails half-way."""
    clock = SystemClock()
    metrics = Metrics(_registry())
    async with AsyncExitStack() as stack:
        settings = await stack.enter_async_context(open_embedded(settings))
        if settings.server.workers == 1:  # of several, the parent serves the sum
            await stack.enter_async_context(open_metrics_server(settings.server, metrics.registry))
        providers: dict[str, Provider] = {}
        for name, provider in settings.providers.items():
            providers[name] = await stack.enter_async_context(open_provider(name, provider, clock=clock))
        tickets: TicketStore
        stream_log: StreamLog
        if settings.redis.url is not None:
            redis = await stack.enter_async_context(open_redis(settings.redis))
            tickets = RedisTicketStore(redis, ttl_s=settings.auth.ticket_ttl_s)
            stream_log = await stack.enter_async_context(
                RedisStreamLog(
                    redis=redis, redis_settings=settings.redis, settings=settings.streams, metrics=metrics
                ).opened()
            )
        else:
            tickets = MemoryTicketStore(ttl_s=settings.auth.ticket_ttl_s, clock=clock)
            stream_log = await stack.enter_async_context(
                MemoryStreamLog(settings=settings.streams, clock=clock).opened()
            )
        yield await assemble(
            stack,
            settings=settings,
            providers=providers,
            tickets=tickets,
            stream_log=stream_log,
            metrics=metrics,
            clock=clock,
        )


async def assemble(
    stack: AsyncExitStack,
    *,
    settings: Settings,
    providers: Mapping[str, Provider],
    tickets: TicketStore,
    stream_log: StreamLog,
    metrics: Metrics,
    clock: Clock,
) -> Resources:
    """Put together what does not depend on where providers and stores came from; a test gives fakes.

    What runs in the background is closed by ``stack``.
    """
    catalogue = ModelCatalogue(settings.models)
    drain = Drain(settings.drain)
    generation = GenerationService(
        catalogue=catalogue,
        providers=providers,
        total_timeouts_s={name: provider.timeouts_s.total for name, provider in settings.providers.items()},
        metrics=metrics,
        clock=clock,
    )
    queue = MemoryJobQueue(
        JobRunner(generation=generation),
        concurrency=settings.jobs.concurrency,
        queue_max=settings.jobs.queue_max,
        result_ttl_s=settings.jobs.result_ttl_s,
        drain_s=settings.jobs.drain_s,
        metrics=metrics,
        clock=clock,
    )
    readiness = ReadinessCheck(
        generation=generation,
        settings=settings.readiness,
        model=catalogue.first_chat_model(),
        drain=drain,
        metrics=metrics,
        clock=clock,
    )
    streams = ResumableStreams(log=stream_log, settings=settings.streams, drain=drain, metrics=metrics)
    await stack.enter_async_context(streams.running())
    await stack.enter_async_context(queue.opened())
    await stack.enter_async_context(readiness.running())
    return Resources(
        settings=settings,
        clock=clock,
        metrics=metrics,
        authenticator=KeyAuthenticator(settings.auth, clock),
        drain=drain,
        tickets=tickets,
        generation=generation,
        streams=streams,
        jobs=JobService(queue=queue, generation=generation, clock=clock),
        readiness=readiness,
    )


def _wants_store(settings: Settings) -> bool:
    return settings.profile is Profile.DEVELOPMENT and settings.embedded.store and embedded_store_available()


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
