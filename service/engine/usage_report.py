"""What the ledger's records say together: cost, capacity, and who is far from what is usual for them."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Literal, Protocol

from service.domain.usage_record import UsageRecord

By = Literal["key", "user", "model", "provider", "day"]

USUAL_DAYS = 14
"""Days before the last one, from which a user's norm is taken."""
FAR_FROM_NORM = 5.0
"""So many times the median of a user's days is far from it."""
FLOOR_TOKENS = 10_000
"""Fewer tokens in a day are nobody's abuse."""
DAY_S = 86_400.0
NOBODY = ""
"""Stands for a user that the caller did not name, or a provider that was not asked."""


class UsageSource(Protocol):
    """Where records are read from."""

    def read(self, since: float, until: float) -> AsyncIterator[UsageRecord]:
        """Yield the records of what ended in this time, in seconds since the epoch."""
        ...

    async def complete_since(self, until: float) -> float:
        """Tell from when on no record that ended before ``until`` is missing, in seconds since the epoch."""
        ...


@dataclass(slots=True)
class UsageSum:
    """What a group of records has together."""

    group: tuple[str, ...]
    requests: int = 0
    failed: int = 0
    """By the fault of the service, a provider or capacity."""
    cancelled: int = 0
    """Left by their callers."""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nano_usd: int = 0
    unpriced: int = 0
    """Requests whose model has no price: their cost is not in the sum."""
    estimated: int = 0
    """Requests of which a provider gave no figures."""

    def add(self, record: UsageRecord) -> None:
        """Add one record."""
        usage = record.usage
        cost = record.cost_nano_usd
        self.requests += 1
        self.failed += record.fault in ("us", "provider", "capacity")
        self.cancelled += record.outcome == "cancelled"
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        self.cached_input_tokens += usage.cached_input_tokens
        self.cache_write_tokens += usage.cache_write_tokens
        self.reasoning_tokens += usage.reasoning_tokens
        self.cost_nano_usd += cost or 0
        self.unpriced += cost is None
        self.estimated += usage.estimated


@dataclass(slots=True)
class CapacityStep:
    """One step of time."""

    at: float
    """When it begins, in seconds since the epoch."""
    requests: int = 0
    """That ended in it."""
    input_tokens: int = 0
    output_tokens: int = 0
    busy_s: float = 0.0
    """Of all requests together."""
    peak: int = 0
    """Most requests at once."""


@dataclass(frozen=True, slots=True)
class Unusual:
    """A user whose last day is far from its own norm."""

    key: str
    user: str
    tokens: int
    """Of the last day."""
    usual_tokens: float
    """The median of the days before on which it asked anything; 0 where there was none."""
    requests: int
    cost_nano_usd: int


_GROUPS: dict[By, Callable[[UsageRecord], str]] = {
    "key": lambda record: record.principal,
    "user": lambda record: record.user or NOBODY,
    "model": lambda record: record.model,
    "provider": lambda record: record.provider or NOBODY,
    "day": lambda record: _day(record.ended_at or record.began_at),
}


async def complete_since(source: UsageSource, since: float, until: float) -> float:
    """Tell from when on an answer on this time is complete: ``since`` where all of it is, ``until`` where nothing is.

    To be asked once the records are read: some may have gone meanwhile.
    """
    return max(since, min(until, await source.complete_since(until)))


async def usage_by(records: AsyncIterator[UsageRecord], by: Sequence[By]) -> list[UsageSum]:
    """Sum records up by group, in the order of the groups; without ``by`` there is one."""
    sums: dict[tuple[str, ...], UsageSum] = {}
    async for record in records:
        group = tuple(_GROUPS[name](record) for name in by)
        if group not in sums:
            sums[group] = UsageSum(group)
        sums[group].add(record)
    return [sums[group] for group in sorted(sums)]


async def capacity(
    records: AsyncIterator[UsageRecord], *, since: float, until: float, step_s: float
) -> list[CapacityStep]:
    """Tell how much was done at a time. A request counts where it ended, and is busy from its begin to its end."""
    steps = [CapacityStep(since + number * step_s) for number in range(int(-(-(until - since) // step_s)))]
    edges: list[tuple[float, int]] = []
    async for record in records:
        ended_at = record.ended_at or record.began_at
        began_at = min(ended_at, max(since, ended_at - record.total_s))
        usage = record.usage
        step = steps[int((ended_at - since) // step_s)]
        step.requests += 1
        step.input_tokens += usage.input_tokens
        step.output_tokens += usage.output_tokens
        edges += [(began_at, 1), (ended_at, -1)]
    # In a thread: it sorts all that there is, and this loop has others to serve.
    await asyncio.to_thread(_spread, steps, edges, since=since, step_s=step_s)
    return steps


def _spread(steps: list[CapacityStep], edges: Iterable[tuple[float, int]], *, since: float, step_s: float) -> None:
    """Put into each step how busy it was, by the times at which requests began and ended."""
    running = 0
    before = since
    for at, change in sorted(edges):
        first, last = int((before - since) // step_s), int((at - since) // step_s)
        for number in range(first, min(last, len(steps) - 1) + 1):
            step = steps[number]
            step.busy_s += running * max(0.0, min(at, step.at + step_s) - max(before, step.at))
            step.peak = max(step.peak, running)
        running += change
        before = at
        if last < len(steps):
            steps[last].peak = max(steps[last].peak, running)


@dataclass(slots=True)
class _Days:
    tokens: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    """By how many days ago they ended."""
    requests: int = 0
    cost_nano_usd: int = 0


async def unusual(source: UsageSource, *, now: float) -> list[Unusual]:
    """List the users of each key whose last 24 hours are far from their own norm, the farthest first."""
    users: defaultdict[tuple[str, str], _Days] = defaultdict(_Days)
    async for record in source.read(now - (USUAL_DAYS + 1) * DAY_S, now):
        days = users[record.principal, record.user or NOBODY]
        usage = record.usage
        age = int((now - (record.ended_at or now)) // DAY_S)
        days.tokens[age] += usage.input_tokens + usage.output_tokens
        if age == 0:
            days.requests += 1
            days.cost_nano_usd += record.cost_nano_usd or 0
    found = []
    for (key, user), days in users.items():
        tokens = days.tokens.pop(0, 0)
        usual = float(median(days.tokens.values())) if days.tokens else 0.0
        if tokens >= max(FLOOR_TOKENS, FAR_FROM_NORM * usual):
            found.append(Unusual(key, user, tokens, usual, days.requests, days.cost_nano_usd))
    return sorted(found, key=lambda one: one.tokens / max(1.0, one.usual_tokens), reverse=True)


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()
