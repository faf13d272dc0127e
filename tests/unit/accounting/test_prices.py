"""Prices in whole numbers."""

from decimal import Decimal
from typing import Any

import pytest

from service.accounting.prices import Price
from service.config import PriceSettings
from service.domain.generation import Usage


def price(**given: Any) -> Price:
    return Price.from_settings(PriceSettings.model_validate({"as_of": "2026-11-01", "source": "a page", **given}))


def test_a_million_tokens_cost_what_was_configured() -> None:
    assert price(input="0.15", output="0.60").nano_usd(Usage(1_000_000, 1_000_000)) == 750_000_000


def test_cached_and_written_tokens_have_prices_of_their_own() -> None:
    usage = Usage(input_tokens=100, output_tokens=10, cached_input_tokens=60, cache_write_tokens=30)
    told = price(input="3", output="15", cached_input="0.3", cache_write="3.75")
    assert told.nano_usd(usage) == 10 * 3_000 + 60 * 300 + 30 * 3_750 + 10 * 15_000
    assert price(input="3", output="15").nano_usd(usage) == 100 * 3_000 + 10 * 15_000


@pytest.mark.parametrize(("given", "nano"), [("0.0005", 1), ("0.02", 20), ("0.0205", 21), ("0", 0)])
def test_parts_of_a_nano_dollar_are_rounded_up(given: str, nano: int) -> None:
    assert price(input=given, output=0).nano_usd(Usage(1, 0)) == nano


def test_cost_is_exact_where_floats_are_not() -> None:
    told = price(input=Decimal("0.1"), output=Decimal("0.2"))
    assert sum(told.nano_usd(Usage(1, 1)) for _ in range(1_000_000)) == 300_000_000


def test_figures_that_contradict_each_other_never_make_money() -> None:
    assert price(input="3", output="15").nano_usd(Usage(10, 0, cached_input_tokens=20)) == 60_000
