"""Limits while the shared store is away: each process keeps its part by itself, and money waits for the store."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Literal, Protocol, TypeVar

from service.admission.base import Limiter, LimitReached, quotas_for
from service.admission.memory import MemoryLimiter
from service.config import Settings
from service.domain.clock import Clock
from service.domain.limits import Demand, Limits, Reservation, Scope, quotas_of
from service.errors import StoreUnavailable
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

FAILURES_TO_OPEN = 3
"""Failures in a row, after which nobody waits for the store any more."""
PROBE_EVERY_S = 1.0
RETRY_AFTER_S = 1.0

_Answer = TypeVar("_Answer")


class SharedLimiter(Limiter, Protocol):
    """A limiter that can be away."""

    def running(self) -> AbstractAsyncContextManager[object]:
        """Work in the background while the context is open."""
        ...

    async def ping(self) -> None:
        """Raise ``StoreUnavailable`` where it is away, or could not take a reservation."""
        ...


class _Failures:
    """How often in a row the store failed.

    A reservation proves it well. A booking proves only that others can be made: a store that is full can be read from.
    """

    def __init__(self) -> None:
        self.of_bookings = 0
        self._of_reservations = 0

    @property
    def in_a_row(self) -> int:
        return self.of_bookings + self._of_reservations

    def add(self, before: int, *, is_booking: bool) -> None:
        """Count a failure of one that began when there were so many ``before``.

        Of those that waited at the same time one counts: a single stall must not look like an outage. Nor does one that
        began before others succeeded.
        """
        if before < self.in_a_row:
            return
        if is_booking:
            self.of_bookings += 1
        else:
            self._of_reservations += 1

    def forget(self) -> None:
        self.of_bookings = self._of_reservations = 0


class FallbackLimiter:
    """Obeys :class:`service.admission.base.Limiter` with the store where it answers, and without it where not.

    A request waits for a store that is away at most once, and no more at all after three failures in a row, each of a
    request that began after the one before: then we ask the store ourselves once a second, until it answers. Meanwhile
    rates, tokens and places are kept in memory, at the limit divided by ``replicas``; whoever has a money budget is
    refused with ``StoreUnavailable``, unless ``money`` is ``open``, since a budget that several processes keep apart is
    none. Bookings are made in memory too, for ``replicas`` times their work, and are good there when the store is back.
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
        self._failures = _Failures()
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

    async def prepare(self, settings: Settings) -> Callable[[], None]:
        """See ``Reloadable`` in ``service.reloading``. What was reserved here by other parts stays taken."""

        def commit() -> None:
            self._replicas = settings.admission.replicas
            self._money = settings.admission.money_without_store

        return commit

    @property
    def store_is_away(self) -> bool:
        """Whether nobody asks the store at present."""
        return self._is_away.is_set()

    async def reserve(self, scopes: Sequence[Scope], demand: Demand, *, keep: float = 0.0) -> Reservation:
        """See :class:`service.admission.base.Limiter`."""
        try:
            reservation = await self._from_store(partial(self._store.reserve, scopes, demand, keep=keep))
        except LimitReached:
            self._failures.forget()
            raise
        if reservation is None:
            return await self._reserve_here(scopes, demand, keep)
        self._failures.forget()
        return reservation

    def settle(self, reservation: Reservation, actual: Demand) -> None:
        """See :class:`service.admission.base.Limiter`."""
        if reservation.local:
            self._memory.settle(reservation, actual)
        else:
            self._store.settle(reservation, actual)

    def give_back(self, reservation: Reservation) -> None:
        """See :class:`service.admission.base.Limiter`."""
        if reservation.local:
            self._memory.give_back(reservation)
        else:
            self._store.give_back(reservation)

    async def promise(self, pace: str, ticket: str, *, work_s: float, at_least_s: float) -> float:
        """See :class:`service.admission.base.Limiter`; raises nothing."""
        room_s = await self._from_store(
            partial(self._store.promise, pace, ticket, work_s=work_s, at_least_s=at_least_s), is_booking=True
        )
        if room_s is not None:
            self._failures.of_bookings = 0
            return room_s
        # Each process books its part of the room, so in it the same work takes longer.
        return await self._memory.promise(pace, ticket, work_s=work_s * self._replicas, at_least_s=at_least_s)

    async def redeem(self, pace: str, ticket: str) -> bool:
        """See :class:`service.admission.base.Limiter`; raises nothing."""
        is_good = await self._from_store(partial(self._store.redeem, pace, ticket), is_booking=True)
        if is_good is not None:
            self._failures.of_bookings = 0
        if is_good:
            return True
        # What was promised here while the store was away holds when it is back.
        return await self._memory.redeem(pace, ticket)

    async def _from_store(self, ask: Callable[[], Awaitable[_Answer]], *, is_booking: bool = False) -> _Answer | None:
        """Return what the store answers; None where it is away, or does not answer."""
        if self._is_away.is_set():
            return None
        before = self._failures.in_a_row
        try:
            return await ask()
        except StoreUnavailable as error:
            self._metrics.limiter_store_failures.inc()
            self._failures.add(before, is_booking=is_booking)
            self._leave_alone(error)
            return None

    async def _reserve_here(self, scopes: Sequence[Scope], demand: Demand, keep: float) -> Reservation:
        self._metrics.limits_without_store.inc()
        quotas_for(scopes, demand)  # what could never pass is told so, whether or not the store is there
        if (
            self._money == "closed"
            and demand.nano_usd
            and any(scope.limits.usd_per_day is not None for scope in scopes)
        ):
            raise StoreUnavailable(
                "the shared store is away, and without it no budget can be kept: ask again soon",
                retry_after_s=RETRY_AFTER_S,
            )
        parts = [Scope(scope.kind, scope.name, self._part_of(scope.limits)) for scope in scopes]
        # What fits the limit may not fit its part: it waits for all of the part then.
        capacities = [quota.capacity for part in parts for quota in quotas_of(part) if quota.resource == "tokens"]
        return await self._memory.reserve(
            parts, replace(demand, tokens=min([demand.tokens, *capacities]), nano_usd=0), keep=keep
        )

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

    def _leave_alone(self, error: StoreUnavailable) -> None:
        if self._failures.in_a_row >= FAILURES_TO_OPEN and not self._is_away.is_set():
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
            except Exception:  # the outer edge of the task: a defect here must not keep the store away for good
                logger.exception("looking for the store: defect")
                self._metrics.unhandled_errors.labels("limiter").inc()
                continue
            # The count of failures stays until a reservation succeeds: one more, and nobody waits again.
            self._is_away.clear()
            self._metrics.limits_local.set(0)
            logger.info("limits are kept by the store again")
