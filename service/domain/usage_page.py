"""What a sink takes from the ledger at once, and what it says of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.domain.usage_record import UsageRecord

Page = Sequence[tuple[str, UsageRecord]]
"""Records with their positions in the ledger, in order."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """A record that a sink could not keep with the others, and keeps apart."""

    position: str
    reason: str


@dataclass(frozen=True, slots=True)
class Taken:
    """What a sink made of a page."""

    count: int = 0
    """Records, those set aside included."""
    set_aside: tuple[SetAside, ...] = ()
