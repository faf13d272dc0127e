"""Boards of what is known of providers: in Redis for a fleet, in the memory of one process."""

import math
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

from redis.asyncio import Redis

from service.config import RedisSettings
from service.domain.clock import Clock
from service.domain.probe import Evidence, Outcome, Probe, Sight, Subject
from service.errors import StoreUnavailable
from service.storage.redis import StoreOutage, close_redis, redis_client, redis_errors
from service.telemetry.metrics import Metrics

KEY_PREFIX = "llm-api:probe:"
PATIENCE_S = 1.0
"""How much longer than a request's a command may take: nobody waits for it, and a store that is taken for away costs
each process a call to the provider."""
AWAY_S = 5.0
"""The store is taken for away after so much time without an answer; a start, when everything is slow, takes less."""
AWAY_FRESH_S = 600.0
"""While it is away, each process asks for itself, and at most so often."""
KEPT_S = 259_200.0
"""What nobody looks at for three days is forgotten; the longest interval between two checks is one and a fifth."""

_NEVER_MS = 1 << 50


@dataclass(slots=True)
class _Known:
    probe: Probe | None = None
    checked_at: float = -math.inf
    failures: int = 0
    evidence_at: float = -math.inf
    refused: bool = False
    leased_until: float = -math.inf


class MemoryProbeBoard:
    """The board of one process; see ``ProbeBoard`` in ``service.engine.probe_board``."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[Subject, _Known] = {}

    async def look(
        self, subject: Subject, *, fresh_s: float, lease_s: float, evidence: Evidence | None = None
    ) -> Sight:
        """See ``ProbeBoard``."""
        sight = self.see(subject, evidence)
        known = self._known[subject]
        now = self._clock.monotonic()
        shown_at = max(known.checked_at, -math.inf if known.refused else known.evidence_at)
        if now - shown_at < fresh_s or known.leased_until > now:
            return sight
        known.leased_until = now + lease_s
        return replace(sight, claimed=True)

    def see(self, subject: Subject, evidence: Evidence | None = None) -> Sight:
        """Look without claiming anything."""
        now = self._clock.monotonic()
        known = self._known.setdefault(subject, _Known())
        if evidence is not None and now - evidence.age_s > known.evidence_at:
            known.evidence_at = now - evidence.age_s
            known.refused = evidence.refused
        seen = Evidence(now - known.evidence_at, known.refused) if known.evidence_at > -math.inf else None
        return Sight(known.probe, now - known.checked_at, known.failures, seen)

    async def publish(self, subject: Subject, probe: Probe) -> Sight:
        """See ``ProbeBoard``."""
        known = self._known.setdefault(subject, _Known())
        known.failures = 0 if probe.outcome is Outcome.OK else known.failures + 1
        known.probe = probe
        known.checked_at = self._clock.monotonic()
        known.leased_until = -math.inf
        return self.see(subject)

    def mirror(self, subject: Subject, sight: Sight) -> None:
        """Take over what another board knows; it claims nothing here."""
        now = self._clock.monotonic()
        evidence = sight.evidence or Evidence(math.inf)
        self._known[subject] = _Known(
            sight.probe, now - sight.probe_age_s, sight.failures, now - evidence.age_s, evidence.refused
        )


_PRELUDE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function at(value)
  local number = tonumber(value or '') or 0
  -- The server's clock may have been set back: what lies ahead of it never was.
  if number > now then number = 0 end
  return number
end
"""

_LOOK = (
    _PRELUDE
    + """
local fresh, lease, keep = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local known = redis.call('HMGET', KEYS[1], 'checked_at', 'evidence_at', 'refused', 'leased_at',
                         'outcome', 'reason', 'latency_s', 'failures')
local checked_at, evidence_at, refused, leased_at = at(known[1]), at(known[2]), known[3], at(known[4])
if ARGV[4] ~= '' and now - tonumber(ARGV[4]) > evidence_at then
  evidence_at, refused = now - tonumber(ARGV[4]), ARGV[5]
  redis.call('HSET', KEYS[1], 'evidence_at', string.format('%.0f', evidence_at), 'refused', refused)
end
local shown_at = checked_at
if refused ~= '1' and evidence_at > shown_at then shown_at = evidence_at end
local claimed = 0
if now - shown_at >= fresh and now - leased_at >= lease then
  claimed = 1
  redis.call('HSET', KEYS[1], 'leased_at', string.format('%.0f', now))
end
redis.call('PEXPIRE', KEYS[1], keep)
return {claimed, checked_at > 0 and now - checked_at or -1, evidence_at > 0 and now - evidence_at or -1,
        refused or '0', known[5] or '', known[6] or '', known[7] or '0', known[8] or '0'}
"""
)

