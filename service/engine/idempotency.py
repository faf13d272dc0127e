"""Doing once what a client may ask for several times: it sends the same idempotency key, and never pays twice."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import NamedTuple, Protocol

from service.domain.idempotency import IdempotencyKey
from service.domain.principal import RequestContext
from service.engine.drain import Drain, Stage
from service.errors import StoreUnavailable

logger = logging.getLogger(__name__)

LEASE_S = 15.0
"""A key whose process was not heard for so long is free again."""
RENEWALS_PER_LEASE = 3
KEPT_S = 86_400.0
"""How long an answer is replayed."""


class IdempotencyStore(Protocol):
    """Keeps what was answered. Every method raises ``StoreUnavailable`` where it does not answer."""

    async def begin(self, key: IdempotencyKey, token: str, lease_s: float) -> bytes | None:
        """Take the key for whoever has ``token``, and return None; or return what was answered to it.

        Raises ``IdempotencyConflict`` while somebody else has it, ``IdempotencyMismatch`` where the body was another.
        """
        ...

    async def renew(self, key: IdempotencyKey, token: str, lease_s: float) -> None:
        """Go on having it."""
        ...

    async def keep(self, key: IdempotencyKey, token: str, answer: bytes, kept_s: float) -> None:
        """Keep the answer."""
        ...

    async def forget(self, key: IdempotencyKey, token: str) -> None:
        """Let the key go: nothing was answered."""
        ...


class Answered(NamedTuple):
    """What a key's request is answered with."""

    answer: bytes
    replayed: bool
    """Whether it was made for an earlier request."""


class Idempotency:
    """Answers each key once. What was begun goes on when its client leaves: that is who asks again."""

    def __init__(self, *, store: IdempotencyStore, drain: Drain) -> None:
        self._store = store
        self._drain = drain
        self._running: set[asyncio.Task[Answered]] = set()

    async def answer(
        self, key: IdempotencyKey, context: RequestContext, work: Callable[[], Awaitable[bytes]]
    ) -> Answered:
        """Return what ``work`` gives, or gave before; a failure is raised, and leaves the key free."""
        claim = await self.claim(key, context)
        if claim.answer is not None:
            return Answered(claim.answer, replayed=True)
        task = asyncio.create_task(self._work(claim, work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def claim(self, key: IdempotencyKey, context: RequestContext) -> "Claim":
        """Take a key. Raises what :meth:`IdempotencyStore.begin` does."""
        token = secrets.token_hex(8)
        answer = await self._store.begin(key, token, LEASE_S)
        return Claim(self._store, key, token, answer, context.log_fields)

    async def _work(self, claim: "Claim", work: Callable[[], Awaitable[bytes]]) -> Answered:
        renewing = asyncio.create_task(claim.renewed())
        task = asyncio.ensure_future(work())
        try:
            with self._drain.work(), self._drain.told(Stage.CUTTING, task.cancel):
                answer = await task
        except asyncio.CancelledError:
            await claim.forget()
            if self._drain.stage >= Stage.CUTTING:
                raise self._drain.error() from None
            raise
        except Exception:
            await claim.forget()
            raise
        finally:
            renewing.cancel()
        await claim.keep(answer)
        return Answered(answer, replayed=False)


class Claim:
    """A key that is somebody's, or was answered."""

    def __init__(
        self,
        store: IdempotencyStore,
        key: IdempotencyKey,
        token: str,
        answer: bytes | None,
        log_fields: Mapping[str, str],
    ) -> None:
        self.answer = answer
        """Given where the key's request was answered before; then there is nothing to do."""
        self._store = store
        self._key = key
        self._token = token
        self._log_fields = log_fields

    async def renewed(self) -> None:
        """Go on having the key, until cancelled."""
        while True:
            await asyncio.sleep(LEASE_S / RENEWALS_PER_LEASE)
            with suppress(StoreUnavailable):
                await self._store.renew(self._key, self._token, LEASE_S)

    async def keep(self, answer: bytes) -> None:
        """Keep the answer. Where the store is away the client has it all the same."""
        try:
            await self._store.keep(self._key, self._token, answer, KEPT_S)
        except StoreUnavailable as error:
            fields = {**self._log_fields, "error": str(error)}
            logger.warning("an answer was not kept for its idempotency key", extra=fields)

    async def forget(self) -> None:
        """Let the key go. Where the store is away its lease ends."""
        with suppress(StoreUnavailable):
            await self._store.forget(self._key, self._token)
