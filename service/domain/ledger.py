"""What is written to the ledger, and in which portions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from service.domain.usage_record import UsageRecord

Kind = Literal["open", "amend", "close", "record"]
"""A draft; its record, still to be settled; its record, in exchange for the draft; a record that had no draft."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to be written."""

    kind: Kind
    record: UsageRecord


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries that are written together, each unless the store has it. Each has a number, one more than that before."""

    owner: str
    """Of the process whose they are."""
    number: int
    """That of the first entry; the store passes over entries whose numbers it knows."""
    entries: Sequence[Entry]
