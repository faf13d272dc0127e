"""Opens a provider by its settings; the one place that knows all kinds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from service.config import ProviderKind, ProviderSettings
from service.domain.background import in_background
from service.domain.clock import Clock
from service.providers.anthropic import open_anthropic
from service.providers.base import Provider
from service.providers.keys import KeyRing
from service.providers.local import STOP_STRINGS
from service.providers.openai import open_openai
from service.telemetry.metrics import Metrics

TELL_S = 15.0
"""How often is looked for what is over while no answer comes: as often as most are scraped."""


@asynccontextmanager
async def open_provider(
    name: str, settings: ProviderSettings, *, clock: Clock, metrics: Metrics | None = None
) -> AsyncIterator[Provider]:
    """Open the provider ``name``; close its connections on leaving. Nothing is sent before the first call.

    The embedded model and a simulator of ours must run already, at ``settings.base_url``: ``ValueError`` otherwise,
    since what is meant for them must not go to a vendor. Dead keys, and what is left of limits, go to ``metrics``.
    """
    local = settings.kind is ProviderKind.LOCAL
    if settings.base_url is None and (local or settings.kind is ProviderKind.SIMULATOR):
        raise ValueError(f"the provider {name!r} has no address")
    keys = KeyRing(
        provider=name,
        keys=settings.keys,
        files=settings.key_files,
        clock=clock,
        forgiving=not settings.breaker.enabled,
        on_dead=None if metrics is None else partial(_tell_dead, metrics, name),
        on_left=None if metrics is None else partial(metrics.note_left, name),
        on_files=None if metrics is None else partial(metrics.note_key_file, "provider_keys", name),
    )
    if metrics is not None:
        metrics.provider_keys_dead.labels(name)  # as it stands: the provider before this one may still be in its place
    async with AsyncExitStack() as stack:
        if metrics is not None:
            telling = in_background(_tell_on(keys, TELL_S), name=f"tell what is left at {name}")
            await stack.enter_async_context(telling)
        if settings.kind is ProviderKind.ANTHROPIC:
            yield await stack.enter_async_context(open_anthropic(name, settings, keys=keys))
            return
        provider = open_openai(
            name,
            settings,
            base_url=None if settings.base_url is None else str(settings.base_url),
            keys=keys,
            stop=STOP_STRINGS if local else (),
            # llama.cpp's server closes a connection after a stream without having announced it: the next request would
            # be lost on it. A connection of its own costs a request on this machine less than 0.1 ms.
            keep_alive=not local,
            # It says so of images, and of texts to embed that are longer than its batch.
            rejects_with_500=local,
        )
        yield await stack.enter_async_context(provider)


def _tell_dead(metrics: Metrics, provider: str, count: int) -> None:
    metrics.provider_keys_dead.labels(provider).set(count)


async def _tell_on(keys: KeyRing, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        keys.tell_left()
