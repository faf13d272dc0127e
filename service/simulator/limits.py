"""The vendors' rate limits for each key: continuous token buckets, and what they say of themselves in headers."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

Dimension = Literal["requests", "tokens"]

SECONDS_PER_MINUTE: Final = 60.0
MOST_KEYS: Final = 10_000
"""Keys whose buckets are remembered; the one unused for longest is forgotten first."""


class TokenBucket:
    """Holds at most one minute's allowance and never hands out more than that plus what time has refilled."""

    __slots__ = ("_level", "_updated", "capacity")

    def __init__(self, per_minute: int, now: float) -> None:
        self.capacity = per_minute
        self._level = float(per_minute)
        self._updated = now

    def level(self, now: float) -> float:
        """Return what may be taken now."""
        if now > self._updated:
            refilled = (now - self._updated) * self.capacity / SECONDS_PER_MINUTE
            self._level = min(float(self.capacity), self._level + refilled)
            self._updated = now
        return self._level

    def wait_s(self, amount: float, now: float) -> float:
        """Return seconds until so much may be taken: 0 for now, infinity for more than the bucket ever holds."""
        if amount > self.capacity:
            return math.inf
        missing = amount - self.level(now)
        return max(0.0, missing * SECONDS_PER_MINUTE / self.capacity) if self.capacity else 0.0

    def take(self, amount: float, now: float) -> None:
        """Take what `wait_s` has said may be taken."""
        self._level = self.level(now) - amount

    def full_in_s(self, now: float) -> float:
        """Return seconds until the whole minute's allowance is back."""
        return (self.capacity - self.level(now)) * SECONDS_PER_MINUTE / self.capacity if self.capacity else 0.0


@dataclass(frozen=True, slots=True)
class Standing:
    """One dimension of one key's limits after a call was admitted or refused."""

    dimension: Dimension
    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a call may pass; a refused one has taken nothing."""

    refused: Dimension | None
    wait_s: float
    standings: tuple[Standing, ...]


FREE: Final = Verdict(None, 0.0, ())


class Limits:
    """The buckets of every key, under one pair of limits."""

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._per_minute: dict[Dimension, int] = {}
        if requests_per_minute is not None:
            self._per_minute["requests"] = requests_per_minute
        if tokens_per_minute is not None:
            self._per_minute["tokens"] = tokens_per_minute
        self._keys: OrderedDict[str, dict[Dimension, TokenBucket]] = OrderedDict()

    def admit(self, key: str, tokens: int, now: float) -> Verdict:
        """Charge one request and its tokens to a key, or nothing at all if either does not fit."""
        if not self._per_minute:
            return FREE
        buckets = self._keys.get(key)
        if buckets is None:
            buckets = self._keys[key] = {name: TokenBucket(limit, now) for name, limit in self._per_minute.items()}
            if len(self._keys) > MOST_KEYS:
                self._keys.popitem(last=False)
        else:
            self._keys.move_to_end(key)
        costs: dict[Dimension, int] = {"requests": 1, "tokens": tokens}
        waits = {name: bucket.wait_s(costs[name], now) for name, bucket in buckets.items()}
        refused = max(waits, key=lambda name: waits[name])
        if waits[refused] == 0.0:
            for name, bucket in buckets.items():
                bucket.take(costs[name], now)
        standings = tuple(
            Standing(name, bucket.capacity, math.floor(bucket.level(now)), bucket.full_in_s(now))
            for name, bucket in buckets.items()
        )
        return Verdict(refused if waits[refused] > 0.0 else None, waits[refused], standings)


def go_duration(seconds: float) -> str:
    """Write a duration as Go prints one, to the millisecond: `12ms`, `1.5s`, `6m0s`, `1h0m3s`."""
    milliseconds = round(seconds * 1000)
    if milliseconds < 1000:  # noqa: PLR2004 - Go writes less than a second in milliseconds
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:g}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def openai_headers(verdict: Verdict) -> str:
    """Return the `x-ratelimit-*` lines; `reset` is the time until the bucket is full again."""
    return "".join(
        f"x-ratelimit-limit-{s.dimension}: {s.limit}\r\n"
        f"x-ratelimit-remaining-{s.dimension}: {s.remaining}\r\n"
        f"x-ratelimit-reset-{s.dimension}: {go_duration(s.reset_s)}\r\n"
        for s in verdict.standings
    )


def anthropic_headers(verdict: Verdict, wall_s: float) -> str:
    """Return the `anthropic-ratelimit-*` lines; `reset` is the RFC 3339 instant at which the bucket is full again."""
    return "".join(
        f"anthropic-ratelimit-{s.dimension}-limit: {s.limit}\r\n"
        f"anthropic-ratelimit-{s.dimension}-remaining: {s.remaining}\r\n"
        f"anthropic-ratelimit-{s.dimension}-reset: "
        f"{datetime.fromtimestamp(math.ceil(wall_s + s.reset_s), UTC):%Y-%m-%dT%H:%M:%SZ}\r\n"
        for s in verdict.standings
    )
