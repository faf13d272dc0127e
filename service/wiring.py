"""The composition root: turns settings into resources, and is the only place that picks implementations."""

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from pydantic import SecretStr

from service.admission.base import Limiter
from service.admission.fallback import FallbackLimiter
from service.admission.memory import MemoryLimiter
from service.admission.redis import RedisLimiter
from service.api.job_routes import BATCH_ROUTES, JOB_ROUTES
from service.api.job_state import job_event
from service.auth.authenticator import KeyAuthenticator
from service.auth.base import TicketStore
from service.config import Profile, ProviderKind, ProviderSettings, Settings, UsageSettings, takes_jobs, usage_dir
from service.config.fingerprint import KeyFingerprints
from service.config.reload import SettingsSource
from service.domain.clock import Clock, SystemClock
from service.domain.trace import Tracing
from service.engine.admission import Admission
from service.engine.attempts import Attempts
from service.engine.batches import BatchService, BatchStore
from service.engine.bounded_usage import AT_ONCE, BoundedUsage
from service.engine.catalogue import ModelCatalogue
from service.engine.drain import Drain
from service.engine.generation import GenerationService
from service.engine.idempotency import Idempotency, IdempotencyStore
from service.engine.invoices import Invoices
from service.engine.jobs import JobRunner, JobService, JobStore
from service.engine.ledger import Ledger
from service.engine.ledger_recovery import LedgerRecovery
from service.engine.ledger_writer import LedgerStore, LedgerWriter
from service.engine.probe_board import ProbeBoard
from service.engine.prober import Prober
from service.engine.queue_watch import watching_queue
from service.engine.readiness import ReadinessCheck
from service.engine.resumption import ResumableStreams
from service.engine.stream_log import StreamLog
from service.engine.usage_report import UsageSource
from service.providers.base import Provider
from service.providers.build import open_provider
from service.providers.invoice import SimulatorInvoice
from service.providers.local import open_local_model
from service.providers.pool import ProviderPool
from service.providers.simulator import open_simulator
from service.reloading import Reloadable, SettingsReload
from service.resources import Resources
from service.storage.embedded import embedded_store_available, open_embedded_store, running_store
from service.storage.file_ledger import FileLedgerStore
from service.storage.idempotency import MemoryIdempotencyStore, RedisIdempotencyStore
from service.storage.journal import FileJournal
from service.storage.memory_jobs import MemoryJobStore
from service.storage.memory_streams import MemoryStreamLog
from service.storage.postgres_usage import PostgresUsage
from service.storage.probe_board import MemoryProbeBoard, RedisProbeBoard
from service.storage.redis import open_redis
from service.storage.redis_batches import RedisBatchStore
from service.storage.redis_jobs import RedisJobStore
from service.storage.redis_ledger import RedisLedgerStore
from service.storage.redis_streams import RedisStreamLog
from service.storage.tickets import MemoryTicketStore, RedisTicketStore
from service.storage.usage_files import UsageFiles
from service.telemetry.event_loop import watching_event_loop
from service.telemetry.metrics import Component, Metrics
from service.telemetry.server import open_metrics_server
from service.telemetry.tracing import open_tracing
from service.webhooks.secrets import WebhookSecrets
from service.webhooks.sender import WebhookSender
from service.worker.loop import Worker
from service.worker.usage_sink import UsageDrain
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
async def open_resources(
    settings: Settings, *, source: SettingsSource | None = None, component: Component = "api"
) -> AsyncIterator[Resources]:
    """Open everything that one process needs; close it in reverse order, also when opening fails half-way.

    Changes of the file that ``source`` knows are taken over while it is open.
    """
    clock = SystemClock()
    metrics = Metrics(_registry(), component=component)
    async with AsyncExitStack() as stack:
        tracing = await stack.enter_async_context(open_tracing(os.environ, metrics))  # closed last: all else may tell
        settings = await stack.enter_async_context(open_embedded(settings))
        if settings.server.workers == 1:  # of several, the parent serves the sum
            await stack.enter_async_context(open_metrics_server(settings.server, metrics.registry))

        def opener(name: str, provider: ProviderSettings) -> AbstractAsyncContextManager[Provider]:
            return open_provider(name, provider, clock=clock, metrics=metrics)

        await stack.enter_async_context(watching_event_loop(metrics))
        pool = ProviderPool(opener, clock, on_gone=metrics.forget_provider)
        providers = await stack.enter_async_context(pool.opened(settings.providers))
        tickets: TicketStore
        stream_log: StreamLog
        limiter: Limiter
        board: ProbeBoard
        job_store: JobStore | None
        batch_store: BatchStore | None = None
        idempotency: IdempotencyStore
        ledger_store: LedgerStore
        if settings.redis.url is not None:
            redis = await stack.enter_async_context(open_redis(settings.redis, metrics=metrics))
            tickets = RedisTicketStore(redis, ttl_s=settings.auth.ticket_ttl_s)
            stream_log = await stack.enter_async_context(
                RedisStreamLog(
                    redis=redis, redis_settings=settings.redis, settings=settings.streams, metrics=metrics
                ).opened()
            )
            board = await stack.enter_async_context(RedisProbeBoard(settings.redis, clock, metrics=metrics).opened())
            idempotency = RedisIdempotencyStore(redis)
            job_store = await stack.enter_async_context(
                RedisJobStore(redis=settings.redis, settings=settings.jobs, metrics=metrics).opened()
            )
            batch_store = await stack.enter_async_context(
                RedisBatchStore(redis=settings.redis, settings=settings.jobs, metrics=metrics).opened()
            )
            ledger_store = await stack.enter_async_context(
                RedisLedgerStore(redis=settings.redis, settings=settings.usage, metrics=metrics).opened()
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
            ledger_store = FileLedgerStore(usage_dir(settings))
            stack.callback(ledger_store.close)
            limiter = MemoryLimiter(clock=clock)
            tickets = MemoryTicketStore(ttl_s=settings.auth.ticket_ttl_s, clock=clock)
            stream_log = await stack.enter_async_context(
                MemoryStreamLog(settings=settings.streams, clock=clock).opened()
            )
        usage: UsageSource = ledger_store
        if isinstance(ledger_store, RedisLedgerStore):
            usage = await _drained(stack, ledger_store, settings.usage, metrics)
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
            ledger_store=ledger_store,
            usage=usage,
            metrics=metrics,
            clock=clock,
            source=source,
            tracing=tracing,
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
    ledger_store: LedgerStore | None = None,
    usage: UsageSource | None = None,
    tracing: Tracing | None = None,
) -> Resources:
    """Put together what does not depend on where providers and stores came from; a test gives fakes.

    What runs in the background is closed by ``stack``.
    """
    metrics.show_models({name: [route.provider for route in model.routes] for name, model in settings.models.items()})
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
    await stack.enter_async_context(attempts.breakers.swept())
    drain = Drain(settings.drain)
    admission = Admission(limiter=limiter, shadow=settings.admission.shadow, metrics=metrics)
    ledger = await _ledger(stack, ledger_store, settings=settings, catalogue=catalogue, metrics=metrics, clock=clock)
    generation = GenerationService(
        catalogue=catalogue,
        attempts=attempts,
        admission=admission,
        ledger=ledger,
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
    jobs = JobService(store=job_store, routes=JOB_ROUTES, generation=generation, metrics=metrics)
    if settings.jobs.worker and job_store is not None:
        runner = JobRunner(routes=JOB_ROUTES, generation=generation, authenticator=authenticator, tracing=tracing)
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
        sender = await _sender(stack, settings, clock)
        await stack.enter_async_context(_delivery(sender, job_store, settings, clock, metrics))
    elif job_store is not None:
        await stack.enter_async_context(watching_queue(job_store, metrics))
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
        usage=None if usage is None else BoundedUsage(usage),
        tracing=tracing,
    )


