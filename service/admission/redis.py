"""Limits of a fleet in Redis: one script on the server's clock, behind two queues that share round trips."""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from service.admission.base import (
    BOOKING_UNIT,
    CONCURRENCY_RETRY_MS,
    PROMISE_KEPT_S,
    PROMISED_MAX_S,
    balances_of,
    booking_time,
    corrections,
    limit_reached,
    needed_of,
    quotas_for,
)
from service.config import RedisSettings
from service.domain.limits import Demand, Quota, Reservation, Scope
from service.errors import StoreUnavailable
from service.storage.redis import StoreOutage, open_redis, redis_errors, repeat_with_store
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

SCRIPT = files("service.admission").joinpath("limiter.lua").read_text("utf-8")
PREFIX = "{llm-api:limits}:"
"""The braces put all keys into one slot of a Redis Cluster, so that a script may touch them together."""
LEASE_S = 10.0
"""A place is free again so long after its process died; the same after it lost the store, until it is renewed."""
RENEWALS_PER_LEASE = 3
KEPT_S = 86_400.0 + 3_600.0
"""How long a reservation may stay open: longer than the longest timeout that the settings take."""
TOMBSTONE_S = 300.0
"""How long a reservation that was given up while it was on its way can still arrive."""
PROBE_MS = 1_000
"""How long what a probe writes is kept: a tombstone of nothing."""
BATCH = 200
"""Requests for which one round trip asks. The server needs about 30 µs for each."""
BATCH_EVERY_S = 0.005
"""Between the beginnings of two batches of settlements, for which nobody waits."""
MAX_CONNECTIONS = 2
PATIENCE_S = 0.5
"""What each command has beyond ``redis.timeout_s``: who waits for its answer looks at the time itself, and a connection
that is merely slow is not worth another."""
TURNS = 10
"""Of the event loop, for an answer that came in time while this process did something else: it is half-way here."""
REFUSED_EVERY_S = 1.0
"""Between two attempts at settlements that the store refused."""
FLUSH_S = 2.0
RENEWED_AT_ONCE = 1_000
"""Places in one call of the script."""

_KINDS = {"requests": "b", "tokens": "b", "concurrency": "c", "usd": "m"}


class _Refused(StoreUnavailable):
    """The store answered that it does not do what it was asked for, and did nothing."""


class _Call(NamedTuple):
    """One call of the script."""

    keys: Sequence[str]
    arguments: Sequence[str | int]


@dataclass(slots=True, eq=False)
class _Asked:
    """A call whose answer somebody waits for."""

    call: _Call
    answer: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    sent: bool = False


