"""What a record says of calls that gave no figures, by whether a provider's invoice can be asked."""

from collections.abc import Mapping, Sequence

from service.accounting.prices import Price
from service.domain.generation import Usage
from service.domain.usage_record import CRASHED, UNKNOWN, CallRecord
from service.engine.invoices import Invoices
from service.errors import UpstreamUnavailable
from tests.support.usage_records import draft, record

TOOK = Usage(7, 9)
QUICK = {"within_s": 0.05, "every_s": 0.01}


class Told:
    """An invoice that knows these calls; None is one that has not ended."""

    def __init__(self, calls: Mapping[str, Usage | None], failures: int = 0) -> None:
        self._calls = calls
        self._failures = failures

    async def took(self, call_ids: Sequence[str]) -> Mapping[str, tuple[str, Usage] | None]:
        if self._failures:
            self._failures -= 1
            raise UpstreamUnavailable("down", provider="sim")
        known = {call_id: self._calls[call_id] for call_id in call_ids if call_id in self._calls}
        return {call_id: None if usage is None else ("up", usage) for call_id, usage in known.items()}


def invoices(**told: Told) -> Invoices:
    return Invoices(told, lambda _: None)


async def test_what_was_left_has_the_figures_of_the_invoice() -> None:
    left = record("x", calls=(CallRecord("x-1", "sim", "up", "cancelled", Usage(5, 1, estimated=True)),))
    asked = invoices(sim=Told({"x-1": TOOK}, failures=1))
    assert asked.may_know(left)
    [call] = (await asked.settled(left, price=None, **QUICK)).calls
    assert (call.usage, call.invoiced) == (TOOK, True)


async def test_what_the_provider_never_saw_took_nothing() -> None:
    lost = record("x", calls=(CallRecord("x-1", "sim", "up", "upstream_unavailable", UNKNOWN),))
    [call] = (await invoices(sim=Told({})).settled(lost, price=None, **QUICK)).calls
    assert (call.usage, call.invoiced) == (Usage(0, 0), True)


async def test_what_no_invoice_tells_in_time_stays_estimated() -> None:
    running = record("x", calls=(CallRecord("x-1", "sim", "up", "cancelled", Usage(5, 1, estimated=True)),))
    assert await invoices(sim=Told({"x-1": None})).settled(running, price=None, **QUICK) == running
    assert not invoices(other=Told({})).may_know(running)


async def test_a_crash_has_the_calls_that_the_invoice_knows() -> None:
    asked = invoices(sim=Told({"x-1": Usage(7, 0), "x-2": TOOK}))
    found = await asked.crashed(draft("x", providers=("sim",)), ended_at=1.0, **QUICK)
    assert (found.outcome, found.fault, found.usage) == (CRASHED, "us", Usage(14, 9))


async def test_a_crash_before_any_call_took_nothing() -> None:
    found = await invoices(sim=Told({})).crashed(draft("x", providers=("sim",)), ended_at=1.0, **QUICK)
    assert found.calls == ()


async def test_a_crash_at_a_provider_without_an_invoice_is_as_large_as_estimated() -> None:
    """Another provider's invoice, that of the fallback too, says nothing of it."""
    one = draft("x", providers=("openai",))
    for providers in (("openai",), ("openai", "sim")):
        found = await invoices(sim=Told({})).crashed(draft("x", providers=providers), ended_at=1.0, **QUICK)
        assert found.usage == one.estimate


async def test_a_crash_of_which_the_invoice_tells_too_late_is_as_large_as_estimated() -> None:
    one = draft("x", providers=("sim",))
    found = await invoices(sim=Told({"x-1": None})).crashed(one, ended_at=1.0, **QUICK)
    assert found.usage == one.estimate


def price(name: str, pico: int) -> Price:
    return Price(input=pico, output=pico, cached_input=pico, cache_write=pico, name=name)


OLD, NEW = price("old", 1_000), price("new", 5_000)


async def test_what_is_settled_after_the_prices_changed_costs_what_it_did_when_it_was_asked() -> None:
    left = record("x", price="old", calls=(CallRecord("x-1", "sim", "up", "cancelled", Usage(5, 1, estimated=True)),))
    asked = Invoices({"sim": Told({"x-1": TOOK})}, lambda _: NEW)
    settled = await asked.settled(left, price=OLD, **QUICK)
    assert (settled.price, settled.cost_nano_usd) == ("old", 16)


async def test_what_another_process_left_is_named_and_costed_by_one_price() -> None:
    calls = (
        CallRecord("x-1", "sim", "up", "upstream_timeout", Usage(1, 1), 2),
        CallRecord("x-2", "sim", "up", "cancelled", Usage(5, 1, estimated=True), 6),
    )
    asked = Invoices({"sim": Told({"x-2": TOOK})}, lambda _: NEW)
    settled = await asked.crashed(record("x", price="old", calls=calls), ended_at=1.0, **QUICK)
    assert (settled.price, settled.cost_nano_usd) == ("new", 5 * (2 + 16))
    crashed = await asked.crashed(draft("y", price="old"), ended_at=1.0, **QUICK)
    assert (crashed.price, crashed.cost_nano_usd) == ("new", 0)
