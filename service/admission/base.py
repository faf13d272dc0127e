"""What the engine asks of a limiter, and the arithmetic and words that all limiters share."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from service.domain.limits import NANO, Balance, Demand, Quota, Reservation, Resource, Scope, quotas_of
from service.errors import BeyondLimit, RateLimited

MINUTE_MS = 60_000
DAY_MS = 86_400_000
LEVEL_UNIT = MINUTE_MS
"""Buckets count in 60,000ths of a request or token, so that a rate of n a minute adds exactly n of them in each
millisecond. Redis computes in doubles, which are exact up to 2⁵³: enough for a burst of 10¹¹ tokens, which is the
most that the settings take."""
MOST_USED: Mapping[Resource, int] = {"requests": 0, "tokens": 100_000_000, "concurrency": 0, "usd": 100_000 * NANO}
"""How much more than reserved one request is taken to have used at most: of tokens, ten times the longest context that
there is; 100,000 dollars."""
CONCURRENCY_RETRY_MS = 1_000
"""When a running request ends nobody knows."""
PROMISED_MAX_S = 3_600.0
"""How far ahead room is booked for requests that were refused."""
PROMISE_KEPT_S = 60.0
"""How late a request may come for what was booked for it."""
BOOKING_UNIT = 1_000_000
"""Bookings are counted in microseconds, so that many that take less than a millisecond still add up."""


class LimitReached(RateLimited):
    """A limit refuses a request, which took nothing of anything."""

    def __init__(
        self, message: str, *, retry_after_s: float, quotas: tuple[Quota, ...], balances: tuple[Balance, ...]
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.quotas = quotas
        """Those that refuse."""
        self.balances = balances
        """What is left of all."""


class DemandTooLarge(BeyondLimit):
    """No waiting would let this request through."""

    quotas: tuple[Quota, ...] = ()
    """Those that can never hold it."""


class Limiter(Protocol):
    """Keeps limits. A request passes all of its scopes or none."""

    async def reserve(self, scopes: Sequence[Scope], demand: Demand, *, keep: float = 0.0) -> Reservation:
        """Take one request, a place and the demand from each scope that limits them, in one atomic step.

        ``keep`` is the part of each capacity, rounded down, that must be left after it; less where the demand could
        never pass otherwise.

        Raises ``LimitReached`` when any has too little; then nothing was taken, and ``retry_after_s`` is the first
        instant at which the same demand passes, as far as that can be known. Raises ``BeyondLimit`` for what could
        never pass, and ``StoreUnavailable``. Cancelled, it has taken nothing.
        """
        ...

    def settle(self, reservation: Reservation, actual: Demand) -> None:
        """Give the place back, and correct what was reserved to what was used; the request stays counted.

        Does not wait. Settling a reservation again does nothing.
        """
        ...

    def give_back(self, reservation: Reservation) -> None:
        """Undo a reservation that was not used: the request is not counted either. Else as :meth:`settle`."""
        ...

    async def promise(self, pace: str, ticket: str, *, work_s: float, at_least_s: float) -> float:
        """Book room for a request that is refused now, and return the seconds until there is.

        Bookings of one ``pace`` follow each other: each takes ``work_s``, and none begins before ``at_least_s`` from
        now. ``ticket`` is what the request is known by when it comes again; the same may be booked several times. Where
        room is more than ``PROMISED_MAX_S`` ahead nothing is booked, and ``PROMISED_MAX_S`` is returned. Raises
        ``StoreUnavailable``.
        """
        ...

    async def redeem(self, pace: str, ticket: str) -> bool:
        """Use up a booking whose time has come, if the ticket has one; it is good for ``PROMISE_KEPT_S`` after that.

        Raises ``StoreUnavailable``.
        """
        ...


def quotas_for(scopes: Sequence[Scope], demand: Demand) -> tuple[Quota, ...]:
    """List the quotas of all scopes; raise ``BeyondLimit`` where one can never hold the demand."""
    quotas = tuple(quota for scope in scopes for quota in quotas_of(scope))
    for quota in quotas:
        if demand.of(quota) > quota.capacity:
            raise _beyond(quota, demand)
    return quotas


def needed_of(quota: Quota, demand: Demand, *, keep: float) -> int:
    """Return how much must be there for the demand to pass, what it has to leave included; money is left to nobody."""
    amount = demand.of(quota)
    return amount if quota.resource == "usd" else min(quota.capacity, amount + int(quota.capacity * keep))


def corrections(reservation: Reservation, actual: Demand) -> list[int]:
    """Return how much of each quota comes back; what is negative was used beyond what was reserved.

    Bounded, since figures come from providers: a senseless one must stay within what limiters can count.
    """
    return [
        max(reservation.demand.of(quota) - actual.of(quota), -MOST_USED[quota.resource]) for quota in reservation.quotas
    ]


def booking_time(seconds: float) -> int:
    """Return a time as bookings count it; one that no promise reaches is as good as any longer one."""
    return round(min(seconds, 2 * PROMISED_MAX_S) * BOOKING_UNIT)


def level_of(capacity: int, per_minute: int, *, kept: int, gone_ms: int) -> int:
    """Return a bucket's level now, from what it was ``gone_ms`` ago; all levels in ``LEVEL_UNIT``."""
    return min(capacity * LEVEL_UNIT, kept + max(0, gone_ms) * per_minute)


