"""One request at the providers: which routes and keys are asked, in which order, how often, and how long between.

It is the only layer that repeats anything, and does so only until a first content was handed on.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.admission.base import Limiter
from service.config import AdmissionSettings, ProviderSettings, ResilienceSettings, Settings
from service.domain.clock import Clock, Deadline
from service.engine.attempt import MAY_BE_BILLED, OUTAGES, PUSH_BACKS, Attempt, Call, Kind, Lose
from service.engine.breakers import Breakers
from service.engine.catalogue import ModelEntry, Route
from service.engine.hedging import Hedging
from service.engine.model_span import OFF, ModelSpan
from service.errors import (
    UNSUPPORTED,
    CircuitOpen,
    DeadlinePassed,
    InternalError,
    InvalidRequest,
    ServiceError,
    UpstreamError,
    UpstreamInvalid,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.providers.base import Provider, ProviderKey
from service.queueing.provider_queue import NoTurnError, ProviderQueue, Turn
from service.queueing.work import Work
from service.resilience.backoff import Backoff
from service.resilience.breaker import Breaker, Permit
from service.resilience.budget import Budget
from service.telemetry import semconv
from service.telemetry.metrics import Metrics
from service.telemetry.outgoing import outgoing

T = TypeVar("T")

RESERVE = 10.0
"""Retries that quieter times may leave for a moment of trouble."""
IN_VAIN_MAX = 10
"""Turns of a request at a route for which there was no key after all."""
THROTTLED_S = 1.0
"""Least wait after a 429 that does not say how long."""


@dataclass(frozen=True, slots=True)
class _Lane:
    """What is kept about a provider between requests."""

    settings: ProviderSettings
    budget: Budget
    backoff: Backoff
    queue: ProviderQueue


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
    is_full: bool = False
    """Whether it would let this request wait for its turn."""
    turns_without_key: int = 0
    over: bool = False

    @property
    def patience_s(self) -> float:
        """Seconds before which no timeout of the provider's can have passed."""
        timeouts_s = self.lane.settings.timeouts_s
        return min(timeouts_s.connect, timeouts_s.first_token, timeouts_s.total)

    def free_in_s(self, tokens: int, keep: float) -> float:
        """Return the seconds until a key may be used, as far as the provider's limits go."""
        if self.throttled is not None:
            return 0.0  # how a retry waits is not decided by the queue
        return self.provider.keys.wait_s(self.route.model, tokens=tokens, keep=keep)


