"""A ticket: what a browser shows instead of a key, once."""

from dataclasses import dataclass
from hashlib import sha256


@dataclass(frozen=True, slots=True)
class Ticket:
    """As it is given to its owner; whoever keeps tickets keeps only hashes of them."""

    value: str
    """192 random bits in URL-safe characters."""
    expires_in_s: float


def digest_of(value: str) -> bytes:
    """Return what is kept of a ticket: from it nobody can make one, and comparing it tells nothing by its time."""
    return sha256(value.encode("utf-8", "surrogatepass")).digest()
