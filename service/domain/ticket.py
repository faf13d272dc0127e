"""A ticket: what a browser shows instead of a key, once."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ticket:
    """As it is given to its owner; whoever keeps tickets keeps only hashes of them."""

    value: str
    """192 random bits in URL-safe characters."""
    expires_in_s: float
