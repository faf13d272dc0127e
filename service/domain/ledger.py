"""What is written to the ledger, and in which portions."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from service.domain.usage_record import UsageRecord

Kind = Literal["open", "amend", "close", "record"]
"""A draft; its record, still to be settled; its record, in exchange for the draft; a record that had no draft."""


class Entry(msgspec.Struct, frozen=True):
    """One thing to be written."""

    kind: Kind
    record: UsageRecord


class Batch(msgspec.Struct, frozen=True):
    """Entries that are written together, each unless the store has it. Each has a number, one more than that before."""

    owner: str
    """Of the process whose they are."""
    number: int
    """That of the first entry; the store passes over entries whose numbers it knows."""
    entries: Sequence[Entry]
