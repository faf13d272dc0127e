"""Tickets: in the memory of one process, or in Redis for a fleet."""

import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis

from service.domain.clock import Clock
from service.domain.principal import Principal
from service.domain.ticket import Ticket, digest_of
from service.errors import Overloaded, Unauthenticated
from service.storage.redis import redis_errors

RANDOM_BYTES = 24
CAPACITY = 100_000
"""Tickets that one process keeps at most, about 50 MB of them; at 30 s each that is 3,300 a second."""
KEY_PREFIX = "llm-api:ticket:"

_REFUSAL = "the ticket is not valid: it was used, is too old, or was never issued; get another from POST /tickets"


@dataclass(frozen=True, slots=True)
class _Kept:
    principal: Principal
    expires_at: float


class MemoryTicketStore:
    """Tickets of one process; they are lost when it ends."""

    def __init__(self, *, ttl_s: float, clock: Clock, capacity: int = CAPACITY) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._capacity = capacity
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()

    async def issue(self, principal: Principal) -> Ticket:
        """See ``TicketStore`` in ``service.auth.base``."""
        now = self._clock.monotonic()
        # All live equally long, so the oldest stand first.
        while self._kept and next(iter(self._kept.values())).expires_at <= now:
            self._kept.popitem(last=False)
        if len(self._kept) >= self._capacity:
            # Making room would take somebody else's ticket away.
            oldest = next(iter(self._kept.values()))
            raise Overloaded("too many tickets are out", retry_after_s=oldest.expires_at - now)
        value = secrets.token_urlsafe(RANDOM_BYTES)
        self._kept[digest_of(value)] = _Kept(principal, now + self._ttl_s)
        return Ticket(value, self._ttl_s)

    async def redeem(self, value: str) -> Principal:
        """See ``TicketStore`` in ``service.auth.base``."""
        kept = self._kept.pop(digest_of(value), None)
        if kept is None or kept.expires_at <= self._clock.monotonic():
            raise Unauthenticated(_REFUSAL)
        return kept.principal


class RedisTicketStore:
    """Tickets of a fleet. Redis holds hashes of them: who reads it can use none. One round trip for each call."""

    def __init__(self, redis: Redis, *, ttl_s: float) -> None:
        self._redis = redis
        self._ttl_s = ttl_s

    async def issue(self, principal: Principal) -> Ticket:
        """See ``TicketStore`` in ``service.auth.base``."""
        value = secrets.token_urlsafe(RANDOM_BYTES)
        with redis_errors():
            await self._redis.set(_redis_key(value), _written(principal), px=max(1, round(self._ttl_s * 1_000)))
        return Ticket(value, self._ttl_s)

    async def redeem(self, value: str) -> Principal:
        """See ``TicketStore`` in ``service.auth.base``."""
        with redis_errors():
            kept = await self._redis.getdel(_redis_key(value))
        if kept is None:
            raise Unauthenticated(_REFUSAL)
        return _read(orjson.loads(kept))


def _redis_key(value: str) -> str:
    return f"{KEY_PREFIX}{digest_of(value).hex()}"


def _written(principal: Principal) -> bytes:
    return orjson.dumps(
        {
            "name": principal.name,
            "models": principal.models,
            "priority": principal.priority,
            "weight": principal.weight,
            "key_digest": None if principal.key_digest is None else principal.key_digest.hex(),
        }
    )


def _read(fields: dict[str, Any]) -> Principal:
    digest = fields.get("key_digest")  # a ticket of an older version, in a rolling update, has none
    return Principal(
        fields["name"],
        models=tuple(fields["models"]),
        priority=fields["priority"],
        weight=fields.get("weight", 1.0),
        key_digest=None if digest is None else bytes.fromhex(digest),
    )