@dataclass(slots=True)
class _Lane:
    """Calls of the script, over a client of their own."""

    client: Redis
    sha: str
    script: str

    async def run(self, calls: Sequence[_Call]) -> list[Any]:
        """Make the calls in one round trip, in order; what fails by itself is an exception among the replies."""
        replies = await self._send(calls)
        unknown = [number for number, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            # After a start, a restart or a failover of the server. None of these ran.
            await self.client.script_load(self.script)
            again = await self._send([calls[number] for number in unknown])
            for number, reply in zip(unknown, again, strict=True):
                replies[number] = reply
        return replies

    async def _send(self, calls: Sequence[_Call]) -> list[Any]:
        pipeline = self.client.pipeline(transaction=False)
        for call in calls:
            pipeline.evalsha(self.sha, len(call.keys), *call.keys, *call.arguments)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies


@dataclass(slots=True)
class _Lanes:
    reserving: _Lane
    settling: _Lane


class RedisLimiter:
    """Obeys :class:`service.admission.base.Limiter` for all processes over one store.

    A request waits for one round trip, which it shares with those that ask at the same time, and never longer than
    ``redis.timeout_s``: new connections are made behind its back. Whatever a reservation took is given back, if not by
    settling then by giving it up, which is kept until the store has it; a process that dies leaves its places to the
    end of their lease, and its tokens and money as they were estimated.
    """

    def __init__(
        self,
        *,
        settings: RedisSettings,
        metrics: Metrics,
        prefix: str = PREFIX,
        lease_s: float = LEASE_S,
        script: str = SCRIPT,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._prefix = prefix
        self._lease_s = lease_s
        self._script = script
        self._lanes: _Lanes | None = None
        self._asked: deque[_Asked] = deque()
        self._has_asked = asyncio.Event()
        self._open: dict[str, Reservation] = {}
        self._unsettled: deque[_Call] = deque()
        self._has_unsettled = asyncio.Event()
        self._refused: list[_Call] = []
        """Settlements that the store answered with an error; all of them are sent again at ``_refused_until``."""
        self._refused_until = 0.0
        self._refusals = StoreOutage("settling limits that the store refused")
        self._progress = asyncio.Event()
        self._renewed_at = float("-inf")

    @asynccontextmanager
    async def running(self) -> AsyncIterator["RedisLimiter"]:
        """Work in the background. On leaving, settle what is left, for a bounded time."""
        sha = sha1(self._script.encode(), usedforsecurity=False).hexdigest()
        async with AsyncExitStack() as stack:
            reserving, settling = [
                await stack.enter_async_context(
                    open_redis(
                        self._settings,
                        metrics=self._metrics,
                        patience_s=PATIENCE_S,
                        max_connections=MAX_CONNECTIONS,
                    )
                )
                for _ in range(2)
            ]
            self._lanes = _Lanes(_Lane(reserving, sha, self._script), _Lane(settling, sha, self._script))
            tasks = [
                asyncio.create_task(self._answer_forever(self._lanes.reserving), name="limits-reserve"),
                asyncio.create_task(
                    repeat_with_store(
                        partial(self._settle_and_renew, self._lanes.settling),
                        "settling limits",
                        on_defect=lambda _: self._metrics.unhandled_errors.labels("limiter").inc(),
                    ),
                    name="limits-settle",
                ),
            ]
            try:
                yield self
            finally:
                with suppress(StoreUnavailable):
                    await self.flush()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._lanes = None

    async def reserve(self, scopes: Sequence[Scope], demand: Demand, *, keep: float = 0.0) -> Reservation:
        """See :class:`service.admission.base.Limiter`. One round trip."""
        quotas = quotas_for(scopes, demand)
        reservation_id = secrets.token_hex(8)
        amounts = [demand.of(quota) for quota in quotas]
        needed = [needed_of(quota, demand, keep=keep) for quota in quotas]
        lease_ms, kept_ms = round(self._lease_s * 1_000), round(KEPT_S * 1_000)
        call = self._call("reserve", reservation_id, lease_ms, kept_ms, quotas=quotas, amounts=amounts, needed=needed)
        asked = _Asked(call)
        try:
            verdict, now_ms, *left = await self._answer_to(asked)
        except _Refused:
            raise  # a store refuses the first thing that would be written, or none
        except BaseException:
            if asked.sent:
                self._give_up(reservation_id, quotas, amounts)
            raise
        if verdict < 0:
            raise StoreUnavailable("the shared store took this request for one that was given up")
        balances = balances_of(quotas, left[0::2], wall_ms=now_ms)
        if not verdict:
            waits_ms = [
                CONCURRENCY_RETRY_MS if wait and quota.resource == "concurrency" else wait
                for quota, wait in zip(quotas, left[1::2], strict=True)
            ]
            raise limit_reached(quotas, waits_ms, balances, demand)
        reservation = Reservation(reservation_id, quotas, demand, balances, local=False)
        self._open[reservation_id] = reservation
        return reservation

    def settle(self, reservation: Reservation, actual: Demand) -> None:
        """See :class:`service.admission.base.Limiter`."""
        self._close(reservation, corrections(reservation, actual))

    def give_back(self, reservation: Reservation) -> None:
        """See :class:`service.admission.base.Limiter`."""
        self._close(reservation, [reservation.demand.of(quota) for quota in reservation.quotas])

    async def promise(self, pace: str, ticket: str, *, work_s: float, at_least_s: float) -> float:
        """See :class:`service.admission.base.Limiter`. One round trip. Without its answer, the room stays booked."""
        times = [booking_time(seconds) for seconds in (work_s, at_least_s, PROMISED_MAX_S, PROMISE_KEPT_S)]
        call = _Call([f"{self._prefix}pace:{pace}", self._booked(pace, ticket)], ["promise", *times])
        room: int = await self._answer_to(_Asked(call))
        return room / BOOKING_UNIT

    async def redeem(self, pace: str, ticket: str) -> bool:
        """See :class:`service.admission.base.Limiter`. One round trip. With its answer, the booking is lost."""
        call = _Call([self._booked(pace, ticket)], ["redeem", booking_time(PROMISE_KEPT_S)])
        found: int = await self._answer_to(_Asked(call))
        return bool(found)

    async def ping(self) -> None:
        """Find out whether the store keeps limits, as a request would, by writing something; else as that raises.

        A store that is full, or became a replica, answers a ``PING`` all the same.
        """
        await self._answer_to(_Asked(self._call("settle", secrets.token_hex(8), PROBE_MS, 0, quotas=(), amounts=())))

    async def flush(self) -> None:
        """Wait until what was settled by now is in the store; raise ``StoreUnavailable`` after ``FLUSH_S``."""
        try:
            async with asyncio.timeout(FLUSH_S):
                while self._unsettled or self._refused:
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            raise StoreUnavailable(f"limits could not be settled within {FLUSH_S:g} s") from None

    async def _answer_to(self, asked: _Asked) -> Any:
        """Ask with the next round trip, and return the answer; raise ``StoreUnavailable`` after ``redis.timeout_s``."""
        self._asked.append(asked)
        self._has_asked.set()
        try:
            await asyncio.wait([asked.answer], timeout=self._settings.timeout_s)
            for _ in range(TURNS):
                if asked.answer.done():
                    return asked.answer.result()
                await asyncio.sleep(0)
        finally:
            if not asked.answer.cancel() and not asked.answer.cancelled():
                asked.answer.exception()  # seen, should it be one
        raise StoreUnavailable("the shared store did not answer in time")

    def _call(
        self,
        action: str,
        reservation_id: str,
        *numbers: int,
        quotas: Sequence[Quota],
        amounts: Sequence[int],
        needed: Sequence[int] = (),
    ) -> _Call:
        keys = [f"{self._prefix}open:{reservation_id}"]
        arguments: list[str | int] = [action, reservation_id, *numbers]
        for quota, amount, need in zip(quotas, amounts, needed or [0] * len(quotas), strict=True):
            keys.append(self._key(quota))
            arguments += (_KINDS[quota.resource], quota.capacity, quota.per_minute, amount, need)
        return _Call(keys, arguments)

    def _booked(self, pace: str, ticket: str) -> str:
        # The length says where the one ends and the other begins.
        return f"{self._prefix}booked:{len(pace)}:{pace}:{ticket}"

    def _key(self, quota: Quota) -> str:
        return f"{self._prefix}{quota.resource}:{quota.kind}:{quota.name}"

    # Reserving

    async def _answer_forever(self, lane: _Lane) -> None:
        while True:
            await self._has_asked.wait()
            batch = self._next_batch()
            if not batch:
                self._has_asked.clear()
                continue
            try:
                with redis_errors():
                    replies = await lane.run([asked.call for asked in batch])
                for asked, reply in zip(batch, replies, strict=True):
                    _tell(asked, reply)
            except StoreUnavailable as error:
                for asked in batch:
                    _tell(asked, error)
            except Exception as error:  # the outer edge of the task: one defect must not stop all that come
                logger.exception("asking the store for limits: defect")
                self._metrics.unhandled_errors.labels("limiter").inc()
                for asked in batch:
                    _tell(asked, error)

    def _next_batch(self) -> list[_Asked]:
        batch: list[_Asked] = []
        while self._asked and len(batch) < BATCH:
            asked = self._asked.popleft()
            if not asked.answer.done():  # else who asked has given up
                asked.sent = True
                batch.append(asked)
        return batch

    def _give_up(self, reservation_id: str, quotas: tuple[Quota, ...], amounts: Sequence[int]) -> None:
        """Give everything back of what may have been taken, or may be yet."""
        tombstone_ms = round(TOMBSTONE_S * 1_000)
        self._put_back(self._call("settle", reservation_id, tombstone_ms, 0, quotas=quotas, amounts=amounts))

    # Settling

    def _close(self, reservation: Reservation, amounts: Sequence[int]) -> None:
        if self._open.pop(reservation.id, None) is not None:
            self._put_back(self._call("settle", reservation.id, 0, 0, quotas=reservation.quotas, amounts=amounts))

    def _put_back(self, call: _Call) -> None:
        self._unsettled.append(call)
        self._has_unsettled.set()

    async def _settle_and_renew(self, lane: _Lane) -> float:
        """Wait until there is something to settle, or leases to renew, and do it; return the pause after it."""
        loop = asyncio.get_running_loop()
        due_at = self._renewed_at + self._lease_s / RENEWALS_PER_LEASE
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(due_at, self._refused_until) if self._refused else due_at):
                await self._has_unsettled.wait()
        began = loop.time()
        if self._refused and began >= self._refused_until:
            self._unsettled.extend(self._refused)
            self._refused.clear()
            self._has_unsettled.set()
        try:
            await self._settle_next(lane)
        except (RedisError, OSError, TimeoutError):
            await self._renew(lane, began)  # whatever becomes of settlements, who runs must keep its place
            raise
        await self._renew(lane, began)
        return max(0.0, began + BATCH_EVERY_S - loop.time())

    async def _settle_next(self, lane: _Lane) -> None:
        """Settle what has waited longest. A batch whose answer was lost is sent again, which changes nothing.

        What the store refuses waits for itself alone: it may be one, or for long.
        """
        batch = [self._unsettled[number] for number in range(min(BATCH, len(self._unsettled)))]
        if not batch:
            self._has_unsettled.clear()
            return
        replies = await lane.run(batch)
        for call, reply in zip(batch, replies, strict=True):
            self._unsettled.popleft()
            if isinstance(reply, Exception):
                if not self._refused:
                    self._refused_until = asyncio.get_running_loop().time() + REFUSED_EVERY_S
                self._refused.append(call)
                self._refusals.lasts(StoreUnavailable(type(reply).__name__))
        if not self._refused:
            self._refusals.over()
        self._progress.set()

    async def _renew(self, lane: _Lane, now: float) -> None:
        """Hold the places of what runs, all of them in one call for each thousand."""
        if now < self._renewed_at + self._lease_s / RENEWALS_PER_LEASE:
            return
        places = [
            (self._key(quota), reservation_id)
            for reservation_id, reservation in self._open.items()
            for quota in reservation.quotas
            if quota.resource == "concurrency"
        ]
        calls = [self._renewal(places[at : at + RENEWED_AT_ONCE]) for at in range(0, len(places), RENEWED_AT_ONCE)]
        for reply in await lane.run(calls) if calls else ():
            if isinstance(reply, Exception):
                raise reply
        self._renewed_at = now

    def _renewal(self, places: Iterable[tuple[str, str]]) -> _Call:
        members: dict[str, list[str]] = {}
        for key, reservation_id in places:
            members.setdefault(key, []).append(reservation_id)
        arguments: list[str | int] = ["renew", round(self._lease_s * 1_000)]
        for ids in members.values():
            arguments += (len(ids), *ids)
        return _Call(list(members), arguments)


def _tell(asked: _Asked, reply: Any) -> None:
    """Hand an answer on, if somebody still waits for it."""
    if asked.answer.done():
        return
    if isinstance(reply, RedisError):
        reply = _Refused(f"the shared store refused to keep limits ({type(reply).__name__})")
    if isinstance(reply, Exception):
        asked.answer.set_exception(reply)
    else:
        asked.answer.set_result(reply)
