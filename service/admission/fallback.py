"""Limits while the shared store is away: each process keeps its part by itself, and money waits for the store."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal, Protocol

from service.admission.base import Limiter
from service.admission.memory import MemoryLimiter
from service.domain.clock import Clock
from service.domain.limits import Demand, Limits, Reservation, Scope, quotas_of
from service.errors import StoreUnavailable
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

FAILURES_TO_OPEN = 3
"""Failures in a row, after which nobody waits for the store any more."""
PROBE_EVERY_S = 1.0
RETRY_AFTER_S = 1.0


class SharedLimiter(Limiter, Protocol):
    """A limiter that can be away."""

    def running(self) -> AbstractAsyncContextManager[object]:
        """Work in the background while the context is open."""
        ...

    async def ping(self) -> None:
        """Raise ``StoreUnavailable`` where it is away."""
        ...


class FallbackLimiter:
    """Obeys :class:`service.admission.base.Limiter` with the store where it answers, and without it where not.

    A request waits for a store that is away at most once, and no more at all after three failures in a row, each of a
    request that began after the one before: then we ask the store ourselves once a second, until it answers. Meanwhile
    rates, tokens and places are kept in memory, at the limit divided by ``replicas``; whoever has a money budget is
    refused with ``StoreUnavailable``, unless ``money`` is ``open``, since a budget that several processes keep apart is
    none.
    """

    def __init__(
        self,
        store: SharedLimiter,
        *,
        replicas: int,
        money: Literal["closed", "open"],
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._store = store
        self._memory = MemoryLimiter(clock=clock)
        self._replicas = replicas
        self._money = money
        self._metrics = metrics
        self._failures = 0
        self._is_away = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FallbackLimiter"]:
        """Look in the background for a store that is away."""
        async with self._store.running():
            probing = asyncio.create_task(self._probe_forever(), name="limits-probe")
            try:
                yield self
            finally:
                probing.cancel()
                await asyncio.gather(probing, return_exceptions=True)

    @property
    def store_is_away(self) -> bool:
        """Whether nobody asks the store at present."""
        return self._is_away.is_set()

    async def reserve(self, scopes: Sequence[Scope], demand: Demand) -> Reservation:
        """See :class:`service.admission.base.Limiter`."""
        if not self._is_away.is_set():
            before = self._failures
            try:
                reservation = await self._store.reserve(scopes, demand)
            except StoreUnavailable as error:
                self._failed(error, before)
            else:
                self._failures = 0
                return reservation
        return await self._reserve_here(scopes, demand)

    def settle(self, reservation: Reservation, actual: Demand) -> None:
        """See :class:`service.admission.base.Limiter`."""
        if reservation.local:
            self._memory.settle(reservation, actual)
        else:
            self._store.settle(reservation, actual)

    async def _reserve_here(self, scopes: Sequence[Scope], demand: Demand) -> Reservation:
        self._metrics.limits_without_store.inc()
        if self._money == "closed" and any(scope.limits.usd_per_day is not None for scope in scopes):
            raise StoreUnavailable(
                "the shared store is away, and without it no budget can be kept: ask again soon",
                retry_after_s=RETRY_AFTER_S,
            )
        parts = [Scope(scope.kind, scope.name, self._part_of(scope.limits)) for scope in scopes]
        # What fits the limit may not fit its part: it waits for all of the part then.
        capacities = [quota.capacity for part in parts for quota in quotas_of(part) if quota.resource == "tokens"]
        return await self._memory.reserve(parts, Demand(tokens=min([demand.tokens, *capacities])))

    def _part_of(self, limits: Limits) -> Limits:
        return Limits(
            requests_per_minute=self._part(limits.requests_per_minute),
            request_burst=self._part(limits.request_burst),
            tokens_per_minute=self._part(limits.tokens_per_minute),
            token_burst=self._part(limits.token_burst),
            concurrency=self._part(limits.concurrency),
        )

    def _part(self, limit: int | None) -> int | None:
        return None if limit is None else max(1, limit // self._replicas)

    def _failed(self, error: StoreUnavailable, before: int) -> None:
        self._metrics.limiter_store_failures.inc()
        # Of those that waited at the same time one counts: a single stall must not look like an outage.
        self._failures = max(self._failures, before + 1)
        if self._failures >= FAILURES_TO_OPEN and not self._is_away.is_set():
            self._is_away.set()
            self._metrics.limits_local.set(1)
            logger.warning("limits are kept by each process, since the store is away", extra={"error": str(error)})

    async def _probe_forever(self) -> None:
        while True:
            await self._is_away.wait()
            await asyncio.sleep(PROBE_EVERY_S)
            try:
                await self._store.ping()
            except StoreUnavailable:
                continue
            self._failures = 0
            self._is_away.clear()
            self._metrics.limits_local.set(0)
            logger.info("limits are kept by the store again")
