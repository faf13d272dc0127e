"""Records of usage for tests."""

import secrets
from typing import Any

from service.domain.generation import Usage
from service.domain.ledger import Batch, Entry, Kind
from service.domain.usage_record import CallRecord, UsageRecord


def draft(record_id: str | None = None, **more: Any) -> UsageRecord:
    """Make the draft of a generation that began at 1,000,000 s."""
    fields: dict[str, Any] = {
        "id": record_id or secrets.token_hex(6),
        "request_id": "r",
        "began_at": 1_000_000.0,
        "principal": "alice",
        "model": "m",
        "asked_model": "m",
        "estimate": Usage(10, 20, estimated=True),
    }
    return UsageRecord(**{**fields, **more})


def record(record_id: str | None = None, *, ended_at: float = 1_000_001.0, **more: Any) -> UsageRecord:
    """Make the record of one that ended well, with one call of 3 and 4 tokens for 11 nano-dollars."""
    made = draft(record_id)
    calls = (CallRecord(f"{made.id}-1", "sim", "up", "ok", Usage(3, 4), 11),)
    fields: dict[str, Any] = {"ended_at": ended_at, "outcome": "ok", "finish_reason": "stop", "calls": calls}
    return draft(made.id, **{**fields, **more})


def batch(owner: str, number: int, *entries: tuple[Kind, UsageRecord]) -> Batch:
    """Make a batch."""
    return Batch(owner, number, [Entry(kind, one) for kind, one in entries])