def balances_of(quotas: Sequence[Quota], levels: Sequence[int], *, wall_ms: int) -> tuple[Balance, ...]:
    """Say what is left: of rates from levels, of the rest from what is left as a number."""
    return tuple(_balance(quota, level, wall_ms) for quota, level in zip(quotas, levels, strict=True))


def until_midnight_ms(wall_ms: int) -> int:
    """Return how long the day (UTC) still takes."""
    return DAY_MS - wall_ms % DAY_MS


def limit_reached(
    quotas: Sequence[Quota], waits_ms: Sequence[int], balances: tuple[Balance, ...], demand: Demand
) -> LimitReached:
    """Make the refusal: the quotas with a wait refuse, and the one with the longest is named."""
    failed = tuple(quota for quota, wait_ms in zip(quotas, waits_ms, strict=True) if wait_ms)
    wait_ms, named = max(zip(waits_ms, quotas, strict=True), key=lambda pair: pair[0])
    retry_after_s = wait_ms / 1_000
    return LimitReached(
        _refusal(named, demand, retry_after_s), retry_after_s=retry_after_s, quotas=failed, balances=balances
    )


def _balance(quota: Quota, level: int, wall_ms: int) -> Balance:
    if quota.per_minute:
        missing = quota.capacity * LEVEL_UNIT - level
        return Balance(quota, max(0, level // LEVEL_UNIT), -(-missing // quota.per_minute))
    return Balance(quota, max(0, level), until_midnight_ms(wall_ms) if quota.resource == "usd" else 0)


def _refusal(quota: Quota, demand: Demand, retry_after_s: float) -> str:
    wait = f"{retry_after_s:.3f}".rstrip("0").rstrip(".")
    match quota.resource:
        case "requests":
            return f"{quota.owner} may start {quota.per_minute} requests a minute: ask again in {wait} s"
        case "tokens":
            return (
                f"{quota.owner} may take {quota.per_minute} tokens a minute, and this request is estimated at "
                f"{demand.tokens}: ask again in {wait} s, or for fewer ({demand.set_by})"
            )
        case "concurrency":
            return f"{quota.owner} may run {quota.capacity} requests at once: ask again when one of them has ended"
        case "usd":
            return (
                f"{quota.owner} may spend {_usd(quota.capacity)} USD a day (UTC), and this request is estimated at "
                f"{_usd(demand.nano_usd)}: ask again in {wait} s"
            )


def _beyond(quota: Quota, demand: Demand) -> DemandTooLarge:
    if quota.resource == "usd":
        amount, most = f"{_usd(demand.nano_usd)} USD", f"{_usd(quota.capacity)} USD a day (usd_per_day)"
    else:
        amount, most = f"{demand.tokens} tokens", f"{quota.capacity} tokens at once (token_burst)"
    advice = "send less, or lower max_tokens" if demand.set_by == "max_tokens" else f"send less {demand.set_by}"
    error = DemandTooLarge.at(
        demand.set_by,
        f"this request is estimated at {amount}, and {quota.owner} can never take more than {most}: {advice}",
        kind="beyond_limit",
    )
    error.quotas = (quota,)
    return error


def _usd(nano: int) -> str:
    return f"{nano / NANO:.6f}".rstrip("0").rstrip(".")
