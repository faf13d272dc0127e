"""What a sink takes from the ledger at once, and what it says of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.domain.usage_record import UsageRecord


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An entry of the ledger that is no record, or none that this version knows."""

    raw: bytes
    reason: str


Page = Sequence[tuple[str, UsageRecord | Unreadable]]
"""Records with their positions in the ledger, in order."""
PAGE = 500
"""Records in a full one."""
START = "0-0"
"""The position before the first record."""
FORCED_OUT = "forced_out"
"""The reason of an entry that stands for records which were forced out before they were taken."""


def forced_out(after: str) -> Unreadable:
    """Make the entry that stands for what followed this position. Its own position is that of the last of them."""
    return Unreadable(after.encode(), FORCED_OUT)


def position_order(position: str) -> tuple[int, int]:
    """Return what positions are compared by: milliseconds since the epoch, and a number; ``ValueError`` for none."""
    milliseconds, number = position.split("-")
    return int(milliseconds), int(number)


class UsageLog(Protocol):
    """The records of the ledger, in the order in which they were written."""

    async def ledger_id(self) -> str:
        """Return what this ledger alone has: positions of one mean nothing in another. Raises ``StoreUnavailable``."""
        ...

    async def page(self, ledger_id: str, after: str) -> Page:
        """Return what follows a position of this ledger. Raises ``StoreUnavailable``, also where it is another now."""
        ...

    async def sink_at(self, sink: str, position: str | None) -> None:
        """Hear that there is this sink, and how far it is, where that is known. Raises ``StoreUnavailable``.

        What a sink has not taken is not trimmed for its age.
        """
        ...


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
    position: str | None = None
    """Up to where it has all; None where another process drains."""
