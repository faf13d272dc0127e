"""One request at the providers: which routes and keys are asked, in which order, how often, and how long between.

It is the only layer that repeats anything, and does so only until a first content was handed on.
"""

import asyncio
import logging
import random
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Literal, TypeVar

from service.config import ProviderSettings, ResilienceSettings, Settings
from service.domain.clock import Clock, Deadline
from service.engine.catalogue import ModelEntry, Route
from service.errors import (
    UNSUPPORTED,
    CircuitOpen,
    InternalError,
    InvalidRequest,
    ServiceError,
    UpstreamError,
    UpstreamInvalid,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.providers.base import Provider, ProviderKey
from service.resilience.backoff import Backoff
from service.resilience.breaker import Breaker, Permit, State
from service.resilience.budget import Budget
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_BREAKERS = 4096
"""How many are remembered; names of models that callers choose must not fill the memory."""
FORGOTTEN_S = 60.0
"""Seconds without a call after which an open breaker is forgotten, so that it is told of only while it matters: nobody
may ask for its model any more, its key may have been replaced."""
RESERVE = 10.0
"""Retries and hedges that quieter times may leave for a moment of trouble."""
THROTTLED_S = 1.0
"""Least wait after a 429 that does not say how long."""
FIRST_CONTENTS = 200
"""Of how many streams the times to the first content are remembered for each model."""
FIRST_CONTENTS_AT_LEAST = 20
"""Fewer say nothing about a 95th percentile."""
_OUTAGES = (UpstreamUnavailable, UpstreamTimeout, UpstreamOverloaded, UpstreamInvalid)
"""What opens a breaker after some. A 429 is the fate of a working provider."""

Kind = Literal["first", "retry", "fallback", "hedge"]
"""``fallback``: after a failure, at another route or with another key."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call to one provider."""

    provider: Provider
    route: Route
    key: ProviderKey
    deadline: Deadline
    kind: Kind
    permit: Permit | None
    """None where there is no breaker."""

    def broke_off(self, error: Exception) -> None:
        """Take note that what had begun well did not end well."""
        if self.permit is not None and isinstance(error, _OUTAGES):
            self.permit.failed(error.code)


Call = Callable[[Attempt], Awaitable[T]]
"""Makes one attempt; returns once nothing that follows can be taken back."""
Lose = Callable[[Attempt, T | None], Awaitable[None]]
"""Gives up what an attempt brought, if it came to bring anything, because another one was faster."""


@dataclass(frozen=True, slots=True)
class _Lane:
    """What is kept about a provider between requests."""

    settings: ProviderSettings
    budget: Budget
    backoff: Backoff


@dataclass(slots=True, eq=False)
class _Way:
    """One route of the model, in one request."""

    route: Route
    provider: Provider
    lane: _Lane
    asked: int = 0
    """Attempts made."""
    turns: int = 0
    """Failures after which it has to wait."""
    not_before: float = 0.0
    is_retry: bool = False
    """Whether the next attempt is a retry, to be paid for by the budget."""
    tried: set[str] = field(default_factory=set)
    """Fingerprints of the keys used since the last wait."""
    throttled: UpstreamThrottled | None = None
    """What to wait for if no other key helps."""
    over: bool = False

    @property
    def patience_s(self) -> float:
        """Seconds before which a timeout says that the request had no more time, not that the provider was slow."""
        timeouts_s = self.lane.settings.timeouts_s
        return min(timeouts_s.connect, timeouts_s.first_token, timeouts_s.total)


@dataclass(frozen=True, slots=True)
class _Fuse:
    """What a breaker is for."""

    provider: str
    upstream_model: str
    key: str
    """Its fingerprint."""
    label: str
    """The model in metrics: the provider's name for it if the settings have it, else the pattern."""


class Attempts:
    """Makes attempts for requests, and keeps what it learns of providers; in memory, for this process alone."""

    def __init__(
        self,
        *,
        providers: Mapping[str, Provider],
        settings: Mapping[str, ProviderSettings],
        resilience: ResilienceSettings,
        metrics: Metrics,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.metrics = metrics
        self.clock = clock
        self.sleep = sleep
        self.resilience = resilience
        self.last_failure: UpstreamError | None = None
        """Why no provider could answer, if that is how the last request that reached one went."""
        self._random = random
        self._providers = providers
        self._lanes = {name: self._lane(provider) for name, provider in settings.items()}
        self._breakers: OrderedDict[_Fuse, Breaker] = OrderedDict()
        self._not_closed: set[_Fuse] = set()
        self._swept_at = clock.monotonic()
        self._hedges = Budget(
            ratio=resilience.hedging.budget_ratio, per_s=0.0, reserve=RESERVE, initial=0.0, clock=clock
        )
        self._first_contents: dict[str, deque[float]] = {}

    async def make(self, entry: ModelEntry, call: Call[T], *, lose: Lose[T] | None = None) -> tuple[T, Attempt]:
        """Return what the first attempt that can brings, and the attempt.

        Raises what says most about why none could. With ``lose`` it may make a second attempt while the first is slow.
        """
        self._sweep()
        ways = self._ways(entry)
        deadline = Deadline.after(ways[0].lane.settings.timeouts_s.total, self.clock)
        run = _Run(self, entry, call, ways, deadline)
        if lose is None or not self.resilience.hedging.enabled:
            return await run.first_that_can()
        self._hedges.earn()
        delay_s = self._hedging_delay_s(entry)
        if delay_s is None:
            return await run.first_that_can()
        return await self._hedged(run, lose, delay_s)

    async def prepare(self, settings: Settings) -> Callable[[], None]:
        """See ``Reloadable`` in ``service.reloading``. What was learnt of a provider is forgotten with its settings.

        Requests that run go on as they began.
        """
        changed = {
            name: self._lane(provider)
            for name, provider in settings.providers.items()
            if name not in self._lanes or self._lanes[name].settings != provider
        }

        def commit() -> None:
            # A provider that was taken out stays known to requests that began before.
            self._lanes = {**self._lanes, **changed}
            for fuse in [fuse for fuse in self._breakers if fuse.provider in changed]:
                self._forget(fuse)

        return commit

    def breaker(self, entry: ModelEntry, route: Route, key: ProviderKey) -> Breaker:
        """Return the breaker of a route and a key."""
        label = entry.name if "*" in entry.name else route.model
        fuse = _Fuse(route.provider, route.model, key.fingerprint, label)
        breaker = self._breakers.get(fuse)
        if breaker is None:
            breaker = self._breakers[fuse] = Breaker(
                self._lanes[route.provider].settings.breaker,
                clock=self.clock,
                random=self._random,
                on_change=partial(self._changed, fuse),
            )
            if len(self._breakers) > MAX_BREAKERS:
                self._forget(next(iter(self._breakers)))
        else:
            self._breakers.move_to_end(fuse)
        return breaker

    def took(self, entry: ModelEntry, seconds: float) -> None:
        """Remember how long a first content took, or how long it was waited for in vain."""
        if self.resilience.hedging.enabled:
            self._first_contents.setdefault(entry.name, deque(maxlen=FIRST_CONTENTS)).append(seconds)

    def _ways(self, entry: ModelEntry) -> list[_Way]:
        known = [(route, self._providers.get(route.provider)) for route in entry.routes]
        ways = [_Way(route, provider, self._lanes[route.provider]) for route, provider in known if provider is not None]
        if not ways:
            raise UpstreamUnavailable("the provider was taken out of the configuration", provider=known[0][0].provider)
        return ways

    def _lane(self, settings: ProviderSettings) -> _Lane:
        retries = settings.retries
        return _Lane(
            settings,
            Budget(ratio=retries.budget_ratio, per_s=retries.budget_per_s, reserve=RESERVE, clock=self.clock),
            Backoff(base_s=retries.base_s, cap_s=retries.cap_s, random=self._random),
        )

    def _sweep(self) -> None:
        now = self.clock.monotonic()
        if self._not_closed and now - self._swept_at >= FORGOTTEN_S:
            self._swept_at = now
            for fuse in [fuse for fuse in self._not_closed if self._breakers[fuse].idle_s >= FORGOTTEN_S]:
                self._forget(fuse)

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
        gauge = self.metrics.upstream_breakers_open.labels(fuse.provider, fuse.label)
        if is_open:
            self._not_closed.add(fuse)
            gauge.inc()
        else:
            self._not_closed.discard(fuse)
            gauge.dec()

    def _hedging_delay_s(self, entry: ModelEntry) -> float | None:
        """Return after how long a first content is late; None while nobody can say."""
        if self.resilience.hedging.delay_s is not None:
            return self.resilience.hedging.delay_s
        known = sorted(self._first_contents.get(entry.name, ()))
        return known[len(known) * 95 // 100] if len(known) >= FIRST_CONTENTS_AT_LEAST else None

    async def _hedged(self, run: "_Run[T]", lose: Lose[T], delay_s: float) -> tuple[T, Attempt]:
        """Make attempts as usual, and one more beside them if they are late; give up whichever loses."""
        usual = asyncio.create_task(run.first_that_can())
        timer = asyncio.ensure_future(self.sleep(delay_s))
        tasks: list[asyncio.Task[tuple[T, Attempt] | None]] = [usual]
        answer: tuple[T, Attempt] | None = None
        try:
            await asyncio.wait((usual, timer), return_when=asyncio.FIRST_COMPLETED)
            if not usual.done() and run.has_another() and self._hedges.spend():
                tasks.append(asyncio.create_task(run.another()))
            answer = await _first_answer(tasks)
        finally:
            for task in (timer, *tasks):
                task.cancel()
            try:
                await asyncio.gather(timer, *tasks, return_exceptions=True)
            except asyncio.CancelledError:
                if answer is not None:  # nobody is left to take it
                    await lose(answer[1], answer[0])
                raise
            finally:
                for late in _answers(tasks):
                    if late is not answer:
                        await lose(late[1], late[0])
            if answer is not None:
                for attempt, waited_s in run.cut_short:
                    self.took(run.entry, waited_s)
                    await lose(attempt, None)
        return usual.result() if answer is None else answer


async def _first_answer(tasks: "list[asyncio.Task[tuple[T, Attempt] | None]]") -> tuple[T, Attempt] | None:
    """Wait for one of them to bring something; None if none does."""
    pending = set(tasks)
    while pending:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if answers := _answers(tasks):
            return answers[0]
    return None


def _answers(tasks: "list[asyncio.Task[tuple[T, Attempt] | None]]") -> list[tuple[T, Attempt]]:
    good = (task for task in tasks if task.done() and not task.cancelled() and task.exception() is None)
    return [answer for task in good if (answer := task.result()) is not None]


class _Gate:
    """Admits keys that this request has not used up, and whose breaker lets a call pass."""

    def __init__(self, house: Attempts, entry: ModelEntry, way: _Way) -> None:
        self.permit: Permit | None = None
        """For the key that was admitted; None where there are no breakers."""
        self.barred_by: Breaker | None = None
        """The first of those that are open to let a call pass again."""
        self._house = house
        self._entry = entry
        self._way = way

    def admits(self, key: ProviderKey) -> bool:
        """Whether a key may be used; if so, it is."""
        if key.fingerprint in self._way.tried:
            return False
        if not self._way.lane.settings.breaker.enabled:
            return True
        breaker = self._house.breaker(self._entry, self._way.route, key)
        self.permit = breaker.admit()
        if self.permit is None and (self.barred_by is None or breaker.wait_s < self.barred_by.wait_s):
            self.barred_by = breaker
        return self.permit is not None

    def leave(self) -> None:
        """Give the permit back unused."""
        if self.permit is not None:
            self.permit.left()


class _Run(Generic[T]):
    """One request: how each route fared, and what is to be raised if none can."""

    def __init__(self, house: Attempts, entry: ModelEntry, call: Call[T], ways: list[_Way], deadline: Deadline) -> None:
        self.cut_short: list[tuple[Attempt, float]] = []
        """Attempts that were cancelled while they ran, and after how many seconds."""
        self._house = house
        self.entry = entry
        self._call = call
        self._ways = ways
        self._deadline = deadline
        self._made = 0
        self._stay: _Way | None = None
        """Goes on before any other."""
        self._current: _Way | None = None
        self._failure: UpstreamError | None = None
        """Of the last attempt that failed."""
        self._no_key: UpstreamError | None = None
        """Why there was no key to make one with."""
        self._circuit: Breaker | None = None
        """The first of those that are open to let a call pass again."""
        self._unable: InvalidRequest | None = None

    async def first_that_can(self) -> tuple[T, Attempt]:
        """Go through the routes until one brings something. Ends at once when it is cancelled, also while it waits."""
        while (way := self._next()) is not None:
            if not await self._is_due(way):
                continue
            attempt = self._attempt_at(way, "retry" if way.is_retry else "fallback" if self._made else "first")
            if attempt is not None:
                answer = await self._ask(way, attempt)
                if answer is not None:
                    return answer
        raise self._reason()

    def has_another(self) -> bool:
        """Whether a second attempt may run beside the one that does."""
        return self._current is not None and self._made < self._house.resilience.attempts_max

    async def another(self) -> tuple[T, Attempt] | None:
        """Make one attempt with another route, or another key; None if there is none, or it fails."""
        others = [way for way in self._ways if not (way.over or way.asked or way is self._current)]
        for way in (*others, *(way for way in (self._current,) if way is not None)):
            attempt = self._attempt_at(way, "hedge", quietly=True)
            if attempt is None:
                continue
            # A route of its own is no other attempt's business any more, whatever comes of it here.
            way.over = way.over or way is not self._current
            try:
                return await self._ask(way, attempt)
            except ServiceError:
                return None
        return None

    def _next(self) -> _Way | None:
        """Return the route to go on with: the one to stay at, else one that is due, in order, else the next to be."""
        if self._made >= self._house.resilience.attempts_max:
            return None
        stay, self._stay = self._stay, None
        if stay is not None:
            return stay
        return min((way for way in self._ways if not way.over), key=lambda way: way.not_before, default=None)

    async def _is_due(self, way: _Way) -> bool:
        """Wait until a route may be asked; False if that is too late, and it is over."""
        wait_s = way.not_before - self._house.clock.monotonic()
        if wait_s > 0 and way.not_before < self._deadline.at:
            self._current = None
            await self._house.sleep(wait_s)
        way.over = max(way.not_before, self._house.clock.monotonic()) >= self._deadline.at
        return not way.over

    def _attempt_at(self, way: _Way, kind: Kind, *, quietly: bool = False) -> Attempt | None:
        """Find a key for an attempt; None if the route is over, or has to wait, which is not looked at ``quietly``."""
        gate = _Gate(self._house, self.entry, way)
        failure: UpstreamError | None = None
        try:
            key = way.provider.keys.take(way.route.model, gate.admits)
        except UpstreamError as error:
            failure, key = error, None
        if gate.barred_by is not None and (self._circuit is None or gate.barred_by.wait_s < self._circuit.wait_s):
            self._circuit = gate.barred_by
        if key is None:
            if not quietly:
                self._without_key(way, failure)
            return None
        if way.is_retry and not quietly and not self._pay_for(way):
            gate.leave()
            return None
        way.tried.add(key.fingerprint)
        if not way.asked:
            way.lane.budget.earn()
        way.asked += 1
        self._made += 1
        until = min(self._deadline.at, self._house.clock.monotonic() + way.lane.settings.timeouts_s.total)
        return Attempt(way.provider, way.route, key, Deadline(until), kind, gate.permit)

    def _pay_for(self, way: _Way) -> bool:
        way.is_retry = False
        if way.lane.budget.spend():
            return True
        self._house.metrics.retry_budget_exhausted.labels(way.route.provider).inc()
        way.over = True
        return False

    def _without_key(self, way: _Way, failure: UpstreamError | None) -> None:
        """Decide how a route goes on that has no key to be asked with now."""
        throttled, way.throttled = way.throttled, None
        if isinstance(failure, UpstreamThrottled):
            throttled = failure  # says when the first of its keys can go on
        if failure is not None:
            self._no_key = failure
        if throttled is None:
            way.over = True
        else:
            self._wait(way, throttled)

    async def _ask(self, way: _Way, attempt: Attempt) -> tuple[T, Attempt] | None:
        """Make an attempt; None if it failed, and the next may be made."""
        began = self._house.clock.monotonic()
        self._current = way
        try:
            value = await self._call(attempt)
        except asyncio.CancelledError:
            self._over(attempt, "cancelled")
            self.cut_short.append((attempt, self._house.clock.monotonic() - began))
            raise
        except InvalidRequest as error:
            self._over(attempt, error.code)
            if not any(fault.type == UNSUPPORTED for fault in error.fields):
                raise
            self._unable = error
            way.over = True
        except UpstreamError as error:
            in_vain = isinstance(error, UpstreamTimeout) and self._house.clock.monotonic() - began < way.patience_s
            self._over(attempt, error.code, None if in_vain else error)
            if not error.fallback:
                raise
            self._failure = self._house.last_failure = error
            if attempt.kind != "hedge":
                self._after(way, error)
        except Exception as error:
            self._over(attempt, error.code if isinstance(error, ServiceError) else InternalError.code)
            raise
        else:
            if attempt.permit is not None:
                attempt.permit.succeeded()
            self._house.took(self.entry, self._house.clock.monotonic() - began)
            self._house.metrics.upstream_attempts.labels(attempt.route.provider, attempt.kind, "ok").inc()
            return value, attempt
        return None

    def _over(self, attempt: Attempt, outcome: str, error: UpstreamError | None = None) -> None:
        """Count an attempt that failed, and tell its breaker what it says of the provider."""
        provider = attempt.route.provider
        self._house.metrics.upstream_requests.labels(provider, self.entry.name, outcome).inc()
        self._house.metrics.upstream_attempts.labels(provider, attempt.kind, outcome).inc()
        permit = attempt.permit
        if permit is None:
            return
        if isinstance(error, _OUTAGES):
            permit.failed(error.code)
        elif isinstance(error, UpstreamThrottled | UpstreamRejected):
            permit.succeeded()
        elif isinstance(error, UpstreamMisconfigured) and error.refused in {"model", "provider"}:
            permit.refused(error.code)
        else:
            permit.left()

    def _after(self, way: _Way, error: UpstreamError) -> None:
        """Decide how a route goes on after a failure."""
        if isinstance(error, UpstreamMisconfigured) and error.refused != "provider":
            self._stay = way  # with another key, if there is one
        elif isinstance(error, UpstreamThrottled):
            way.throttled = error
            self._stay = way
        elif isinstance(error, _OUTAGES):
            self._wait(way, error)
            at_once = isinstance(error, UpstreamUnavailable | UpstreamInvalid) and error.retry_after_s is None
            if at_once and not way.over:
                self._stay = way
        else:
            way.over = True

    def _wait(self, way: _Way, error: UpstreamError) -> None:
        """Let a route wait, if it may be asked again."""
        way.turns += 1
        way.tried.clear()
        if way.turns >= way.lane.settings.retries.max_attempts:
            way.over = True
            return
        at_least_s = error.retry_after_s
        if at_least_s is None:
            at_least_s = THROTTLED_S if isinstance(error, UpstreamThrottled) else 0.0
        way.not_before = self._house.clock.monotonic() + way.lane.backoff.wait_s(way.turns, at_least_s=at_least_s)
        way.is_retry = way.asked > 0

    def _reason(self) -> ServiceError:
        """Return what says most about why no attempt brought anything."""
        if self._failure is not None and (self._failure.retryable or self._circuit is None):
            return self._failure
        if self._circuit is not None:
            return CircuitOpen(
                f"{self.entry.name}: its providers are given a rest after failures ({self._circuit.cause})",
                retry_after_s=self._circuit.wait_s,
            )
        if self._no_key is not None:
            self._house.last_failure = self._no_key
            return self._no_key
        return self._unable or UpstreamTimeout("the time for this request was over before a provider could be asked")
