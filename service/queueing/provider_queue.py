"""The queue in front of one provider, in one process: who may call it now, who waits, and who is refused."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from service.admission.base import Limiter, LimitReached
from service.config import AdmissionSettings, ProviderSettings
from service.domain.clock import Clock
from service.domain.generation import Usage
from service.domain.limits import Demand, Limits, Reservation, Scope, quotas_of
from service.errors import Overloaded
from service.queueing.concurrency import AdaptiveLimit
from service.queueing.fair import FairQueue, Flow, virtual_tokens
from service.queueing.pace import Pace
from service.queueing.work import Work
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

BURST_PERCENT = 95
"""Of a minute's worth, where no burst is set. What is let through evenly may arrive bunched up: the vendor's bucket
must hold a little more than ours."""
KEPT_OF_BACKLOGGED, KEPT_OF_BATCH = 0.05, 0.10
"""The part of each limit that principals who have requests waiting leave to those who have none, and that batch leaves
to all others. In a bucket it costs nothing, since what comes back later is the same."""
POLL_S = 0.25
"""What other processes give back is noticed so soon at the latest."""
POLL_PLACES_S = 0.01
"""The same where places are short: when one of another process is free nobody tells."""
MAX_MODELS = 256
"""How many are remembered; callers may choose names."""
RETRY_AFTER_LEAST_S = 1.0
BOOKED_PART = 0.9
"""The part of what comes back that is booked for those who come again; the rest lets them catch up when they bunch."""
TOO_LONG, TOO_MANY, IN_VAIN = (
    "this request would wait for too long",
    "too many requests wait",
    "this request waited in vain",
)

FreeIn = Callable[[int, float], float]
"""Seconds until the provider's own limits, as far as they are known, let a call of so many tokens through and leave a
part of themselves; 0 for now."""


@dataclass(slots=True, eq=False)
class _Model:
    """What one of the provider's models bears, and what runs on it."""

    name: str
    adaptive: AdaptiveLimit
    pace: Pace = field(default_factory=Pace)
    running: int = 0
    waiting: int = 0

    def has_place(self, keep: float) -> bool:
        """Whether one more call may run, and leave a part of the limit."""
        limit = self.adaptive.value
        if limit == math.inf or self.running < limit - math.floor(limit * keep):
            return True
        self.adaptive.was_needed()
        return False


class NoTurnError(Exception):
    """A turn cannot come in time."""

    def __init__(self, wait_s: float, why: str) -> None:
        super().__init__(why)
        self.wait_s = wait_s
        """Seconds that it would take, as foretold."""
        self.why = why


@dataclass(slots=True, eq=False)
class _Waiter:
    """A request that waits for its turn."""

    work: Work
    model: _Model
    free_in_s: FreeIn
    expires_at: float
    """Monotonic seconds."""
    turn: "asyncio.Future[Turn | str]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Or why it cannot come any more."""


class Turn:
    """Leave to make one call; to be ended or given back exactly once."""

    def __init__(
        self,
        queue: "ProviderQueue",
        *,
        flow: Flow[_Waiter],
        work: Work,
        model: _Model,
        reservation: Reservation | None,
        charge: float,
    ) -> None:
        self.flow = flow
        self.work = work
        self.model = model
        self.reservation = reservation
        self.charge = charge
        self.began_at = queue.now()
        self._queue = queue
        self._is_over = False

    def first_content(self) -> None:
        """Take note that the provider begins to answer."""
        self._queue.heard(self)

    def pushed_back(self) -> None:
        """Take note that the provider says it has too much to do."""
        self._queue.pushed_back(self)

    def end(self, usage: Usage | None, *, billed: bool = True) -> None:
        """Give the place back after the call.

        Without a usage it took what was estimated, or nothing where it was not ``billed``.
        """
        if not self._is_over:
            self._is_over = True
            self._queue.ended(self, usage, billed=billed)

    def give_back(self) -> None:
        """Give it back unused."""
        if not self._is_over:
            self._is_over = True
            self._queue.given_back(self)


