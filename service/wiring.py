"""The composition root: turns settings into resources, and is the only place that picks implementations."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from pydantic import SecretStr

from service.admission.base import Limiter
from service.admission.fallback import FallbackLimiter
from service.admission.memory import MemoryLimiter
from service.admission.redis import RedisLimiter
from service.api.job_routes import BATCH_ROUTES, JOB_ROUTES
from service.api.job_state import job_event
from service.auth.authenticator import KeyAuthenticator
from service.auth.base import TicketStore
from service.config import Profile, ProviderKind, ProviderSettings, Settings, takes_jobs
from service.config.fingerprint import KeyFingerprints
from service.config.reload import SettingsSource
from service.domain.clock import Clock, SystemClock
from service.engine.admission import Admission
from service.engine.attempts import Attempts
from service.engine.batches import BatchService, BatchStore
from service.engine.catalogue import ModelCatalogue
from service.engine.drain import Drain
from service.engine.generation import GenerationService
from service.engine.idempotency import Idempotency, IdempotencyStore
from service.engine.jobs import JobRunner, JobService, JobStore
from service.engine.probe_board import ProbeBoard
from service.engine.prober import Prober
from service.engine.readiness import ReadinessCheck
from service.engine.resumption import ResumableStreams
from service.engine.stream_log import StreamLog
from service.providers.base import Provider
from service.providers.build import open_provider
from service.providers.local import open_local_model
from service.providers.pool import ProviderPool
from service.providers.simulator import open_simulator
from service.reloading import Reloadable, SettingsReload
from service.resources import Resources
from service.storage.embedded import embedded_store_available, open_embedded_store
from service.storage.idempotency import MemoryIdempotencyStore, RedisIdempotencyStore
from service.storage.memory_jobs import MemoryJobStore
from service.storage.memory_streams import MemoryStreamLog
from service.storage.probe_board import MemoryProbeBoard, RedisProbeBoard
from service.storage.redis import open_redis
from service.storage.redis_batches import RedisBatchStore
from service.storage.redis_jobs import RedisJobStore
from service.storage.redis_streams import RedisStreamLog
from service.storage.tickets import MemoryTicketStore, RedisTicketStore
from service.telemetry.metrics import Metrics
from service.telemetry.server import open_metrics_server
from service.webhooks.secrets import WebhookSecrets
from service.webhooks.sender import WebhookSender
from service.worker.loop import Worker
from service.worker.webhooks import WebhookDelivery


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
async def open_resources(settings: Settings, *, source: SettingsSource | None = None) -> AsyncIterator[Resources]:
    """Open everything that one process needs; close it in reverse order, also when opening fails half-way.

    Changes of the file that ``source`` knows are taken over while it is open.
    """
    clock = SystemClock()
    metrics = Metrics(_registry())
    async with AsyncExitStack() as stack:
        settings = await stack.enter_async_context(open_embedded(settings))
        if settings.server.workers == 1:  # of several, the parent serves the sum
            await stack.enter_async_context(open_metrics_server(settings.server, metrics.registry))

        def opener(name: str, provider: ProviderSettings) -> AbstractAsyncContextManager[Provider]:
            return open_provider(name, provider, clock=clock, metrics=metrics)

        pool = ProviderPool(opener, clock, on_gone=metrics.forget_provider)
        providers = await stack.enter_async_context(pool.opened(settings.providers))
        tickets: TicketStore
        stream_log: StreamLog
        limiter: Limiter
        board: ProbeBoard
        job_store: JobStore | None
        batch_store: BatchStore | None = None
        idempotency: IdempotencyStore
        if settings.redis.url is not None:
            redis = await stack.enter_async_context(open_redis(settings.redis))
            tickets = RedisTicketStore(redis, ttl_s=settings.auth.ticket_ttl_s)
            stream_log = await stack.enter_async_context(
                RedisStreamLog(
                    redis=redis, redis_settings=settings.redis, settings=settings.streams, metrics=metrics
                ).opened()
            )
            board = await stack.enter_async_context(RedisProbeBoard(settings.redis, clock).opened())
            idempotency = RedisIdempotencyStore(redis)
            job_store = await stack.enter_async_context(
                RedisJobStore(redis=settings.redis, settings=settings.jobs).opened()
            )
            batch_store = await stack.enter_async_context(
                RedisBatchStore(redis=settings.redis, settings=settings.jobs).opened()
            )
            limiter = await stack.enter_async_context(
                FallbackLimiter(
                    RedisLimiter(settings=settings.redis, metrics=metrics),
                    replicas=settings.admission.replicas,
                    money=settings.admission.money_without_store,
                    metrics=metrics,
                    clock=clock,
                ).running()
            )
        else:
            board = MemoryProbeBoard(clock)
            idempotency = MemoryIdempotencyStore(clock)
            job_store = MemoryJobStore(settings.jobs, clock) if takes_jobs(settings) else None
            limiter = MemoryLimiter(clock=clock)
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
            limiter=limiter,
            board=board,
            job_store=job_store,
            batch_store=batch_store,
            idempotency=idempotency,
            metrics=metrics,
            clock=clock,
            source=source,
        )


async def assemble(
    stack: AsyncExitStack,
    *,
    settings: Settings,
    providers: ProviderPool,
    tickets: TicketStore,
    stream_log: StreamLog,
    limiter: Limiter,
    board: ProbeBoard,
    job_store: JobStore | None,
    idempotency: IdempotencyStore,
    metrics: Metrics,
    clock: Clock,
    source: SettingsSource | None = None,
    batch_store: BatchStore | None = None,
) -> Resources:
    """Put together what does not depend on where providers and stores came from; a test gives fakes.

    What runs in the background is closed by ``stack``.
    """
    catalogue = ModelCatalogue(settings.models)
    attempts = Attempts(
        providers=providers,
        settings=settings.providers,
        resilience=settings.resilience,
        admission=settings.admission,
        limiter=limiter,
        metrics=metrics,
        clock=clock,
    )
    drain = Drain(settings.drain)
    admission = Admission(limiter=limiter, shadow=settings.admission.shadow, metrics=metrics)
    generation = GenerationService(
        catalogue=catalogue,
        attempts=attempts,
        admission=admission,
        metrics=metrics,
    )
    readiness = ReadinessCheck(
        routes=catalogue.chat_routes,
        keys=KeyFingerprints(settings.providers),
        prober=Prober(providers=providers.unobserved, metrics=metrics, clock=clock, price_at=catalogue.price_at),
        board=board,
        settings=settings.readiness,
        drain=drain,
        metrics=metrics,
        clock=clock,
    )
    providers.observe(readiness.note)
    streams = ResumableStreams(log=stream_log, settings=settings.streams, drain=drain, metrics=metrics)
    await stack.enter_async_context(streams.running())
    authenticator = KeyAuthenticator(
        settings.auth, clock, on_file=partial(metrics.note_key_file, "client_keys", "auth.keys_file")
    )
    jobs = JobService(store=job_store, routes=JOB_ROUTES, generation=generation)
    if settings.jobs.worker and job_store is not None:
        runner = JobRunner(routes=JOB_ROUTES, generation=generation, authenticator=authenticator)
        worker = Worker(
            store=job_store,
            runner=runner,
            news=jobs.news,
            settings=settings.jobs,
            drain=drain,
            metrics=metrics,
            clock=clock,
        )
        await stack.enter_async_context(worker.running())
        await stack.enter_async_context(_delivery(await _sender(stack, settings, clock), job_store, settings, metrics))
    if source is not None:
        # What goes by what else stands in this order; what opens something has to be the last.
        parts: tuple[Reloadable, ...] = (
            authenticator,
            catalogue,
            attempts,
            admission,
            *((limiter,) if isinstance(limiter, FallbackLimiter) else ()),
            readiness,
            providers,
        )
        reload = SettingsReload(source=source, running=settings, parts=parts, metrics=metrics)
        await stack.enter_async_context(reload.running())
    await stack.enter_async_context(readiness.running())
    return Resources(
        settings=settings,
        clock=clock,
        metrics=metrics,
        authenticator=authenticator,
        admission=admission,
        drain=drain,
        tickets=tickets,
        generation=generation,
        streams=streams,
        jobs=jobs,
        batches=BatchService(store=batch_store, routes=BATCH_ROUTES, generation=generation, news=jobs.news),
        idempotency=Idempotency(store=idempotency, drain=drain),
        readiness=readiness,
    )


async def _sender(stack: AsyncExitStack, settings: Settings, clock: Clock) -> WebhookSender:
    webhooks = settings.webhooks
    sender = WebhookSender(
        secrets=WebhookSecrets(webhooks),
        allow_http=bool(webhooks.allow_http),
        allow_networks=webhooks.allow_networks or (),
        timeout_s=webhooks.timeout_s,
        clock=clock,
    )
    return await stack.enter_async_context(sender.opened())


def _delivery(
    sender: WebhookSender, store: JobStore, settings: Settings, metrics: Metrics
) -> AbstractAsyncContextManager[None]:
    return WebhookDelivery(
        store=store, sender=sender, write=job_event, timeout_s=settings.webhooks.timeout_s, metrics=metrics
    ).running()


def _wants_store(settings: Settings) -> bool:
    return settings.profile is Profile.DEVELOPMENT and settings.embedded.store and embedded_store_available()


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
