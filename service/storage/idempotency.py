"""What was answered to idempotency keys: in the memory of one process, or in Redis for a fleet."""

from collections import OrderedDict
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from service.domain.clock import Clock
from service.domain.idempotency import IdempotencyKey, in_flight, other_body
from service.storage.redis import redis_errors

SCRIPT = files("service.storage").joinpath("idempotency.lua").read_text("utf-8")
KEY_PREFIX = "llm-api:idempotency:"
CAPACITY = 10_000
"""Keys that one process keeps at most; the oldest go first."""
_TAKEN, _OTHER_BODY, _ANSWERED = 1, 2, 3


@dataclass(slots=True)
class _Kept:
    fingerprint: str
    token: str
    expires_at: float
    answer: bytes | None = None


class MemoryIdempotencyStore:
    """Obeys :class:`service.engine.idempotency.IdempotencyStore` for one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    async def begin(self, key: IdempotencyKey, token: str, lease_s: float) -> bytes | None:
        """See :class:`service.engine.idempotency.IdempotencyStore`."""
        now = self._clock.monotonic()
        kept = self._kept.get(key.digest)
        if kept is None or kept.expires_at <= now:
            self._kept[key.digest] = _Kept(key.fingerprint, token, now + lease_s)
            self._kept.move_to_end(key.digest)
            if len(self._kept) > CAPACITY:
                self._kept.popitem(last=False)
            return None
        if kept.fingerprint != key.fingerprint:
            raise other_body()
        if kept.answer is None:
            raise in_flight()
        return kept.answer

    async def renew(self, key: IdempotencyKey, token: str, lease_s: float) -> None:
        """See :class:`service.engine.idempotency.IdempotencyStore`."""
        if (kept := self._theirs(key, token)) is not None:
            kept.expires_at = self._clock.monotonic() + lease_s

    async def keep(self, key: IdempotencyKey, token: str, answer: bytes, kept_s: float) -> None:
        """See :class:`service.engine.idempotency.IdempotencyStore`."""
        if (kept := self._theirs(key, token)) is not None:
            kept.answer = answer
            kept.expires_at = self._clock.monotonic() + kept_s

    async def forget(self, key: IdempotencyKey, token: str) -> None:
        """See :class:`service.engine.idempotency.IdempotencyStore`."""
        if self._theirs(key, token) is not None:
            del self._kept[key.digest]

    def _theirs(self, key: IdempotencyKey, token: str) -> _Kept | None:
        kept = self._kept.get(key.digest)
        return kept if kept is not None and kept.token == token else None


class RedisIdempotencyStore:
    """Obeys :class:`service.engine.idempotency.IdempotencyStore` for a fleet. One round trip for each call."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._script: AsyncScript | None = None

    async def begin(self, key: IdempotencyKey, token: str, lease_s: float) -> bytes | None:
        """See :class:`service.engine.idempotency.IdempotencyStore`."""
        state, *answer = await self._run(key, "begin", key.fingerprint, token, _ms(lease_s))
        if state == _TAKEN:
            raise in_flight()
        if state == _OTHER_BODY:
            raise other_body()
        found: bytes | None = answer[0] if state == _ANSWERED else None
        return found

    async def renew(self, key: IdempotencyKey, token: str, lease_s: float) -> None:
        """See :class:`service.engine.idempotency.IdempotencyStore`."""
        await self._run(key, "renew", token, _ms(lease_s))

    async def keep(self, key: IdempotencyKey, token: str, answer: bytes, kept_s: float) -> None:
        """See :class:`service.engine.idempotency.IdempotencyStore`."""
        await self._run(key, "keep", token, answer, _ms(kept_s))

    async def forget(self, key: IdempotencyKey, token: str) -> None:
        """See :class:`service.engine.idempotency.IdempotencyStore`."""
        await self._run(key, "forget", token)

    async def _run(self, key: IdempotencyKey, *arguments: str | bytes | int) -> Any:
        if self._script is None:
            self._script = self._redis.register_script(SCRIPT)
        with redis_errors():
            return await self._script(keys=[KEY_PREFIX + key.digest], args=list(arguments))


def _ms(seconds: float) -> int:
    return round(seconds * 1_000)