class ProviderQueue:
    """Gives turns at one provider."""

    def __init__(
        self,
        name: str,
        *,
        settings: ProviderSettings,
        admission: AdmissionSettings,
        limiter: Limiter,
        metrics: Metrics,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.running = 0
        """Calls, and those that are about to begin."""
        self._name = name
        self._limiter = limiter
        self._metrics = metrics
        self._running_gauge = metrics.provider_running.labels(name)
        self._limit_gauge = metrics.provider_concurrency_limit.labels(name)
        self._clock = clock
        self._sleep = sleep
        self._models: dict[str, _Model] = {}
        self._fair: FairQueue[_Waiter] = FairQueue()
        self._pace = Pace()
        self._changed = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._fleet_is_short = False
        """Whether the provider's limits are what is waited for, by requests for all of its models."""
        self._rate_is_short = False
        """Whether of these it is a rate, so that the pace of all processes together is known."""
        self._expires_at = math.inf
        """When the first of those that wait has waited for too long."""
        self.apply(settings, admission)

    def apply(self, settings: ProviderSettings, admission: AdmissionSettings) -> None:
        """Go by other settings from now on."""
        self._admission = admission
        for model in self._models.values():
            model.adaptive.enabled = admission.adaptive_concurrency
        self._scope = Scope("provider", self._name, _limits_of(settings))
        self._quotas = quotas_of(self._scope)
        self._tell_limit()
        self._changed.set()

    def now(self) -> float:
        """Return monotonic seconds."""
        return self._clock.monotonic()

    async def turn(self, work: Work, model: str, free_in_s: FreeIn, *, until: float, patient: bool) -> Turn | None:
        """Return leave to call one of the provider's models; None where it would have to wait, and is not ``patient``.

        ``until`` is the monotonic instant after which a turn is of no use. Raises ``NoTurnError`` for who cannot have
        one in time, as soon as that can be foreseen. Cancelled, it has taken nothing.

        Who gets one has it before anybody else is looked at, and must take a key before it waits for anything.
        """
        known = self._model(model)
        flow = self._fair.flow(work.principal, work.priority, work.weight)
        flow.pins += 1
        try:
            if not len(self._fair) or not self._fair.ahead(flow, self._kind(known)):
                turn = await self._at_once(flow, work, known, free_in_s)
                if turn is not None:
                    return turn
            if not patient:
                return None
            return await self._wait(flow, work, known, free_in_s, until)
        finally:
            flow.pins -= 1

    async def refusal(self, work: Work, model: str, late: NoTurnError) -> Overloaded:
        """Book room for a request that is refused, and say when to come again for it.

        Each principal has a pace of its own, of its share: who does not obey puts nobody off but itself.
        """
        flow = self._fair.flow(work.principal, work.priority, work.weight)
        at_least_s = max(RETRY_AFTER_LEAST_S, late.wait_s - self._admission.queue_wait_s / 2)
        room_s = self._fleet_s(work)
        if not self._rate_is_short:
            room_s = max(room_s, self._interval_s(work, self._model(model)) / self._admission.replicas)
        share = BOOKED_PART * self._fair.share(flow)
        retry_after_s = await self._limiter.promise(
            self._bookings(work), work.ticket(), work_s=room_s / share, at_least_s=at_least_s
        )
        flow.booked_until = max(flow.booked_until, self.now() + retry_after_s)
        self._metrics.queue_refusals.labels(self._name, work.priority).inc()
        return Overloaded(
            f"the provider {self._name!r} has as much to do as it may: {late.why}; ask again in {retry_after_s:.3f} s",
            retry_after_s=retry_after_s,
        )

    # Having a turn

    async def _at_once(self, flow: Flow[_Waiter], work: Work, model: _Model, free_in_s: FreeIn) -> Turn | None:
        """Take a turn if there is room for it."""
        keep = _kept(flow)
        if not model.has_place(keep) or free_in_s(work.tokens, keep) > 0:
            return None
        try:
            return await self._take(flow, work, model, keep)
        except LimitReached:
            self._changed.set()  # somebody may wait for the place that this held for a moment
            return None
        except BaseException:
            self._changed.set()
            raise

    def _model(self, name: str) -> _Model:
        model = self._models.get(name)
        if model is None:
            if len(self._models) >= MAX_MODELS:
                self._models = {name: model for name, model in self._models.items() if model.running or model.waiting}
            adaptive = AdaptiveLimit(clock=self._clock, enabled=self._admission.adaptive_concurrency)
            model = self._models[name] = _Model(name, adaptive)
        return model

    def _kind(self, model: _Model) -> str | None:
        """Return whom a request waits for: those of its model, or of all while the limits of the fleet are short."""
        return None if self._fleet_is_short else model.name

    async def _take(self, flow: Flow[_Waiter], work: Work, model: _Model, keep: float) -> Turn:
        """Take a place here, and of the fleet's limits; raise ``LimitReached`` where these have too little."""
        self.running += 1
        self._running_gauge.inc()
        flow.running += 1
        model.running += 1
        reservation: Reservation | None = None
        try:
            if self._quotas:
                room = min([quota.capacity for quota in self._quotas if quota.resource == "tokens"], default=0)
                demand = Demand(tokens=min(work.tokens, room))
                reservation = await self._limiter.reserve((self._scope,), demand, keep=keep)
        except BaseException as error:
            self._vacate(flow, model)
            if isinstance(error, LimitReached):
                self._fleet_is_short = True
                self._rate_is_short = all(quota.resource != "concurrency" for quota in error.quotas)
            raise
        if model.adaptive.began(model.running):
            self._tell_limit()
        charge = self._fair.served(flow, _cost(work))
        return Turn(self, flow=flow, work=work, model=model, reservation=reservation, charge=charge)

    def heard(self, turn: Turn) -> None:
        """Learn from a first content. For :class:`Turn`."""
        if turn.model.adaptive.first_content(self.now() - turn.began_at):
            self._tell_limit()

    def pushed_back(self, turn: Turn) -> None:
        """Learn from a push back. For :class:`Turn`."""
        if turn.model.adaptive.pushed_back(turn.model.running):
            self._tell_limit()

    def ended(self, turn: Turn, usage: Usage | None, *, billed: bool) -> None:
        """Settle what a turn took. For :class:`Turn`."""
        if usage is not None:
            took = (usage.input_tokens, usage.output_tokens)
        else:
            took = (turn.work.input_tokens, turn.work.output_tokens) if billed else (0, 0)
        self._fair.settle(turn.flow, turn.charge, virtual_tokens(*took))
        if turn.reservation is not None:
            actual = turn.reservation.demand if usage is None and billed else Demand(tokens=sum(took))
            self._limiter.settle(turn.reservation, actual)
        seconds = self.now() - turn.began_at
        self._pace.took(seconds)
        turn.model.pace.took(seconds)
        self._leave(turn)

    def given_back(self, turn: Turn) -> None:
        """Undo a turn. For :class:`Turn`."""
        self._fair.settle(turn.flow, turn.charge, 0.0)
        if turn.reservation is not None:
            self._limiter.give_back(turn.reservation)
        self._leave(turn)

    def _tell_limit(self) -> None:
        self._limit_gauge.set(min((model.adaptive.value for model in self._models.values()), default=math.inf))

    def _leave(self, turn: Turn) -> None:
        """Give a place back, which may be the one that somebody waits for."""
        self._vacate(turn.flow, turn.model)
        self._changed.set()

    def _vacate(self, flow: Flow[_Waiter], model: _Model) -> None:
        self.running -= 1
        self._running_gauge.dec()
        flow.running -= 1
        model.running -= 1

    # Waiting

    async def _wait(self, flow: Flow[_Waiter], work: Work, model: _Model, free_in_s: FreeIn, until: float) -> Turn:
        """Wait for a turn, unless that would take too long."""
        began = self.now()
        is_promised = await self._is_let_in(flow, work, model, free_in_s, until)
        if not self._make_place(flow, is_promised=is_promised):
            raise NoTurnError(self._foretold_s(flow, work, model), TOO_MANY)
        waiter = _Waiter(work, model, free_in_s, began + self._most_s(flow, began, until, is_promised=is_promised))
        self._begin_to_wait(flow, waiter, is_promised=is_promised)
        self._metrics.queue_position.labels(self._name).observe(self._fair.ahead(flow, self._kind(model)))
        waiting = self._metrics.queue_waiting.labels(self._name, work.priority)
        waiting.inc()
        outcome = "left"
        try:
            turn = await waiter.turn
            outcome = "refused" if isinstance(turn, str) else "served"
        finally:
            waiting.dec()
            self._metrics.queue_wait.labels(self._name, work.priority, outcome).observe(self.now() - began)
            self._remove(flow, waiter)
            if outcome == "left":
                _undo(waiter)
                self._changed.set()  # the next of its flow may go where it could not
        if isinstance(turn, str):
            raise NoTurnError(self._foretold_s(flow, work, model), turn)
        return turn

    async def _is_let_in(self, flow: Flow[_Waiter], work: Work, model: _Model, free_in_s: FreeIn, until: float) -> bool:
        """Return whether a request was told to come now; raise ``NoTurnError`` for one that would wait too long."""
        now = self.now()
        wait_s = max(self._foretold_s(flow, work, model), free_in_s(work.tokens, 0.0))
        is_too_long = wait_s > self._most_s(flow, now, until)
        if not is_too_long and now >= flow.booked_until:
            return False
        is_promised = await self._limiter.redeem(self._bookings(work), work.ticket())
        if is_too_long and not is_promised:
            raise NoTurnError(wait_s, TOO_LONG)
        return is_promised

    def _most_s(self, flow: Flow[_Waiter], now: float, until: float, *, is_promised: bool = False) -> float:
        """Return how long a request may wait. Half of the time is for those of its principal who were told to come."""
        most_s = self._admission.queue_wait_s
        if now < flow.booked_until and not is_promised:
            most_s /= 2
        return min(most_s, until - now)

    def _foretold_s(self, flow: Flow[_Waiter], work: Work, model: _Model) -> float:
        return (self._fair.ahead(flow, self._kind(model)) + 1) * self._interval_s(work, model)

    def _begin_to_wait(self, flow: Flow[_Waiter], waiter: _Waiter, *, is_promised: bool) -> None:
        now, model = self.now(), waiter.model
        if not len(self._fair):
            self._pace.backlog_begins(now)
        if not model.waiting:
            model.pace.backlog_begins(now)
        model.waiting += 1
        if is_promised:
            self._fair.add_expected(flow, waiter, model.name)
        else:
            self._fair.add(flow, waiter, _cost(waiter.work), model.name)
        self._expires_at = min(self._expires_at, waiter.expires_at)
        self._changed.set()
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve(), name=f"queue of {self._name}")

    def _remove(self, flow: Flow[_Waiter], waiter: _Waiter) -> bool:
        """Take a request out; False if it is not there any more."""
        if not self._fair.remove(flow, waiter):
            return False
        waiter.model.waiting -= 1
        return True

    def _make_place(self, flow: Flow[_Waiter], *, is_promised: bool) -> bool:
        """Turn out the last request of whoever has the most, if the queue is full; False for who has no more claim."""
        if len(self._fair) < self._admission.queue_max:
            return True
        fullest = self._fair.fullest()
        if fullest is None:
            return False
        if not is_promised:
            has_more = len(fullest.waiting) / fullest.weight > (len(flow.waiting) + 1) / flow.weight
            if fullest is flow or fullest.rank < flow.rank or (fullest.rank == flow.rank and not has_more):
                return False
        self._refuse(fullest, next(reversed(fullest.waiting)), TOO_MANY)
        return True

    def _bookings(self, work: Work) -> str:
        """Return the name of the pace at which room is booked for a principal's requests."""
        return f"{self._name}/{work.priority}/{work.principal}"

    def _interval_s(self, work: Work, model: _Model) -> float:
        """Foretell the time between two turns, of a model or of all; no less than the provider's limits allow."""
        now = self.now()
        if self._fleet_is_short:
            local_s = self._pace.interval_s(now, running=self.running, waiting=len(self._fair))
        else:
            local_s = model.pace.interval_s(now, running=model.running, waiting=model.waiting)
        return max(local_s, self._fleet_s(work))

    def _fleet_s(self, work: Work) -> float:
        """Return how long the provider's limits take to bring back what a request takes."""
        amounts = {"requests": 1, "tokens": work.tokens}
        return max(
            (60 * amounts[quota.resource] / quota.per_minute for quota in self._quotas if quota.per_minute), default=0.0
        )

    # Serving those who wait

    async def _serve(self) -> None:
        """Give turns until nobody waits."""
        while True:
            self._changed.clear()
            self._expire()
            if not len(self._fair):
                return
            try:
                again_in_s = await self._serve_next()
            except Exception as error:  # the outer edge of the task: those that wait must not do so for ever
                logger.exception("serving the queue of a provider: defect", extra={"provider": self._name})
                self._metrics.unhandled_errors.labels("queue").inc()
                self._fail_all(error)
                return
            if again_in_s > 0:
                await self._pause(min(again_in_s, max(0.0, self._expires_at - self.now())))
            else:
                await asyncio.sleep(0)  # whose turn it is takes a key, before the next is looked at

    async def _pause(self, seconds: float) -> None:
        """Wait for a change, but for no longer than that."""
        waits = [asyncio.ensure_future(self._sleep(seconds)), asyncio.ensure_future(self._changed.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _serve_next(self) -> float:
        """Give a turn to the first for whom there is room; return the seconds after which to look again."""
        again_in_s = math.inf
        refused_at = math.inf
        """What part had to be left by whom the limits of the fleet have refused."""
        for flow, waiter in self._fair.in_order():
            keep = 0.0 if self._fair.is_expected(waiter) else _kept(flow)
            if keep >= refused_at or not waiter.model.has_place(keep):
                continue
            free_in_s = waiter.free_in_s(waiter.work.tokens, keep)
            if free_in_s > 0:
                again_in_s = min(again_in_s, free_in_s)
                continue
            try:
                turn = await self._take(flow, waiter.work, waiter.model, keep)
            except LimitReached as error:
                refused_at = keep
                again_in_s = min(again_in_s, _poll_s(error))
                continue
            self._hand_over(flow, waiter, turn)
            return 0.0
        if refused_at == math.inf:
            self._fleet_is_short = self._rate_is_short = False
        return again_in_s

    def _hand_over(self, flow: Flow[_Waiter], waiter: _Waiter, turn: Turn) -> None:
        now = self.now()
        if now >= waiter.expires_at:
            turn.give_back()
            self._refuse(flow, waiter, IN_VAIN)
        elif not self._remove(flow, waiter) or waiter.turn.done():
            turn.give_back()  # it left, or was turned out, while we asked
        else:
            self._pace.handed(now)
            waiter.model.pace.handed(now)
            waiter.turn.set_result(turn)

    def _expire(self) -> None:
        """Tell those whose turn cannot come in time any more."""
        now = self.now()
        if now < self._expires_at:
            return
        waiting = self._fair.waiting()
        for flow, waiter in waiting:
            if waiter.expires_at <= now:
                self._refuse(flow, waiter, IN_VAIN)
        self._expires_at = min(
            (waiter.expires_at for _, waiter in waiting if waiter.expires_at > now), default=math.inf
        )

    def _refuse(self, flow: Flow[_Waiter], waiter: _Waiter, why: str) -> None:
        self._remove(flow, waiter)
        if not waiter.turn.done():
            waiter.turn.set_result(why)

    def _fail_all(self, error: Exception) -> None:
        for flow, waiter in self._fair.waiting():
            self._remove(flow, waiter)
            if not waiter.turn.done():
                waiter.turn.set_exception(error)


def _undo(waiter: _Waiter) -> None:
    """Give back the turn that came for a request which has left in this very moment."""
    if waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
        turn = waiter.turn.result()
        if isinstance(turn, Turn):
            turn.give_back()


def _cost(work: Work) -> float:
    """Return what a request is estimated to cost in the counters of the fair queue."""
    return virtual_tokens(work.input_tokens, work.output_tokens)


def _kept(flow: Flow[_Waiter]) -> float:
    """Return the part of each limit that a flow has to leave to others."""
    if flow.rank:
        return KEPT_OF_BATCH
    return KEPT_OF_BACKLOGGED if len(flow.waiting) > 1 else 0.0


def _poll_s(error: LimitReached) -> float:
    """Return after how long to ask again for what the limits of the fleet refuse."""
    if any(quota.resource == "concurrency" for quota in error.quotas):
        return POLL_PLACES_S
    return min(POLL_S, error.retry_after_s or 0.0)


def _limits_of(settings: ProviderSettings) -> Limits:
    given = Limits(**settings.limits.model_dump())
    bursts = Limits(request_burst=_burst(given.requests_per_minute), token_burst=_burst(given.tokens_per_minute))
    return given.over(bursts)


def _burst(per_minute: int | None) -> int | None:
    return None if per_minute is None else max(1, per_minute * BURST_PERCENT // 100)
