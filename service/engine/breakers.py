"""The circuit breakers of a process: one for each model of a provider with each key, found, counted and forgotten."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import msgspec

from service.config import BreakerSettings
from service.domain.background import in_background
from service.domain.clock import Clock
from service.engine.catalogue import ModelEntry, Route
from service.providers.base import ProviderKey
from service.resilience.breaker import Breaker, State
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

MAX_BREAKERS = 4096
"""How many are remembered; names of models that callers choose must not fill the memory."""
FORGOTTEN_S = 60.0
"""Seconds without a call after which an open breaker is forgotten, so that it is told of only while it matters: nobody
may ask for its model any more, its key may have been replaced."""


class _Fuse(msgspec.Struct, frozen=True):
    """What a breaker is for."""

    provider: str
    upstream_model: str
    key: str
    """Its fingerprint."""
    label: str
    """The model in metrics: the provider's name for it if the settings have it, else the pattern."""


class Breakers:
    """All breakers, made as they are asked for."""

    def __init__(self, *, metrics: Metrics, clock: Clock, random: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._random = random
        self._breakers: OrderedDict[_Fuse, Breaker] = OrderedDict()
        self._not_closed: set[_Fuse] = set()
        self._swept_at = clock.monotonic()

    def of(self, entry: ModelEntry, route: Route, key: ProviderKey, settings: BreakerSettings) -> Breaker:
        """Return the breaker of a route and a key."""
        label = entry.name if "*" in entry.name else route.model
        fuse = _Fuse(route.provider, route.model, key.fingerprint, label)
        breaker = self._breakers.get(fuse)
        if breaker is None:
            breaker = self._breakers[fuse] = Breaker(
                settings, clock=self._clock, random=self._random, on_change=partial(self._changed, fuse)
            )
            if len(self._breakers) > MAX_BREAKERS:
                self._forget(next(iter(self._breakers)))
        else:
            self._breakers.move_to_end(fuse)
        return breaker

    def forget(self, provider: str) -> None:
        """Forget what was learnt of a provider."""
        for fuse in [fuse for fuse in self._breakers if fuse.provider == provider]:
            self._forget(fuse)

    def sweep(self) -> None:
        """Forget, now and then, what is open and asked for by nobody."""
        now = self._clock.monotonic()
        if self._not_closed and now - self._swept_at >= FORGOTTEN_S:
            self._swept_at = now
            for fuse in [fuse for fuse in self._not_closed if self._breakers[fuse].idle_s >= FORGOTTEN_S]:
                self._forget(fuse)

    @asynccontextmanager
    async def swept(self, *, every_s: float = FORGOTTEN_S / 2) -> AsyncIterator[None]:
        """Sweep within the block also while nobody asks for anything: what is told would stay as it was."""
        async with in_background(self._sweep_on(every_s), name="sweep the circuit breakers"):
            yield

    async def _sweep_on(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            self.sweep()

    def _forget(self, fuse: _Fuse) -> None:
        del self._breakers[fuse]
        self._count_open(fuse, is_open=False)

    def _changed(self, fuse: _Fuse, breaker: Breaker) -> None:
        if self._breakers.get(fuse) is not breaker:
            return  # forgotten while a call ran
        self._count_open(fuse, is_open=breaker.state is not State.CLOSED)
        logger.log(
            logging.WARNING if breaker.state is State.OPEN else logging.INFO,
            "circuit breaker %s",
            breaker.state,
            extra={
                "provider": fuse.provider,
                "upstream_model": fuse.upstream_model,
                "key": fuse.key,
                "cause": breaker.cause,
                "wait_s": round(breaker.wait_s, 3),
            },
        )

    def _count_open(self, fuse: _Fuse, *, is_open: bool) -> None:
        if is_open == (fuse in self._not_closed):
            return
        gauge = self._metrics.upstream_breakers_open.labels(fuse.provider, fuse.label)
        if is_open:
            self._not_closed.add(fuse)
            gauge.inc()
        else:
            self._not_closed.discard(fuse)
            gauge.dec()
