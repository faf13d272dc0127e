"""Whether this process should get traffic: known from checks in the background, never from a probe itself."""

import asyncio
import logging
import math
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from service.config import ReadinessSettings, Settings
from service.config.fingerprint import KeyFingerprints
from service.domain.clock import Clock
from service.domain.probe import Evidence, Outcome, Sight, Subject
from service.engine.catalogue import Route
from service.engine.drain import Drain, Stage
from service.engine.probe_board import ProbeBoard
from service.engine.prober import PROBE_TIMEOUT_S, Prober
from service.errors import UpstreamError, UpstreamMisconfigured
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

LEASE_S = 2 * PROBE_TIMEOUT_S
"""Seconds after which another process makes the check of one that died while making it."""
JITTER = 0.2
"""How much longer than the interval a check may wait, as a part of it: never shorter, so that no interval has two."""
TICK_S = 2.0
"""Seconds between two looks at the board, each a round trip to the store for each provider; the most by which a process
lags behind what another one found out, and the least between two words of its own traffic."""
STARTING_TICK_S = 0.25
"""The same until this process is ready for the first time, and somebody waits for it."""
KEY_LAG_S = 1.5
"""How long after the change of a key file a call may still have the old key; providers look once a second."""
FAILURES = 2
"""Passing trouble counts from so many failed checks on, where there was success before: one may be a lost packet."""
TOGETHER_S = 10.0
"""How long before a process began a success still proves its key: so far apart may processes be that start together, of
which one makes the check. A key that was revoked longer before the start is found out by a check of its own."""
NOTHING_KNOWN = "not checked yet"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ``/ready`` says."""

    ready: bool
    status: Literal["starting", "ready", "degraded", "unready"]
    reason: str | None = None
    """Why not simply ready, provider by provider; shown to whoever may ask, so it holds nothing secret."""


READY = Verdict(ready=True, status="ready")
DRAINING = Verdict(ready=False, status="unready", reason="draining")


@dataclass(slots=True)
class _Traffic:
    """How calls for callers went at one provider."""

    since: float = -math.inf
    """Calls that began before it are no evidence: they may have had another key."""
    answered_at: float = -math.inf
    refused_at: float = -math.inf
    failure: UpstreamError | None = None
    """Why the last one failed, if it did."""

    def note(self, now: float, error: UpstreamError | None, began_at: float) -> None:
        self.failure = error
        if began_at < self.since:
            return
        if error is None:
            self.answered_at = now
        elif _refuses_key(error):
            self.refused_at = now

    def evidence(self, now: float) -> Evidence | None:
        """Return what is proven: that there are answers, or that the key is refused; other failures prove nothing."""
        at = max(self.answered_at, self.refused_at)
        if at == -math.inf or at < self.since:
            return None
        return Evidence(now - at, refused=self.refused_at > self.answered_at)


@dataclass(slots=True)
class _Watch:
    """What this process holds of one provider."""

    route: Route
    """What to ask it for."""
    gates: bool
    """Whether it may keep the process unready. Not where it came by a reload: all processes would turn at once."""
    since: float
    """When this process began to watch it."""
    fingerprint: str | None = None
    """Of the keys that calls have by now."""
    newer: tuple[str, float] | None = None
    """Of the keys that stand in the files, and since when."""
    proven: bool = False
    """Whether it was seen to work since this process began, or a moment before."""
    outcome: Outcome | None = None
    reason: str | None = None
    failures: int = 0

    def has_other_keys(self, fingerprint: str, now: float) -> bool:
        """Take over the keys' fingerprint once calls have them; return whether they are others than before."""
        if self.fingerprint in {None, fingerprint}:
            self.fingerprint, self.newer = fingerprint, None
        elif self.newer is None or self.newer[0] != fingerprint:
            self.newer = (fingerprint, now)
        elif now - self.newer[1] >= KEY_LAG_S:
            self.fingerprint, self.newer = fingerprint, None
            return True
        return False

    def proves_s(self, now: float) -> float:
        """Return how old a success may be to prove the keys to this process."""
        return math.inf if self.proven else now - self.since + TOGETHER_S

    def take(self, sight: Sight, *, proves_s: float) -> None:
        """Keep the newest of what a sight shows. To a process that begins, an older success proves nothing."""
        seen = sight.evidence
        if seen is not None and seen.age_s < sight.probe_age_s:
            refused = seen.refused
            self.outcome = Outcome.KEY_REFUSED if refused else Outcome.OK
            self.reason = "upstream_misconfigured: the provider refuses our key" if refused else None
            self.failures = 1 if refused else 0
        elif sight.probe is not None:
            self.outcome, self.reason = sight.probe.outcome, sight.probe.reason
            self.failures = sight.failures
        else:
            self.outcome = self.reason = None
        if self.outcome is Outcome.OK and not self.proven:
            # Any key may have worked before: it may have been revoked since.
            self.proven = _age_of(sight) <= proves_s
            if not self.proven:
                self.outcome = None

    @property
    def is_unknown(self) -> bool:
        """Whether neither success nor a lasting failure was seen."""
        return not self.proven and (self.outcome is None or self.outcome.is_transient)

    @property
    def is_wrong(self) -> bool:
        """Whether it never worked, and will not by itself."""
        return not self.proven and self.outcome in {Outcome.KEY_REFUSED, Outcome.REQUEST_REFUSED}

    @property
    def is_failing(self) -> bool:
        """Whether it should be told of."""
        if self.outcome in {None, Outcome.OK}:
            return not self.proven and self.gates
        return not (self.proven and self.outcome.is_transient and self.failures < FAILURES)


