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
"""Keys that one process keeps at most."""
CAPACITY_BYTES = 64 * 1_048_576
"""Of answers that one process keeps at most."""
_TAKEN, _OTHER_BODY, _ANSWERED = 1, 2, 3


@dataclass(slots=True)
class _Kept:
    fingerprint: str
    token: str
    expires_at: float
    answer: bytes | None = None


class MemoryIdempotencyStore:
    """Obeys :class:`service.engine.idempotency.IdempotencyStore` for one process.

    What there is no room for goes in this order: what is over, the oldest answers, the oldest keys in flight.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: OrderedDict[str, _Kept] = OrderedDict()
        """Keys in flight; the oldest first."""
        self._answered: OrderedDict[str, _Kept] = OrderedDict()
        self._answered_bytes = 0

    async def begin(
        self, key: IdempotencyKey, token: str, lease_s: float, *, instead_of: bytes | None = None
    ) -> bytes | None:
        """See :class:`service.engine.idempotency.IdempotencyStore`."""
        kept = self._find(key)
        if kept is not None and kept.fingerprint != key.fingerprint:
            raise other_body()
        if kept is None or (kept.answer is not None and kept.answer == instead_of):
            self._drop(key.digest)
            self._held[key.digest] = _Kept(key.fingerprint, token, self._clock.monotonic() + lease_s)
            self._make_room()
            return None
        if kept.answer is None:
            raise in_flight()
        return kept.answer

    async def renew(self, key: IdempotencyKey, token: str, lease_s: float, *, answer: bytes | None = None) -> bool:
        """See :class:`service.engine.idempotency.IdempotencyStore`."""
        expires_at = self._clock.monotonic() + lease_s
        kept = self._find(key)
        if kept is None:
            self._held[key.digest] = _Kept(key.fingerprint, token, expires_at, answer)
            self._make_room()
            return True
        if kept.token != token:
            return False
        kept.expires_at = max(kept.expires_at, expires_at)
        kept.answer = kept.answer if answer is None else answer
        return True

    async def keep(self, key: IdempotencyKey, token: str, answer: bytes, kept_s: float) -> bool:
        """See :class:`service.engine.idempotency.IdempotencyStore`."""
        kept = self._find(key)
        if kept is not None and kept.token != token:
            return False
        self._drop(key.digest)
        self._answered[key.digest] = _Kept(key.fingerprint, token, self._clock.monotonic() + kept_s, answer)
        self._answered_bytes += len(answer)
        self._make_room()
        return True

    async def forget(self, key: IdempotencyKey, token: str) -> None:
        """See :class:`service.engine.idempotency.IdempotencyStore`."""
        kept = self._find(key)
        if kept is not None and kept.token == token:
            self._drop(key.digest)

    def _find(self, key: IdempotencyKey) -> _Kept | None:
        kept = self._held.get(key.digest) or self._answered.get(key.digest)
        if kept is not None and kept.expires_at <= self._clock.monotonic():
            self._drop(key.digest)
            return None
        return kept

    def _drop(self, digest: str) -> None:
        self._held.pop(digest, None)
        answered = self._answered.pop(digest, None)
        if answered is not None:
            self._answered_bytes -= len(answered.answer or b"")

    def _make_room(self) -> None:
        now = self._clock.monotonic()
        # All answers are kept equally long, so the oldest are over first.
        while self._answered:
            digest, oldest = next(iter(self._answered.items()))
            if oldest.expires_at > now and not self._is_full():
                return
            self._drop(digest)
        if self._is_full():
            for digest in [digest for digest, kept in self._held.items() if kept.expires_at <= now]:
                self._drop(digest)
        if self._is_full():
            self._held.popitem(last=False)

    def _is_full(self) -> bool:
        return len(self._held) + len(self._answered) > CAPACITY or self._answered_bytes > CAPACITY_BYTES


class RedisIdempotencyStore:
    """Obeys :class:`service.engine.idempotency.IdempotencyStore` for a fleet. One round trip for each call."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._script: AsyncScript | None = None

    async def begin(
        self, key: IdempotencyKey, token: str, lease_s: float, *, instead_of: bytes | None = None
    ) -> bytes | None:
        """See :class:`service.engine.idempotency.IdempotencyStore`."""
        state, *answer = await self._run("begin", key, token, lease_s, instead_of)
        if state == _TAKEN:
            raise in_flight()
        if state == _OTHER_BODY:
            raise other_body()
        found: bytes | None = answer[0] if state == _ANSWERED else None
        return found

    async def renew(self, key: IdempotencyKey, token: str, lease_s: float, *, answer: bytes | None = None) -> bool:
        """See :class:`service.engine.idempotency.IdempotencyStore`."""
        return bool(await self._run("renew", key, token, lease_s, answer))

    async def keep(self, key: IdempotencyKey, token: str, answer: bytes, kept_s: float) -> bool:
        """See :class:`service.engine.idempotency.IdempotencyStore`."""
        return bool(await self._run("keep", key, token, kept_s, answer))

    async def forget(self, key: IdempotencyKey, token: str) -> None:
        """See :class:`service.engine.idempotency.IdempotencyStore`."""
        await self._run("forget", key, token)

    async def _run(
        self, command: str, key: IdempotencyKey, token: str, for_s: float = 0.0, answer: bytes | None = None
    ) -> Any:
        if self._script is None:
            self._script = self._redis.register_script(SCRIPT)
        arguments: list[str | bytes | int] = [command, key.fingerprint, token, _ms(for_s)]
        if answer is not None:
            arguments.append(answer)
        with redis_errors():
            return await self._script(keys=[KEY_PREFIX + key.digest], args=arguments)


def _ms(seconds: float) -> int:
    return round(seconds * 1_000)