async def _drained(
    stack: AsyncExitStack, log: RedisLedgerStore, settings: UsageSettings, metrics: Metrics
) -> UsageSource:
    """Have records taken to where they are kept for good; return where to read them."""
    source: UsageSource = log
    if settings.export_dir is not None:
        files = UsageFiles(settings.export_dir)
        stack.callback(files.close)
        lines = UsageDrain(log=log, sink=files, name="files", metrics=metrics)
        await stack.enter_async_context(lines.running())
    if settings.postgres_url is not None:
        # Reports have connections of their own, so that none keeps the drain waiting, and one for how whole they are.
        reports = PostgresUsage(settings.postgres_url, connections_max=AT_ONCE + 1)
        source = await stack.enter_async_context(reports.opened())
        postgres = await stack.enter_async_context(PostgresUsage(settings.postgres_url).opened())
        rows = UsageDrain(log=log, sink=postgres, name="postgres", metrics=metrics)
        await stack.enter_async_context(rows.running())
    return source


@asynccontextmanager
async def open_usage(settings: Settings) -> AsyncIterator[UsageSource]:
    """Give the records that there are, for whoever only reads them."""
    async with AsyncExitStack() as stack:
        if settings.usage.postgres_url is not None:
            yield await stack.enter_async_context(PostgresUsage(settings.usage.postgres_url).opened())
            return
        redis = settings.redis
        if redis.url is None and _wants_store(settings):
            url = running_store(settings.embedded.cache_dir)
            if url is None:
                url = await stack.enter_async_context(open_embedded_store(settings.embedded))
            redis = redis.model_copy(update={"url": SecretStr(url)})
        if redis.url is None:
            yield FileLedgerStore(usage_dir(settings))
        else:
            yield await stack.enter_async_context(RedisLedgerStore(redis=redis, settings=settings.usage).opened())


async def _ledger(
    stack: AsyncExitStack,
    store: LedgerStore | None,
    *,
    settings: Settings,
    catalogue: ModelCatalogue,
    metrics: Metrics,
    clock: Clock,
) -> Ledger:
    """Open the ledger; without a ``store`` nothing is kept."""
    found = {
        name: SimulatorInvoice(provider=name, base_url=str(provider.base_url))
        for name, provider in settings.providers.items()
        if provider.kind is ProviderKind.SIMULATOR and provider.base_url is not None
    }
    invoices = Invoices(found, catalogue.price_of)
    writer = None
    if store is not None:
        owner = uuid.uuid4().hex
        journal = FileJournal(usage_dir(settings), owner)
        stack.callback(journal.release)
        writer = LedgerWriter(store=store, journal=journal, metrics=metrics, owner=owner)
        recovery = LedgerRecovery(store=store, invoices=invoices, metrics=metrics, clock=clock)
        await stack.enter_async_context(recovery.running())
    ledger = Ledger(writer=writer, invoices=invoices, metrics=metrics, clock=clock)
    await stack.enter_async_context(ledger.running())
    return ledger


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
    sender: WebhookSender, store: JobStore, settings: Settings, clock: Clock, metrics: Metrics
) -> AbstractAsyncContextManager[None]:
    return WebhookDelivery(
        store=store,
        sender=sender,
        write=job_event,
        timeout_s=settings.webhooks.timeout_s,
        clock=clock,
        metrics=metrics,
    ).running()


def _wants_store(settings: Settings) -> bool:
    return settings.profile is Profile.DEVELOPMENT and settings.embedded.store and embedded_store_available()


def _registry() -> CollectorRegistry:
    # When each series began is a third of all series, and nobody asks for it.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
