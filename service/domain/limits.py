"""Limits: what a principal, a user or a model may take, and what is left of it; whole numbers throughout."""

from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Literal, Self

import msgspec

ScopeKind = Literal["key", "user", "model", "provider"]
Resource = Literal["requests", "tokens", "concurrency", "usd"]

NANO = 1_000_000_000
"""Money is counted in nano-dollars: a token of the cheapest models costs about ten."""


def decimal_usd(nano_usd: int) -> str:
    """Write an amount in US dollars: exact, and without an exponent."""
    return f"{Decimal(nano_usd) / NANO:f}"


class Limits(msgspec.Struct, frozen=True):
    """Rates and quotas; None is unlimited."""

    requests_per_minute: int | None = None
    request_burst: int | None = None
    """Requests that may start at once after a pause; a minute's worth where it is None."""
    tokens_per_minute: int | None = None
    token_burst: int | None = None
    concurrency: int | None = None
    usd_per_day: Decimal | None = None

    def over(self, other: Self) -> Self:
        """Return these limits, with what they leave out taken from ``other``, each field by itself."""
        pairs = zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)
        return type(self)(*(own if own is not None else default for own, default in pairs))


UNLIMITED = Limits()


class Scope(msgspec.Struct, frozen=True):
    """Whose limits they are."""

    kind: ScopeKind
    name: str
    """The key's name, ``KEY/USER``, the configured model or pattern, or the provider."""
    limits: Limits


class Quota(msgspec.Struct, frozen=True):
    """One limit of one scope."""

    kind: ScopeKind
    name: str
    resource: Resource
    capacity: int
    """The most that can be there: requests, tokens, running requests or nano-dollars."""
    per_minute: int = 0
    """How much comes back in a minute, continuously; 0 for what comes back otherwise."""

    @property
    def owner(self) -> str:
        """Whose it is, in words."""
        return f"{self.kind} {self.name!r}"


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request takes beside its place and its count of one."""

    tokens: int = 0
    nano_usd: int = 0
    set_by: str = field(default="max_tokens", compare=False)
    """The field of the request by which its caller can have it take less."""

    def of(self, quota: Quota) -> int:
        """Return how much of a quota that is."""
        match quota.resource:
            case "tokens":
                return self.tokens
            case "usd":
                return self.nano_usd
            case "requests" | "concurrency":
                return 1


class Balance(msgspec.Struct, frozen=True):
    """What is left of a quota at some moment."""

    quota: Quota
    remaining: int
    """At least 0, also where settling has taken more than there was."""
    reset_ms: int
    """Until all of it is there, if nothing else takes of it; 0 for concurrency, of which nobody can know."""


class Reservation(msgspec.Struct, frozen=True):
    """What a request was let in with; to be settled exactly once, whatever becomes of it."""

    id: str
    quotas: tuple[Quota, ...]
    demand: Demand
    balances: tuple[Balance, ...]
    """What was left right after it."""
    local: bool
    """Whether it stands in this process's memory, and not in the shared store."""


@dataclass(slots=True)
class Standing:
    """Where a caller stands after admission has looked at its request; filled in by admission, read for headers."""

    balances: tuple[Balance, ...] = ()


@lru_cache(maxsize=4_096)
def quotas_of(scope: Scope) -> tuple[Quota, ...]:
    """List a scope's quotas, in a fixed order."""
    limits = scope.limits
    found = []
    if limits.requests_per_minute is not None:
        burst = limits.request_burst or limits.requests_per_minute
        found.append(Quota(scope.kind, scope.name, "requests", burst, limits.requests_per_minute))
    if limits.tokens_per_minute is not None:
        burst = limits.token_burst or limits.tokens_per_minute
        found.append(Quota(scope.kind, scope.name, "tokens", burst, limits.tokens_per_minute))
    if limits.concurrency is not None:
        found.append(Quota(scope.kind, scope.name, "concurrency", limits.concurrency))
    if limits.usd_per_day is not None:
        found.append(Quota(scope.kind, scope.name, "usd", int(limits.usd_per_day * NANO)))
    return tuple(found)