class ReadinessCheck:
    """Keeps the verdict in memory, so that asking for it costs nothing and a storm of probes stays with us.

    A provider is asked once in an interval for the whole fleet, and not at all where real traffic showed that it
    works. But in ``strict`` mode, what worked once never makes a process unready again: an outage of a shared provider
    would un-ready every pod at once, and a 503 with a cause beats a connection that is refused.
    """

    def __init__(
        self,
        *,
        routes: Callable[[str | None], Iterable[Route]],
        keys: KeyFingerprints,
        prober: Prober,
        board: ProbeBoard,
        settings: ReadinessSettings,
        drain: Drain,
        metrics: Metrics,
        clock: Clock,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``routes`` tells whom to ask for what, given the model that is preferred."""
        self._routes = routes
        self._keys = keys
        self._prober = prober
        self._board = board
        self._settings = settings
        self._drain = drain
        self._metrics = metrics
        self._clock = clock
        self._chance = chance
        self._began_at = clock.monotonic()
        self._was_ready = False
        self._traffic: dict[str, _Traffic] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_running = False
        self._watches = {
            route.provider: _Watch(route, gates=True, since=self._began_at) for route in routes(settings.model)
        }
        self._verdict = self._judged()
        self._set(self._verdict)

    @property
    def verdict(self) -> Verdict:
        """What to answer now."""
        return self._verdict if self._drain.ready else DRAINING

    def note(self, provider: str, error: UpstreamError | None, began_at: float) -> None:
        """Take notice of how a call for a caller went, begun at ``began_at`` on the monotonic clock.

        Costs next to nothing, since it stands in the way of each.
        """
        if error is not None and not error.fallback:
            return  # what this provider rejects of a caller's request, others would too
        if provider not in self._keys:
            return  # it was taken out of the configuration while the call ran
        traffic = self._traffic.setdefault(provider, _Traffic())
        changed = _told_of(traffic.failure) != _told_of(error)
        traffic.note(self._clock.monotonic(), error, began_at)
        if changed and self._settings.mode == "passive":
            self._set(self._judged())

    async def prepare(self, settings: Settings) -> Callable[[], None]:
        """See ``Reloadable`` in ``service.reloading``: the models have to change before."""

        def commit() -> None:
            # What was seen before checks were switched off says nothing when they are switched on again.
            old = self._watches if self._is_probing else {}
            self._settings = settings.readiness
            self._keys.replace(settings.providers)
            self._watches = {}
            now = self._clock.monotonic()
            for route in self._routes(self._settings.model):
                watch = old.get(route.provider) or _Watch(route, gates=not self._was_ready, since=now)
                watch.route = route
                self._watches[route.provider] = watch
            self._traffic = {name: seen for name, seen in self._traffic.items() if name in settings.providers}
            self._set(self._judged())
            self._start_or_stop()

        return commit

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the verdict fresh while the context is open."""
        self._is_running = True
        self._start_or_stop()
        try:
            with self._drain.told(Stage.NOTICED, self._tell), self._drain.told(Stage.REFUSING, self._tell):
                yield
        finally:
            self._is_running = False
            task = self._task
            self._start_or_stop()
            if task is not None:
                await asyncio.gather(task, return_exceptions=True)

    async def refresh(self) -> None:
        """Look at what the fleet knows, make the checks that fall to this process, and keep the verdict.

        What one provider shows does not wait for the others.
        """
        results = await asyncio.gather(*map(self._refresh, tuple(self._watches.values())), return_exceptions=True)
        self._set(self._judged())  # the grace of the start may be over
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _refresh(self, watch: _Watch) -> None:
        if not self._is_watching(watch):
            return
        name = watch.route.provider
        now = self._clock.monotonic()
        traffic = self._traffic.setdefault(name, _Traffic())
        if watch.has_other_keys(self._keys(name), now):
            traffic.since = now
        subject = Subject(name, watch.route.model, watch.fingerprint or "")
        interval_s = self._settings.interval_s * (1 + JITTER * self._chance())
        sight = await self._board.look(
            subject,
            fresh_s=min(interval_s, watch.proves_s(now)),
            lease_s=LEASE_S,
            evidence=traffic.evidence(now),
        )
        if sight.claimed and self._is_watching(watch):
            sight = await self._board.publish(subject, await self._prober.ask(watch.route))
        if not self._is_watching(watch):
            return  # its provider, or all checks, were taken out of the configuration meanwhile
        watch.take(sight, proves_s=watch.proves_s(self._clock.monotonic()))
        self._set(self._judged())
        if (age_s := _age_of(sight)) < math.inf:
            self._metrics.probe_age.labels(name).set(age_s)

    @property
    def _is_probing(self) -> bool:
        return self._settings.mode in ("key", "strict")

    def _is_watching(self, watch: _Watch) -> bool:
        return self._is_probing and self._watches.get(watch.route.provider) is watch

    def _start_or_stop(self) -> None:
        """Have checks made while the context is open and the mode has any."""
        wanted = self._is_running and self._is_probing
        if wanted and self._task is None:
            self._task = asyncio.create_task(self._keep_fresh(), name="readiness")
        elif not wanted and self._task is not None:
            self._task.cancel()
            self._task = None

    def _judged(self) -> Verdict:
        match self._settings.mode:
            case "off":
                return READY
            case "passive":
                return self._judged_by_traffic()
            case _:
                return self._judged_by_checks()

    def _judged_by_traffic(self) -> Verdict:
        failures = {name: traffic.failure for name, traffic in self._traffic.items()}
        reasons = [f"{name}: {': '.join(told)}" for name, error in failures.items() if (told := _told_of(error))]
        return Verdict(ready=True, status="degraded", reason="; ".join(reasons)) if reasons else READY

    def _judged_by_checks(self) -> Verdict:
        watches = self._watches.values()
        wrong = [watch for watch in watches if watch.is_wrong and watch.gates]
        if wrong:
            return Verdict(ready=False, status="unready", reason=_reasons(wrong))
        unknown = [watch for watch in watches if watch.is_unknown]
        is_patient = self._clock.monotonic() - self._began_at < self._settings.startup_grace_s
        if unknown and not self._was_ready and is_patient:
            return Verdict(ready=False, status="starting", reason=_reasons(unknown))
        failing = [watch for watch in watches if watch.is_failing]
        if not failing:
            return READY
        is_ready = self._settings.mode != "strict"
        return Verdict(ready=is_ready, status="degraded" if is_ready else "unready", reason=_reasons(failing))

    def _set(self, verdict: Verdict) -> None:
        if verdict != self._verdict:
            logger.info("readiness changed", extra={"status": verdict.status, "reason": verdict.reason})
        self._verdict = verdict
        self._was_ready = self._was_ready or verdict.ready
        self._tell()

    def _tell(self) -> None:
        self._metrics.ready.set(1 if self.verdict.ready else 0)

    async def _keep_fresh(self) -> None:
        while True:
            try:
                await self.refresh()
            except Exception:  # the outer edge of the task: a defect here must not freeze the verdict for ever
                logger.exception("readiness check failed by a defect")
                self._metrics.unhandled_errors.labels("readiness").inc()
            tick_s = TICK_S if self._was_ready else STARTING_TICK_S
            # Processes that began together should not look together for ever.
            await asyncio.sleep(min(tick_s, self._settings.interval_s) * (1 + JITTER * (self._chance() - 0.5)))


def _age_of(sight: Sight) -> float:
    """Return how old the newest is that a sight shows."""
    return min(sight.probe_age_s, math.inf if sight.evidence is None else sight.evidence.age_s)


def _reasons(watches: Iterable[_Watch]) -> str | None:
    reasons = [f"{watch.route.provider}: {watch.reason or NOTHING_KNOWN}" for watch in watches]
    return "; ".join(reasons) or None


def _told_of(error: UpstreamError | None) -> tuple[str, str] | None:
    return None if error is None else (error.code, error.message)


def _refuses_key(error: UpstreamError) -> bool:
    # A 403 or a 404 may be about a name that the caller chose.
    return isinstance(error, UpstreamMisconfigured) and error.refused == "key"