class Attempts:
    """Makes attempts for requests, and keeps what it learns of providers; in memory, for this process alone."""

    def __init__(
        self,
        *,
        providers: Mapping[str, Provider],
        settings: Mapping[str, ProviderSettings],
        resilience: ResilienceSettings,
        admission: AdmissionSettings,
        limiter: Limiter,
        metrics: Metrics,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.metrics = metrics
        self.clock = clock
        self.sleep = sleep
        self.resilience = resilience
        self.breakers = Breakers(metrics=metrics, clock=clock, random=random)
        self._hedging = Hedging(resilience.hedging, clock=clock, sleep=sleep)
        self._random = random
        self._providers = providers
        self._admission = admission
        self._limiter = limiter
        self._lanes: dict[str, _Lane] = {}
        self._lanes = {name: self._lane(name, provider) for name, provider in settings.items()}

    async def make(
        self, entry: ModelEntry, work: Work, call: Call[T], *, lose: Lose[T] | None = None, span: ModelSpan = OFF
    ) -> tuple[T, Attempt]:
        """Return what the first attempt that can brings, and the attempt, whose turn is to be ended.

        Raises what says most about why none could. With ``lose`` it may make a second attempt while the first is slow.
        Each attempt is told under ``span``.
        """
        self.breakers.sweep()
        ways = self._ways(entry)
        at = self.clock.monotonic() + ways[0].lane.settings.timeouts_s.total
        deadline = Deadline(at if work.deadline_at is None else min(at, work.deadline_at))
        run = _Run(self, entry, work=work, call=call, ways=ways, deadline=deadline, span=span)
        if lose is None:
            return await run.first_that_can()
        return await self._hedging.first_that_can(run, entry, lose)

    async def prepare(self, settings: Settings) -> Callable[[], None]:
        """See ``Reloadable`` in ``service.reloading``.

        What was learnt of a provider is forgotten where it is another one, or is judged by other rules. Requests that
        run go on as they began.
        """

        def commit() -> None:
            self.resilience = settings.resilience
            self._admission = settings.admission
            self._hedging.apply(settings.resilience.hedging)
            # A provider that was taken out stays known to requests that began before.
            before, self._lanes = self._lanes, dict(self._lanes)
            for name, provider in settings.providers.items():
                self._lanes[name] = self._lane(name, provider)
                known = before.get(name)
                if known is not None and _is_another(known.settings, provider):
                    self.breakers.forget(name)

        return commit

    def vendor(self, provider: str) -> str:
        """Return what the GenAI conventions call a provider: what it speaks, as they ask for compatible servers too."""
        lane = self._lanes.get(provider)
        return "unknown" if lane is None else lane.settings.kind.value

    @property
    def queue_wait_s(self) -> float:
        """Seconds for which a request may wait for its turn."""
        return self._admission.queue_wait_s

    def _ways(self, entry: ModelEntry) -> list[_Way]:
        known = [(route, self._providers.get(route.provider)) for route in entry.routes]
        ways = [_Way(route, provider, self._lanes[route.provider]) for route, provider in known if provider is not None]
        if not ways:
            raise UpstreamUnavailable("the provider was taken out of the configuration", provider=known[0][0].provider)
        return ways

    def _lane(self, name: str, settings: ProviderSettings) -> _Lane:
        """Make what is kept about a provider. Its queue stays, with those who wait in it, and its budget if it can."""
        known = self._lanes.get(name)
        if known is None:
            queue = ProviderQueue(
                name,
                settings=settings,
                admission=self._admission,
                limiter=self._limiter,
                metrics=self.metrics,
                clock=self.clock,
                sleep=self.sleep,
            )
        else:
            queue = known.queue
            queue.apply(settings, self._admission)
        retries = settings.retries
        if known is not None and known.settings.retries == retries:
            return _Lane(settings, known.budget, known.backoff, queue)
        return _Lane(
            settings,
            Budget(ratio=retries.budget_ratio, per_s=retries.budget_per_s, reserve=RESERVE, clock=self.clock),
            Backoff(base_s=retries.base_s, cap_s=retries.cap_s, random=self._random),
            queue,
        )


def _is_another(one: ProviderSettings, other: ProviderSettings) -> bool:
    """Whether what was learnt under the settings says nothing under the others."""
    names = ("kind", "base_url", "keys", "key_files", "breaker")
    return any(getattr(one, name) != getattr(other, name) for name in names)


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
        breaker = self._house.breakers.of(self._entry, self._way.route, key, self._way.lane.settings.breaker)
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

    def __init__(
        self,
        house: Attempts,
        entry: ModelEntry,
        *,
        work: Work,
        call: Call[T],
        ways: list[_Way],
        deadline: Deadline,
        span: ModelSpan,
    ) -> None:
        self.cut_short: list[tuple[Attempt, float]] = []
        """Attempts that were cancelled while they ran, and after how many seconds."""
        self.took_s = 0.0
        """How long the attempt took that brought something."""
        self._house = house
        self.entry = entry
        self._work = work
        self._call = call
        self._ways = ways
        self._deadline = deadline
        self._span = span
        self._waited_s = 0.0
        """How long the last turn was waited for, if that is told."""
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
        self._too_late: tuple[_Way, NoTurnError] | None = None
        """Where a turn would have come first, but not in time."""
        self._patient_until: float | None = None
        """Until when it waits for turns, at all routes together."""

    async def first_that_can(self) -> tuple[T, Attempt]:
        """Go through the routes until one brings something. Ends at once when it is cancelled, also while it waits."""
        while (way := self._next()) is not None:
            self._current = None
            if not await self._is_due(way):
                continue
            kind: Kind = "retry" if way.is_retry else "fallback" if self._made else "first"
            turn = await self._turn_at(way)
            attempt = None if turn is None else self._attempt_at(way, kind, turn)
            if attempt is not None:
                answer = await self._ask(way, attempt)
                if answer is not None:
                    return answer
        raise await self._reason()

    def has_another(self) -> bool:
        """Whether a second attempt may run beside the one that does."""
        return self._current is not None and self._made < self._house.resilience.attempts_max

    async def another(self) -> tuple[T, Attempt] | None:
        """Make one attempt with another route, or another key; None if there is none, or it fails."""
        others = [way for way in self._ways if not (way.over or way.asked or way is self._current)]
        for way in (*others, *(way for way in (self._current,) if way is not None)):
            turn = await way.lane.queue.turn(
                self._work, way.route.model, way.free_in_s, until=self._deadline.at, patient=False
            )
            attempt = None if turn is None else self._attempt_at(way, "hedge", turn, quietly=True)
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
        now = self._house.clock.monotonic()
        left = (way for way in self._ways if not way.over)
        return min(left, key=lambda way: (way.not_before > now, way.is_full, way.not_before), default=None)

    async def _is_due(self, way: _Way) -> bool:
        """Wait until a route may be asked; False if that is too late, and it is over."""
        wait_s = way.not_before - self._house.clock.monotonic()
        if wait_s > 0 and way.not_before < self._deadline.at:
            self._work.timings.queue += wait_s
            await self._house.sleep(wait_s)
        way.over = max(way.not_before, self._house.clock.monotonic()) >= self._deadline.at
        return not way.over

    async def _turn_at(self, way: _Way) -> Turn | None:
        """Wait for a turn, but not while another route may have one at once; None if there is none, or not yet."""
        until = self._deadline.at
        if way.is_full:
            if self._patient_until is None:
                self._patient_until = self._house.clock.monotonic() + self._house.queue_wait_s
            until = min(until, self._patient_until)
        queue = way.lane.queue
        began = self._house.clock.monotonic()
        try:
            turn = await queue.turn(self._work, way.route.model, way.free_in_s, until=until, patient=way.is_full)
        except NoTurnError as error:
            if self._too_late is None or error.wait_s < self._too_late[1].wait_s:
                self._too_late = (way, error)
            way.over = True
            return None
        finally:
            waited_s = self._house.clock.monotonic() - began
            self._work.timings.queue += waited_s
            self._waited_s += waited_s
        if turn is None:
            way.is_full = True
        return turn

    def _attempt_at(self, way: _Way, kind: Kind, turn: Turn, *, quietly: bool = False) -> Attempt | None:
        """Find a key for an attempt; None if the route is over, or has to wait, which is not looked at ``quietly``.

        Then the turn is given back.
        """
        attempt = self._keyed(way, kind, turn, quietly=quietly)
        if attempt is None:
            turn.give_back()
        return attempt

    def _keyed(self, way: _Way, kind: Kind, turn: Turn, *, quietly: bool) -> Attempt | None:
        gate = _Gate(self._house, self.entry, way)
        failure: UpstreamError | None = None
        try:
            key = way.provider.keys.take(way.route.model, gate.admits, tokens=self._work.tokens)
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
            way.provider.keys.give_back(key, way.route.model, tokens=self._work.tokens)
            return None
        way.tried.add(key.fingerprint)
        if not way.asked:
            way.lane.budget.earn()
        way.asked += 1
        self._made += 1
        until = min(self._deadline.at, self._house.clock.monotonic() + way.lane.settings.timeouts_s.total)
        span = self._span.attempt(way.route, kind, number=self._made, waited_s=self._waited_s)
        self._waited_s = 0.0
        return Attempt(
            way.provider, way.route, key, Deadline(until), kind, gate.permit, turn, self._is_out_of_time, span
        )

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
        if isinstance(failure, UpstreamThrottled) and throttled is None and way.turns_without_key < IN_VAIN_MAX:
            # Others were faster since there was room for it: it waits for its turn once more.
            way.turns_without_key += 1
            way.is_full = True
            return
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
            with outgoing(attempt.span):
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
        except UpstreamError as raised:
            self._failed(way, attempt, raised, in_vain=self._is_in_vain(way, raised, began))
        except Exception as error:
            self._over(attempt, error.code if isinstance(error, ServiceError) else InternalError.code)
            raise
        else:
            if attempt.permit is not None:
                attempt.permit.succeeded()
            self.took_s = self._house.clock.monotonic() - began
            self._house.metrics.upstream_attempts.labels(attempt.route.provider, attempt.kind, "ok").inc()
            return value, attempt
        return None

    def _failed(self, way: _Way, attempt: Attempt, raised: UpstreamError, *, in_vain: bool) -> None:
        """Take note of a provider's failure; raise it if no other attempt may do better."""
        error = attempt.judged(raised)
        self._over(attempt, error.code, error, in_vain=in_vain)
        if not error.fallback:
            raise error
        if self._failure is None or not isinstance(error, DeadlinePassed):
            self._failure = error  # what failed before is why the time did not suffice
        if attempt.kind != "hedge":
            self._after(way, error)

    def _is_in_vain(self, way: _Way, error: UpstreamError, began: float) -> bool:
        """Whether a timeout says that the request had no more time, and nothing of the provider."""
        if not isinstance(error, UpstreamTimeout):
            return False
        return self._is_out_of_time() or self._house.clock.monotonic() - began < way.patience_s

    def _is_out_of_time(self) -> bool:
        """Whether the caller gives no more time."""
        return self._work.deadline_at is not None and self._house.clock.monotonic() >= self._work.deadline_at

    def _over(
        self, attempt: Attempt, outcome: str, error: UpstreamError | None = None, *, in_vain: bool = False
    ) -> None:
        """Count an attempt that failed, end its turn, and note what it says of the provider, but not ``in_vain``."""
        provider = attempt.route.provider
        self._house.metrics.upstream_requests.labels(provider, self.entry.name, outcome).inc()
        self._house.metrics.upstream_attempts.labels(provider, attempt.kind, outcome).inc()
        if isinstance(error, PUSH_BACKS) and not in_vain:
            attempt.turn.pushed_back()
        attempt.turn.end(None, billed=outcome == "cancelled" or isinstance(error, MAY_BE_BILLED))
        if attempt.span is not None:
            if outcome == "cancelled":
                attempt.span.set({semconv.OUTCOME: outcome})
            else:
                attempt.span.fail(outcome)
            attempt.span.end()
        permit = attempt.permit
        if permit is None:
            return
        if isinstance(error, OUTAGES) and not in_vain:
            permit.failed(error.code)
        elif isinstance(error, UpstreamThrottled | UpstreamRejected):
            permit.succeeded()
        elif isinstance(error, UpstreamMisconfigured) and not error.refuses_key:
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
        elif isinstance(error, OUTAGES):
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

    async def _reason(self) -> ServiceError:
        """Return what says most about why no attempt brought anything."""
        if self._failure is not None and (self._failure.retryable or self._circuit is None):
            return self._failure
        if self._too_late is not None:
            way, late = self._too_late
            return await way.lane.queue.refusal(self._work, way.route.model, late)
        if self._circuit is not None and self._circuit.is_refusal:
            return UpstreamMisconfigured(
                f"{self.entry.name}: its provider refuses the model or our use of it ({self._circuit.cause})",
                refused="model",
            )
        if self._circuit is not None:
            return CircuitOpen(
                f"{self.entry.name}: its providers are given a rest after failures ({self._circuit.cause})",
                retry_after_s=self._circuit.wait_s,
            )
        if self._no_key is not None:
            return self._no_key
        kind = DeadlinePassed if self._is_out_of_time() else UpstreamTimeout
        return self._unable or kind("the time for this request was over before a provider could be asked")
