"""A record of the ledger as one flat row: what a table of a database and a line of a file have."""

from datetime import UTC, datetime
from decimal import Decimal

from service.domain.generation import Usage
from service.domain.usage_record import UsageRecord

Column = str | int | float | bool | Decimal | datetime | None


def columns_of(record: UsageRecord) -> dict[str, Column]:
    """Return the columns, in their order. Costs are in US dollars, exact to nine digits; times are in UTC."""
    return {
        "id": record.id,
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "began_at": _instant(record.began_at),
        "ended_at": _instant(record.began_at if record.ended_at is None else record.ended_at),
        "principal": record.principal,
        "user_id": record.user,
        "model": record.model,
        "asked_model": record.asked_model,
        "provider": record.provider,
        "streamed": record.streamed,
        "background": record.background,
        "outcome": record.outcome,
        "fault": record.fault,
        "finish_reason": record.finish_reason,
        "calls": len(record.calls),
        **token_columns(record.usage),
        "cost_usd": record.cost_usd,
        "price": record.price,
        "total_s": record.total_s,
        "limits_s": record.limits_s,
        "queue_s": record.queue_s,
        "upstream_s": record.upstream_s,
        "first_content_s": record.first_content_s,
    }


def token_columns(usage: Usage) -> dict[str, int | bool]:
    """Return those that tell what was used."""
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_input_tokens": usage.cached_input_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "estimated": usage.estimated,
    }


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
