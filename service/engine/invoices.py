"""What providers themselves say that calls took, where they can be asked."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from msgspec.structs import replace

from service.accounting.prices import Price
from service.domain.generation import Usage
from service.domain.usage_record import CRASHED, CallRecord, UsageRecord
from service.errors import ServiceError

logger = logging.getLogger(__name__)

CALLS_MAX = 100
"""Calls of one generation that are looked for: ``resilience.attempts_max`` goes no further."""


class Invoice(Protocol):
    """The invoice of one provider."""

    async def took(self, call_ids: Sequence[str]) -> Mapping[str, tuple[str, Usage] | None]:
        """Tell the provider's model and the usage of those calls that it knows; None where one has not ended yet.

        Raises ``UpstreamError``.
        """
        ...


class Invoices:
    """The invoices of those providers that have one."""

    def __init__(self, invoices: Mapping[str, Invoice], price_of: Callable[[str], Price | None]) -> None:
        """``invoices`` are by provider; ``price_of`` gives the price of a configured model."""
        self._invoices = invoices
        self._price_of = price_of

    def may_know(self, record: UsageRecord) -> bool:
        """Whether an invoice may know better than the record what a call took."""
        return any(
            call.usage.estimated and not call.invoiced and call.provider in self._invoices for call in record.calls
        )

    async def settled(
        self, record: UsageRecord, *, price: Price | None, within_s: float, every_s: float
    ) -> UsageRecord:
        """Return the record as the invoices have it; what they do not say in time stays an estimate.

        ``price`` is what the record names.
        """
        try:
            async with asyncio.timeout(within_s):
                while True:
                    record = await self._asked(record, price)
                    if not self.may_know(record):
                        return record
                    await asyncio.sleep(every_s)
        except TimeoutError:
            logger.warning("an invoice does not tell of a call: its usage stays estimated", extra={"id": record.id})
            return record

    async def _asked(self, record: UsageRecord, price: Price | None) -> UsageRecord:
        calls = list(record.calls)
        for provider, invoice in self._invoices.items():
            wanted = [call.id for call in calls if call.provider == provider and call.usage.estimated]
            if not wanted:
                continue
            try:
                told = await invoice.took(wanted)
            except ServiceError:
                continue
            for place, call in enumerate(calls):
                if call.id in wanted and call.id not in told:
                    # The provider never saw it.
                    calls[place] = _with(price, call, Usage(0, 0))
                elif (found := told.get(call.id)) is not None:
                    calls[place] = _with(price, call, found[1])
        return replace(record, calls=tuple(calls))

    async def crashed(self, draft: UsageRecord, *, ended_at: float, within_s: float, every_s: float) -> UsageRecord:
        """Return the record of a generation whose process is gone, with the calls that invoices know of.

        Where they know of none, and not all of its providers have one, it is one call to nobody knows whom, as large as
        it was estimated.
        """
        price = self._price_of(draft.model)
        draft = _repriced(draft, price)
        if draft.ended_at is not None:  # only its settlement was left to do
            return await self.settled(draft, price=price, within_s=within_s, every_s=every_s)
        record = replace(draft, ended_at=ended_at, outcome=CRASHED, fault="us")
        calls: list[CallRecord] = []
        ids = [f"{draft.id}-{number}" for number in range(1, CALLS_MAX + 1)]
        unheard = set(draft.providers)
        try:
            async with asyncio.timeout(within_s):
                for provider in draft.providers:
                    if provider not in self._invoices:
                        continue
                    told = await _told(self._invoices[provider], ids, every_s)
                    unheard.discard(provider)
                    calls += [
                        _with(price, CallRecord(call_id, provider, model, CRASHED), usage)
                        for call_id, (model, usage) in told.items()
                    ]
        except TimeoutError:
            logger.warning("an invoice does not tell of a crash: its usage stays estimated", extra={"id": draft.id})
        if unheard and not calls:
            calls = [CallRecord(f"{draft.id}-1", "", "", CRASHED, draft.estimate, _cost(price, draft.estimate))]
        return replace(record, calls=tuple(calls))


def _with(price: Price | None, call: CallRecord, usage: Usage) -> CallRecord:
    return replace(call, usage=usage, cost_nano_usd=_cost(price, usage), invoiced=True)


def _cost(price: Price | None, usage: Usage) -> int | None:
    return None if price is None else price.nano_usd(usage)


def _repriced(record: UsageRecord, price: Price | None) -> UsageRecord:
    """Return a record that another process began by this price: of its own one, only the name is known."""
    name = None if price is None else price.name
    if name == record.price:
        return record
    calls = tuple(replace(call, cost_nano_usd=_cost(price, call.usage)) for call in record.calls)
    return replace(record, price=name, calls=calls)


async def _told(invoice: Invoice, ids: Sequence[str], every_s: float) -> Mapping[str, tuple[str, Usage]]:
    """Ask until each call that the provider knows has ended."""
    while True:
        with suppress(ServiceError):
            told = await invoice.took(ids)
            ended = {call_id: found for call_id, found in told.items() if found is not None}
            if len(ended) == len(told):
                return ended
        await asyncio.sleep(every_s)
