"""Takes records from the ledger to where they are kept for good."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from service.domain.usage_page import FORCED_OUT, PAGE, Taken, UsageLog
from service.errors import StoreUnavailable
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

EVERY_S = 1.0
AWAY_S = 5.0


class Sink(Protocol):
    """Takes records in their order, from where it stopped."""

    async def drain(self, log: UsageLog) -> Taken:
        """Take the page behind what it has. Raises ``StoreUnavailable``."""
        ...


class UsageDrain:
    """Drains the ledger to a sink, in every process; the sink lets one at a time do it."""

    def __init__(self, *, log: UsageLog, sink: Sink, name: str, metrics: Metrics, every_s: float = EVERY_S) -> None:
        self._log = log
        self._sink = sink
        self._name = name
        self._metrics = metrics
        metrics.usage_set_aside.labels(name)  # at 0, so that the first one is a growth
        self._every_s = every_s

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Drain within the block."""
        task = asyncio.create_task(self._repeat(), name=f"drain usage to {self._name}")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _repeat(self) -> None:
        is_away = False
        while True:
            pause_s = self._every_s
            taken = Taken()
            try:
                taken = await self._sink.drain(self._log)
                self._tell(taken)
                if taken.count == PAGE:
                    pause_s = 0.0
                is_away = False
            except StoreUnavailable as error:
                if not is_away:
                    logger.warning("usage is not drained to %s", self._name, extra={"error": str(error)})
                is_away = True
                pause_s = AWAY_S
            except Exception:  # the outer edge of the task: a defect must not stop all that comes
                is_away = True
                logger.exception("draining usage failed by a defect")
                self._metrics.unhandled_errors.labels("ledger").inc()
                pause_s = AWAY_S
            await self._report(taken.position)
            self._metrics.usage_drain_ok.labels(self._name).set(0 if is_away else 1)
            await asyncio.sleep(pause_s)

    async def _report(self, position: str | None) -> None:
        """Keep what is not taken from being trimmed, most of all while the sink is away."""
        with suppress(StoreUnavailable):
            await self._log.sink_at(self._name, position)

    def _tell(self, taken: Taken) -> None:
        for one in taken.set_aside:
            if one.reason == FORCED_OUT:  # what forced them out has counted them
                logger.error(
                    "records of usage were forced out by usage.records_max before %s had them",
                    self._name,
                    extra={"sink": self._name, "position": one.position},
                )
                continue
            logger.error(
                "a record of usage could not be kept with the others, and is set aside",
                extra={"sink": self._name, "position": one.position, "reason": one.reason},
            )
            self._metrics.usage_set_aside.labels(self._name).inc()
