"""Reports: a few at once, each caller's own records, and others have their turn meanwhile."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from service.domain.usage_record import UsageRecord
from service.engine.bounded_usage import TURN, BoundedUsage
from service.engine.usage_report import complete_since
from service.errors import Overloaded
from tests.support.usage_records import record


class Source:
    """Gives its records at once, or waits."""

    def __init__(self, *records: UsageRecord) -> None:
        self._records = records
        self.go_on = asyncio.Event()
        self.reading = 0
        self.most = 0

    async def read(self, since: float, until: float) -> AsyncIterator[UsageRecord]:
        del since, until
        self.reading += 1
        self.most = max(self.most, self.reading)
        try:
            await self.go_on.wait()
            for one in self._records:
                yield one
        finally:
            self.reading -= 1

    async def complete_since(self, until: float) -> float:
        del until
        return 5.0


class Filtering(Source):
    async def read_of(self, principal: str, since: float, until: float) -> AsyncIterator[UsageRecord]:
        del since, until
        yield record(principal=f"only {principal}")


async def told(usage: BoundedUsage, principal: str | None = None) -> list[str]:
    return [one.principal async for one in usage.read(0, 1, principal)]


async def settled() -> None:
    """Let every task come to where it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_few_are_made_at_once_and_the_others_after_them() -> None:
    source = Source(record())
    usage = BoundedUsage(source, at_once=2)
    reports = [asyncio.create_task(told(usage)) for _ in range(6)]
    await settled()
    assert source.reading == 2
    source.go_on.set()
    assert await asyncio.gather(*reports) == 6 * [["alice"]]
    assert source.most == 2


async def test_one_whose_turn_does_not_come_is_refused() -> None:
    source = Source(record())
    usage = BoundedUsage(source, at_once=1, wait_s=0.01)
    first = asyncio.create_task(told(usage))
    await settled()
    with pytest.raises(Overloaded, match="ask again") as refused:
        await told(usage)
    assert refused.value.retry_after_s == 0.01
    first.cancel()  # a caller that leaves makes room
    await asyncio.gather(first, return_exceptions=True)
    source.go_on.set()
    assert await told(usage) == ["alice"]


async def test_a_caller_is_told_its_own_by_the_source_or_for_it() -> None:
    source = Source(record(), record(principal="bob"))
    source.go_on.set()
    assert await told(BoundedUsage(source), "bob") == ["bob"]
    assert await told(BoundedUsage(Filtering()), "bob") == ["only bob"]


@pytest.mark.parametrize(("since", "until", "whole"), [(0, 9, 5), (6, 9, 6), (0, 3, 3)])
async def test_from_when_on_an_answer_is_complete_is_within_the_time_asked_for(
    since: float, until: float, whole: float
) -> None:
    assert await complete_since(BoundedUsage(Source()), since, until) == whole


async def test_others_have_their_turn_while_a_report_is_made() -> None:
    source = Source(*[record()] * (10 * TURN))
    source.go_on.set()
    report = asyncio.create_task(told(BoundedUsage(source)))
    turns = 0
    while not report.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 10
