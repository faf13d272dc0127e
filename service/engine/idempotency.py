"""Doing once what a client may ask for several times: it sends the same idempotency key, and never pays twice."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeVar

from service.domain.idempotency import IdempotencyKey
from service.domain.principal import RequestContext
from service.engine.drain import Drain, Stage
from service.errors import StoreUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

LEASE_S = 15.0
"""A key whose process was not heard for so long is free again."""
RENEWALS_PER_LEASE = 3
KEPT_S = 86_400.0
"""How long an answer is replayed."""
KEEP_WAIT_S = 1.0
"""How long is waited for an answer to be kept; it is kept later then."""
KEEP_AGAIN_S = (0.5, 1.0, 2.0, LEASE_S / RENEWALS_PER_LEASE)
"""The waits between attempts to keep an answer; the last of them is repeated."""
LET_GO_S = (0.0, 0.5, 1.0, 2.0, 4.0)
"""The waits before attempts to let go of a key of which nobody knows whether it was taken."""


class IdempotencyStore(Protocol):
    """Keeps what was answered. Every method raises ``StoreUnavailable`` where it does not answer.

    What a holder says counts where the store forgot the key too, and nobody else has it.
    """

    async def begin(
        self, key: IdempotencyKey, token: str, lease_s: float, *, instead_of: bytes | None = None
    ) -> bytes | None:
        """Take the key for whoever has ``token``, and return None; or return what was answered to it.

        The answer ``instead_of`` counts for nothing. Raises ``IdempotencyConflict`` while somebody else has the key,
        ``IdempotencyMismatch`` where the body was another.
        """
        ...

    async def renew(self, key: IdempotencyKey, token: str, lease_s: float, *, answer: bytes | None = None) -> bool:
        """Go on having it, with an answer that holds as long; False where it is somebody else's."""
        ...

    async def keep(self, key: IdempotencyKey, token: str, answer: bytes, kept_s: float) -> bool:
        """Keep the answer; False where the key is somebody else's."""
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
        self._running: set[asyncio.Task[Any]] = set()
        """Kept, since the loop alone would let them be collected."""

    async def answer(
        self, key: IdempotencyKey, context: RequestContext, work: Callable[[], Awaitable[bytes]]
    ) -> Answered:
        """Return what ``work`` gives, or gave before; a failure is raised, and leaves the key free."""
        claim = await self.claim(key, context)
        if claim.answer is not None:
            return Answered(claim.answer, replayed=True)
        return await asyncio.shield(self._track(asyncio.create_task(self._work(claim, work))))

    async def claim(self, key: IdempotencyKey, context: RequestContext, *, instead_of: bytes | None = None) -> "Claim":
        """Take a key. Raises what :meth:`IdempotencyStore.begin` does."""
        claim = Claim(self._store, key, self._in_background, context.log_fields)
        try:
            await claim.begin(instead_of)
        except (StoreUnavailable, asyncio.CancelledError):
            self._track(asyncio.create_task(claim.let_go()))
            raise
        return claim

    async def _work(self, claim: "Claim", work: Callable[[], Awaitable[bytes]]) -> Answered:
        with self._drain.work():
            await claim.hold()
            task = asyncio.ensure_future(work())
            try:
                with self._drain.told(Stage.CUTTING, task.cancel):
                    answer = await task
            except asyncio.CancelledError:
                await claim.forget()
                if self._drain.stage >= Stage.CUTTING:
                    raise self._drain.error() from None
                raise
            except Exception:
                await claim.forget()
                raise
            await asyncio.wait((claim.keep(answer),), timeout=KEEP_WAIT_S)
        return Answered(answer, replayed=False)

    def _in_background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Do what nobody waits for but the process's stop, until that cuts it short."""
        return self._track(asyncio.create_task(self._until_cut(work)))

    def _track(self, task: "asyncio.Task[T]") -> "asyncio.Task[T]":
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _until_cut(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        with self._drain.work(), self._drain.told(Stage.CUTTING, task.cancel), suppress(asyncio.CancelledError):
            await task


class Claim:
    """A key that is this process's, or was answered."""

    def __init__(
        self,
        store: IdempotencyStore,
        key: IdempotencyKey,
        in_background: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
        log_fields: Mapping[str, str],
    ) -> None:
        self.answer: bytes | None = None
        """Given where the key's request was answered before; then there is nothing to do."""
        self._store = store
        self._key = key
        self._token = secrets.token_hex(8)
        self._in_background = in_background
        self._log_fields = log_fields
        self._renewing: asyncio.Task[None] | None = None

    async def begin(self, instead_of: bytes | None) -> None:
        """Take the key; see :meth:`IdempotencyStore.begin`."""
        self.answer = await self._store.begin(self._key, self._token, LEASE_S, instead_of=instead_of)

    async def hold(self, answer: bytes | None = None) -> None:
        """Go on having the key, until it is forgotten or kept; ``answer`` holds as long, and is there on return."""
        if answer is not None:
            await self._renew(answer)
        self._renewing = asyncio.create_task(self._renewed(answer))

    def keep(self, answer: bytes) -> asyncio.Task[None]:
        """Keep the answer; where the store is away, as soon as it is back. The task raises nothing."""
        return self._in_background(self._kept(answer))

    async def forget(self) -> None:
        """Let the key go. Where the store is away its lease ends."""
        await self._stop_renewing()
        with suppress(StoreUnavailable):
            await self._store.forget(self._key, self._token)

    async def let_go(self) -> None:
        """Let go of a key that may have been taken, or may be yet: what was sent can arrive late."""
        for wait_s in LET_GO_S:
            await asyncio.sleep(wait_s)
            await self.forget()

    async def _kept(self, answer: bytes) -> None:
        attempt = 0
        try:
            while (kept := await self._tried(answer)) is None:
                await asyncio.sleep(KEEP_AGAIN_S[min(attempt, len(KEEP_AGAIN_S) - 1)])
                attempt += 1
        finally:
            await self._stop_renewing()
        if not kept:
            logger.warning(
                "an answer was not kept: its idempotency key is somebody else's by now", extra=self._log_fields
            )

    async def _tried(self, answer: bytes) -> bool | None:
        try:
            return await self._store.keep(self._key, self._token, answer, KEPT_S)
        except StoreUnavailable as error:
            fields = {**self._log_fields, "error": str(error)}
            logger.warning("an answer is not kept yet for its idempotency key", extra=fields)
            return None

    async def _renewed(self, answer: bytes | None) -> None:
        while True:
            await asyncio.sleep(LEASE_S / RENEWALS_PER_LEASE)
            await self._renew(answer)

    async def _renew(self, answer: bytes | None) -> None:
        with suppress(StoreUnavailable):
            await self._store.renew(self._key, self._token, LEASE_S, answer=answer)

    async def _stop_renewing(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait((self._renewing,))
