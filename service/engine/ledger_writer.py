"""How a process's entries reach the ledger: in one ordered line, each batch until the store has it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from service.domain.ledger import Batch, Entry
from service.domain.usage_record import UsageRecord
from service.errors import InternalError, StoreUnavailable
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

BATCH_MAX = 256
"""Entries that are sent at once."""
RETRY_S = 0.25
RETRY_MAX_S = 2.0
BEAT_S = 3.0
"""Without entries, the store is told so often that this process lives."""
UNWRITABLE = (TypeError, ValueError, OverflowError)
"""What is raised for a record that has no form in which it could be kept, such as for half of a character."""


class LedgerStore(Protocol):
    """Where the ledger is kept. All of it raises ``StoreUnavailable``; for a record without a form, ``UNWRITABLE``."""

    async def apply(self, batch: Batch) -> bool:
        """Write what has not been of a batch; False if the store had known its owner, and has forgotten it."""
        ...

    async def beat(self, owner: str) -> None:
        """Take note that a process lives."""
        ...

    async def abandoned(self) -> Sequence[UsageRecord]:
        """Return the drafts of processes that are heard of no more; others may look at them too."""
        ...

    async def adopt(self, record: UsageRecord) -> bool:
        """Write the record of an abandoned draft, in exchange for it; False if somebody else did."""
        ...

    def read(self, since: float, until: float) -> AsyncIterator[UsageRecord]:
        """Yield the records of what ended in this time, in seconds since the epoch, oldest first."""
        ...

    async def complete_since(self, until: float) -> float:
        """Tell from when on no record that ended before ``until`` is missing, in seconds since the epoch."""
        ...


class Journal(Protocol):
    """Where batches are kept while the store is away."""

    def append(self, batch: Batch) -> None:
        """Keep a batch so that it outlives this process; raise one of ``UNWRITABLE`` where it has no form."""
        ...

    def first(self, most: int) -> Batch | None:
        """Return the oldest entries that are kept, so many at once, or as many as came as one batch."""
        ...

    def drop_first(self) -> None:
        """Forget what was returned last."""
        ...

    def left_behind(self) -> "Journal | None":
        """Take over what a process left that is gone, if there is any."""
        ...


class LedgerWriter:
    """Writes entries in the order in which they came."""

    def __init__(
        self,
        *,
        store: LedgerStore,
        journal: Journal,
        metrics: Metrics,
        owner: str,
    ) -> None:
        """``owner`` is a name that no other process has, nor ever had."""
        self._store = store
        self._journal = journal
        self._metrics = metrics
        self._owner = owner
        self._number = 1
        """That of the next entry."""
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._is_away = False
        self._is_ending = False
        self._is_over = False
        """Whether the task that writes has ended."""
        self._open: dict[str, UsageRecord] = {}
        """Drafts that the store has, or will have."""

    def put(self, entry: Entry) -> asyncio.Future[None]:
        """Write an entry; the future ends when it is kept, here or in the store."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, future))
        if self._is_over:
            self._keep_rest()
        else:
            self._wake.set()
        return future

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write within the block; all that came is kept somewhere when it is left."""
        writing = asyncio.create_task(self._write(), name="write the ledger")
        others = (
            asyncio.create_task(self._send_later(), name="send on what was kept of the ledger"),
            asyncio.create_task(self._inherit(), name="take over what others left of the ledger"),
        )
        try:
            yield
        finally:
            self._is_ending = True
            self._wake.set()
            await asyncio.gather(writing, return_exceptions=True)
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            if self._is_away:
                await self._guarded(self._catch_up)

    async def _write(self) -> None:
        try:
            while not self._is_ending or self._waiting:
                with suppress(TimeoutError):
                    async with asyncio.timeout(BEAT_S):
                        await self._wake.wait()
                self._wake.clear()
                if not (self._waiting or self._is_away or self._is_ending):
                    await self._guarded(self._beat)
                while self._waiting:
                    await self._guarded(self._write_some)
        finally:
            # A server that loses its patience cancels everything at once, and those who wait for us are there still.
            self._is_over = True
            self._keep_rest()

    async def _send_later(self) -> None:
        """Look for the store while it is away; what comes meanwhile does not wait for that."""
        while True:
            await asyncio.sleep(RETRY_S)
            if self._is_away:
                await self._guarded(self._catch_up)

    async def _guarded(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except Exception:  # the outer edge of the task: a defect must not stop all that comes
            logger.exception("the ledger failed by a defect")
            self._metrics.unhandled_errors.labels("ledger").inc()
            await asyncio.sleep(RETRY_S)

    async def _beat(self) -> None:
        try:
            await self._store.beat(self._owner)
        except StoreUnavailable as error:
            self._away(error)

    async def _write_some(self) -> None:
        batch, futures = self._next_batch()
        try:
            if self._is_away:
                self._keep(batch, futures)
            else:
                await self._apply(batch)
        except StoreUnavailable as error:
            # It may have been carried out: sent again under the same number, it is not made twice.
            self._keep(batch, futures)
            self._away(error)
        except BaseException as error:
            self._keep(batch, futures)
            self._away(error)
            if not isinstance(error, UNWRITABLE):
                raise
        finally:
            _end(futures)

    def _keep(self, batch: Batch, futures: Sequence[asyncio.Future[None]]) -> None:
        """Keep a batch here, without what cannot be written."""
        try:
            self._journal.append(batch)
        except UNWRITABLE:
            number = batch.number
            for entry, future in zip(batch.entries, futures, strict=True):
                try:
                    self._journal.append(Batch(batch.owner, number, [entry]))
                    number += 1
                except UNWRITABLE as error:
                    self._refuse(entry, future, error)
            self._number = number  # without a gap, which would say that something was lost

    def _refuse(self, entry: Entry, future: asyncio.Future[None], error: Exception) -> None:
        extra = {"id": entry.record.id, "kind": entry.kind, "reason": str(error)}
        logger.error("an entry of the ledger cannot be written", extra=extra)
        self._metrics.unhandled_errors.labels("ledger").inc()
        if entry.kind == "open":
            self._open.pop(entry.record.id, None)
        if not future.done():
            future.set_exception(InternalError("no account of this generation can be kept"))
            future.exception()  # whoever does not wait for it has been told by the log

    def _next_batch(self) -> tuple[Batch, list[asyncio.Future[None]]]:
        taken, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
        for entry, _ in taken:
            self._note(entry)
        batch = Batch(self._owner, self._number, [entry for entry, _ in taken])
        self._number += len(taken)
        return batch, [future for _, future in taken]

    def _keep_rest(self) -> None:
        """Keep here what still waits, at once."""
        while self._waiting:
            batch, futures = self._next_batch()
            self._keep(batch, futures)
            self._is_away = True
            _end(futures)

    def _note(self, entry: Entry) -> None:
        record = entry.record
        if entry.kind in ("open", "amend"):
            self._open[record.id] = record
        elif entry.kind == "close":
            self._open.pop(record.id, None)

    async def _apply(self, batch: Batch) -> None:
        if not await self._store.apply(batch):
            logger.error("the shared store has lost the ledger's drafts", extra={"drafts": len(self._open)})
            self._open_again()

    def _open_again(self) -> None:
        """Write the drafts of what runs anew, before all that waits, which may close them."""
        future = asyncio.get_running_loop().create_future
        self._waiting[:0] = [(Entry("amend", draft), future()) for draft in self._open.values()]
        if self._is_over:
            self._keep_rest()
        self._wake.set()

    def _away(self, error: BaseException) -> None:
        if not self._is_away:
            logger.warning("the ledger goes to a file: the shared store did not take it", extra={"error": str(error)})
        self._is_away = True
        self._metrics.ledger_local.set(1)

    async def _catch_up(self) -> None:
        """Send what was kept here; once nothing is left, entries go to the store again."""
        try:
            # Where nothing was kept, that there is nothing to send does not tell that the store is back.
            await self._store.beat(self._owner)
            while (batch := self._journal.first(BATCH_MAX)) is not None:
                await self._apply(batch)
                self._journal.drop_first()
        except StoreUnavailable:
            return
        logger.info("the ledger goes to the shared store again")
        self._is_away = False
        self._metrics.ledger_local.set(0)

    async def _inherit(self) -> None:
        while True:
            await self._guarded(self._take_over)
            await asyncio.sleep(RETRY_MAX_S)

    async def _take_over(self) -> None:
        if self._is_away:
            return
        while (left := self._journal.left_behind()) is not None:
            while (batch := left.first(BATCH_MAX)) is not None:
                try:
                    await self._store.apply(batch)
                except StoreUnavailable:
                    return
                left.drop_first()


def _end(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
