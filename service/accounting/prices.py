"""From tokens to money, in whole nano-dollars; knows no currency but the US dollar."""

from decimal import ROUND_CEILING, Decimal
from typing import Self

import msgspec

from service.config import PriceSettings
from service.domain.generation import Usage

_PICO_FOR_MILLION = 1_000_000
"""A dollar for a million tokens is 10⁶ pico-dollars for one."""


class Price(msgspec.Struct, frozen=True):
    """What one token costs, in whole pico-dollars: prices with up to six decimals are exact."""

    input: int
    output: int
    cached_input: int
    cache_write: int
    name: str = ""
    """Its day and where it was read."""

    @classmethod
    def from_settings(cls, settings: PriceSettings) -> Self:
        """Take the price of a million tokens as configured; finer ones than a pico-dollar a token are rounded up."""
        given = _pico(settings.input)
        return cls(
            input=given,
            output=_pico(settings.output),
            cached_input=given if settings.cached_input is None else _pico(settings.cached_input),
            cache_write=given if settings.cache_write is None else _pico(settings.cache_write),
            name=f"{settings.as_of} {settings.source}",
        )

    def nano_usd(self, usage: Usage) -> int:
        """Return what a call costs, rounded up to the next nano-dollar."""
        plain = max(0, usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens)
        pico = (
            plain * self.input
            + usage.cached_input_tokens * self.cached_input
            + usage.cache_write_tokens * self.cache_write
            + usage.output_tokens * self.output
        )
        return -(-pico // 1_000)


def _pico(usd_for_a_million: Decimal) -> int:
    return int((usd_for_a_million * _PICO_FOR_MILLION).to_integral_value(ROUND_CEILING))
