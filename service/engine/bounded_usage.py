"""Reading records for reports without taking the process away from those whom it serves."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Protocol, runtime_checkable

from service.domain.usage_record import UsageRecord
from service.engine.usage_report import UsageSource
from service.errors import Overloaded

AT_ONCE = 2
"""Reports that one process makes at once; each has a connection of its own."""
WAIT_S = 5.0
"""For how long one waits for its turn."""
TURN = 100
"""Records after which others have their turn."""


@runtime_checkable
class FilteringSource(Protocol):
    """A source that itself leaves out what is somebody else's."""

    def read_of(self, principal: str, since: float, until: float) -> AsyncIterator[UsageRecord]:
        """Yield this principal's records of what ended in this time."""
        ...


class BoundedUsage:
    """A few readers at a time; the others wait for a while, and are refused then."""

    def __init__(self, source: UsageSource, *, at_once: int = AT_ONCE, wait_s: float = WAIT_S) -> None:
        self._source = source
        self._places = asyncio.Semaphore(at_once)
        self._wait_s = wait_s

    async def read(self, since: float, until: float, principal: str | None = None) -> AsyncIterator[UsageRecord]:
        """See :class:`service.engine.usage_report.UsageSource`. Raises ``Overloaded`` where no turn comes."""
        async with self._turn(), aclosing(self._records(since, until, principal)) as records:
            number = 0
            async for record in records:
                yield record
                number += 1
                if number % TURN == 0:
                    await asyncio.sleep(0)

    async def complete_since(self, until: float) -> float:
        """See :class:`service.engine.usage_report.UsageSource`."""
        return await self._source.complete_since(until)

    async def _records(self, since: float, until: float, principal: str | None) -> AsyncGenerator[UsageRecord]:
        source = self._source
        if principal is not None and isinstance(source, FilteringSource):
            async for record in source.read_of(principal, since, until):
                yield record
            return
        async for record in source.read(since, until):
            if principal is None or record.principal == principal:
                yield record

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._wait_s):
                await self._places.acquire()
        except TimeoutError:
            raise Overloaded(
                "other reports of usage are being made: ask again, or for less time", retry_after_s=self._wait_s
            ) from None
        try:
            yield
        finally:
            self._places.release()
