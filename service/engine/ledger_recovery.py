"""Writes the records of generations whose process died."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from service.domain.clock import Clock
from service.domain.usage_record import UsageRecord
from service.engine.invoices import Invoices
from service.engine.ledger_writer import LedgerStore
from service.errors import StoreUnavailable
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
INVOICE_S = 60.0
"""How long an invoice is asked about what a dead process did."""
INVOICE_EVERY_S = 1.0
AT_ONCE = 50
"""Drafts that are looked into at a time."""


class LedgerRecovery:
    """Looks for drafts that nobody will finish, in every process: whoever finds one first, writes its record."""

    def __init__(
        self, *, store: LedgerStore, invoices: Invoices, metrics: Metrics, clock: Clock, every_s: float = LOOK_EVERY_S
    ) -> None:
        self._store = store
        self._invoices = invoices
        self._metrics = metrics
        self._clock = clock
        self._every_s = every_s

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look within the block."""
        task = asyncio.create_task(self._repeat(), name="recover the ledger")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def look(self) -> None:
        """Write what is to be written now. Raises ``StoreUnavailable``."""
        drafts = await self._store.abandoned()
        for start in range(0, len(drafts), AT_ONCE):
            await asyncio.gather(*map(self._recover, drafts[start : start + AT_ONCE]))

    async def _recover(self, draft: UsageRecord) -> None:
        record = await self._invoices.crashed(
            draft, ended_at=self._clock.wall(), within_s=INVOICE_S, every_s=INVOICE_EVERY_S
        )
        if await self._store.adopt(record):
            self._metrics.ledger_adopted.inc()
            logger.warning(
                "a generation ended with its process", extra={"request_id": record.request_id, "id": record.id}
            )

    async def _repeat(self) -> None:
        while True:
            try:
                with suppress(StoreUnavailable):
                    await self.look()
            except Exception:  # the outer edge of the task: a defect must not stop all that comes
                logger.exception("the ledger's recovery failed by a defect")
                self._metrics.unhandled_errors.labels("ledger").inc()
            await asyncio.sleep(self._every_s)
