"""Limits in the memory of one process, with the arithmetic of the store's script."""

import secrets
from collections import deque
from collections.abc import Sequence

from service.admission.base import (
    BOOKING_UNIT,
    CONCURRENCY_RETRY_MS,
    DAY_MS,
    LEVEL_UNIT,
    PROMISE_KEPT_S,
    PROMISED_MAX_S,
    balances_of,
    booking_time,
    corrections,
    level_of,
    limit_reached,
    needed_of,
    quotas_for,
    until_midnight_ms,
)
from service.domain.clock import Clock
from service.domain.limits import Demand, Quota, Reservation, Scope

FORGET_AT = 1_024
"""So many buckets, budgets and bookings are kept before the first look for those that say nothing any more."""

_Key = tuple[str, str, str]


class MemoryLimiter:
    """Obeys :class:`service.admission.base.Limiter` for one process; all is forgotten when it ends.

    What is full again is the same as what was never touched, so memory is bounded by what is in use.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[_Key, tuple[int, int, Quota]] = {}
        """Level, and the millisecond at which it was that."""
        self._running: dict[_Key, int] = {}
        self._spent: dict[_Key, tuple[int, int]] = {}
        """Day, and nano-dollars on it."""
        self._open: dict[str, int] = {}
        """The day on which each reservation's money is booked."""
        self._paces: dict[str, int] = {}
        """When the last booking of each is over; this and the following in ``BOOKING_UNIT``."""
        self._booked: dict[tuple[str, str], deque[int]] = {}
        """When there is room for a ticket at a pace, in order; never empty."""
        self._forget_at = FORGET_AT

    async def reserve(self, scopes: Sequence[Scope], demand: Demand, *, keep: float = 0.0) -> Reservation:
        """See :class:`service.admission.base.Limiter`."""
        quotas = quotas_for(scopes, demand)
        wall_ms = round(self._clock.wall() * 1_000)
        levels = [self._level(quota) for quota in quotas]
        waits_ms = [
            _wait_ms(quota, level, needed_of(quota, demand, keep=keep), wall_ms)
            for quota, level in zip(quotas, levels, strict=True)
        ]
        if any(waits_ms):
            raise limit_reached(quotas, waits_ms, balances_of(quotas, levels, wall_ms=wall_ms), demand)
        self._forget()
        levels = [self._take(quota, demand.of(quota)) for quota in quotas]
        reservation = Reservation(
            id=secrets.token_hex(8),
            quotas=quotas,
            demand=demand,
            balances=balances_of(quotas, levels, wall_ms=wall_ms),
            local=True,
        )
        self._open[reservation.id] = wall_ms // DAY_MS
        return reservation

    def settle(self, reservation: Reservation, actual: Demand) -> None:
        """See :class:`service.admission.base.Limiter`."""
        self._put_back(reservation, corrections(reservation, actual))

    def give_back(self, reservation: Reservation) -> None:
        """See :class:`service.admission.base.Limiter`."""
        self._put_back(reservation, [reservation.demand.of(quota) for quota in reservation.quotas])

    async def promise(self, pace: str, ticket: str, *, work_s: float, at_least_s: float) -> float:
        """See :class:`service.admission.base.Limiter`."""
        now = self._booking_now()
        room = max(now + booking_time(at_least_s), self._paces.get(pace, 0))
        if room - now > booking_time(PROMISED_MAX_S):
            return PROMISED_MAX_S
        self._forget()
        self._paces[pace] = room + booking_time(work_s)
        self._booked.setdefault((pace, ticket), deque()).append(room)
        return (room - now) / BOOKING_UNIT

    async def redeem(self, pace: str, ticket: str) -> bool:
        """See :class:`service.admission.base.Limiter`."""
        now = self._booking_now()
        booked = self._booked.get((pace, ticket), deque())
        found = False
        while booked and booked[0] <= now and not found:
            found = now - booked.popleft() <= booking_time(PROMISE_KEPT_S)
        if not booked:
            self._booked.pop((pace, ticket), None)
        return found

    def _put_back(self, reservation: Reservation, amounts: Sequence[int]) -> None:
        """Close a reservation: its places, and so much of everything else."""
        day = self._open.pop(reservation.id, None)
        if day is None:
            return
        for quota, amount in zip(reservation.quotas, amounts, strict=True):
            if quota.resource == "concurrency":
                self._take(quota, -1)
            elif quota.resource == "usd" and self._day() != day:
                continue  # yesterday's money is not missing today
            elif amount:
                self._take(quota, -amount)

    def _level(self, quota: Quota) -> int:
        """Return what is left: of a bucket its level, of the rest a number."""
        key = _key(quota)
        match quota.resource:
            case "requests" | "tokens":
                kept = self._buckets.get(key)
                if kept is None:
                    return quota.capacity * LEVEL_UNIT
                level, at, _ = kept
                return level_of(quota.capacity, quota.per_minute, kept=level, gone_ms=self._now_ms() - at)
            case "concurrency":
                return quota.capacity - self._running.get(key, 0)
            case "usd":
                day, spent = self._spent.get(key, (0, 0))
                return quota.capacity - (spent if day == self._day() else 0)

    def _take(self, quota: Quota, amount: int) -> int:
        """Take so much, or give it back where it is negative; return what is left then."""
        key = _key(quota)
        level = self._level(quota)
        match quota.resource:
            case "requests" | "tokens":
                level = min(quota.capacity * LEVEL_UNIT, level - amount * LEVEL_UNIT)
                self._buckets[key] = (level, self._now_ms(), quota)
            case "concurrency":
                running = self._running.get(key, 0) + amount
                if running > 0:
                    self._running[key] = running
                else:
                    self._running.pop(key, None)
                level = quota.capacity - running
            case "usd":
                level -= amount
                self._spent[key] = (self._day(), quota.capacity - level)
        return level

    def _forget(self) -> None:
        if self._kept() < self._forget_at:
            return
        for key, (_, _, quota) in tuple(self._buckets.items()):
            if self._level(quota) >= quota.capacity * LEVEL_UNIT:
                del self._buckets[key]
        today = self._day()
        self._spent = {key: kept for key, kept in self._spent.items() if kept[0] == today}
        now = self._booking_now()
        self._paces = {pace: over for pace, over in self._paces.items() if over > now}
        forgotten = now - booking_time(PROMISE_KEPT_S)
        self._booked = {key: booked for key, booked in self._booked.items() if booked[-1] >= forgotten}
        self._forget_at = max(FORGET_AT, 2 * self._kept())

    def _kept(self) -> int:
        return len(self._buckets) + len(self._spent) + len(self._paces) + len(self._booked)

    def _now_ms(self) -> int:
        return round(self._clock.monotonic() * 1_000)

    def _booking_now(self) -> int:
        return round(self._clock.monotonic() * BOOKING_UNIT)

    def _day(self) -> int:
        return round(self._clock.wall() * 1_000) // DAY_MS


def _key(quota: Quota) -> _Key:
    return quota.resource, quota.kind, quota.name


def _wait_ms(quota: Quota, level: int, needed: int, wall_ms: int) -> int:
    """Return for how long a quota refuses what needs so much of it; 0 where it takes it."""
    if quota.per_minute:
        missing = needed * LEVEL_UNIT - level
        return max(0, -(-missing // quota.per_minute))
    if needed <= level or (quota.resource == "usd" and not needed):
        return 0
    return CONCURRENCY_RETRY_MS if quota.resource == "concurrency" else until_midnight_ms(wall_ms)