_PUBLISH = (
    _PRELUDE
    + """
local checked_at = now - tonumber(ARGV[5])
-- Who heard no answer tells it again.
if redis.call('HGET', KEYS[1], 'telling') == ARGV[6] then return 0 end
if at(redis.call('HGET', KEYS[1], 'checked_at')) > checked_at then return 0 end
redis.call('HSET', KEYS[1], 'checked_at', string.format('%.0f', checked_at), 'outcome', ARGV[1], 'reason', ARGV[2],
           'latency_s', ARGV[3], 'leased_at', '0', 'telling', ARGV[6])
if ARGV[1] == 'ok' then redis.call('HSET', KEYS[1], 'failures', '0')
else redis.call('HINCRBY', KEYS[1], 'failures', 1) end
redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[4]))
return 1
"""
)


@dataclass(frozen=True, slots=True, eq=False)
class _Finding:
    """What a check found out, until the others are told."""

    probe: Probe
    made_at: float
    """Monotonic seconds."""
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    """By which the store knows it when it is told again."""


class RedisProbeBoard:
    """The board of a fleet. Each subject is one hash, each call one script on the server's clock: one round trip.

    While the store is away, it is the board of this process alone, which asks far more seldom. What was found out in
    that time is told to the others when the store is back.
    """

    def __init__(self, settings: RedisSettings, clock: Clock, *, metrics: Metrics | None = None) -> None:
        self._clock = clock
        self._client: Redis = redis_client(settings, metrics=metrics, patience_s=PATIENCE_S, max_connections=4)
        self._look = self._client.register_script(_LOOK)
        self._publish = self._client.register_script(_PUBLISH)
        self._own = MemoryProbeBoard(clock)
        self._outage = StoreOutage("readiness")
        self._away_since: float | None = None
        self._unheard_since: dict[Subject, float] = {}
        """Where a store is slow, one subject's luck is none of another's."""
        self._untold: dict[Subject, _Finding] = {}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        """Close the connections on leaving; the first look makes them."""
        try:
            yield self
        finally:
            await close_redis(self._client)

    async def look(
        self, subject: Subject, *, fresh_s: float, lease_s: float, evidence: Evidence | None = None
    ) -> Sight:
        """See ``ProbeBoard``."""
        try:
            if subject in self._untold:
                await self._tell(subject, self._untold[subject])
            sight = await self._ask(subject, _milliseconds(fresh_s), _milliseconds(lease_s), evidence)
        except StoreUnavailable as error:
            return await self._look_alone(error, subject, fresh_s=fresh_s, lease_s=lease_s, evidence=evidence)
        self._outage.over()
        self._away_since = None
        self._unheard_since.pop(subject, None)
        return sight

    async def publish(self, subject: Subject, probe: Probe) -> Sight:
        """See ``ProbeBoard``."""
        sight = await self._own.publish(subject, probe)
        self._untold[subject] = finding = _Finding(probe, self._clock.monotonic())
        try:
            await self._tell(subject, finding)
            return await self._ask(subject, _NEVER_MS, _NEVER_MS)
        except StoreUnavailable:
            return sight

    async def _tell(self, subject: Subject, finding: _Finding) -> None:
        probe = finding.probe
        arguments = (
            probe.outcome.value,
            probe.reason or "",
            probe.latency_s,
            _milliseconds(KEPT_S),
            _milliseconds(self._clock.monotonic() - finding.made_at),
            finding.id,
        )
        with redis_errors():
            await self._publish(keys=[_key(subject)], args=arguments)
        if self._untold.get(subject) is finding:
            del self._untold[subject]

    async def _ask(self, subject: Subject, fresh_ms: int, lease_ms: int, evidence: Evidence | None = None) -> Sight:
        arguments = (
            fresh_ms,
            lease_ms,
            _milliseconds(KEPT_S),
            "" if evidence is None else _milliseconds(evidence.age_s),
            int(evidence is not None and evidence.refused),
        )
        with redis_errors():
            reply: Any = await self._look(keys=[_key(subject)], args=arguments)
        sight = _sight(reply)
        self._own.mirror(subject, sight)
        return sight

    async def _look_alone(
        self, error: StoreUnavailable, subject: Subject, *, fresh_s: float, lease_s: float, evidence: Evidence | None
    ) -> Sight:
        self._outage.lasts(error)
        now = self._clock.monotonic()
        if self._away_since is None:
            self._away_since = now
        if now - min(self._away_since, self._unheard_since.setdefault(subject, now)) < AWAY_S:
            return self._own.see(subject, evidence)
        return await self._own.look(subject, fresh_s=max(fresh_s, AWAY_FRESH_S), lease_s=lease_s, evidence=evidence)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1_000)


def _key(subject: Subject) -> str:
    return f"{KEY_PREFIX}{subject.provider}:{subject.fingerprint}:{subject.model}"


def _sight(reply: list[Any]) -> Sight:
    claimed, checked_ms, evidence_ms, refused, outcome, reason, latency_s, failures = reply
    probe = None
    if checked_ms >= 0:
        probe = Probe(Outcome(outcome.decode()), reason.decode() or None, float(latency_s))
    return Sight(
        probe=probe,
        probe_age_s=checked_ms / 1_000 if checked_ms >= 0 else math.inf,
        failures=int(failures),
        evidence=Evidence(evidence_ms / 1_000, refused == b"1") if evidence_ms >= 0 else None,
        claimed=bool(claimed),
    )
