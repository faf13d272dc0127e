"""What ``llm-api usage`` prints: the ledger's records, summed up."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from service.config import Settings
from service.domain.limits import decimal_usd
from service.domain.names import plain_name
from service.engine.usage_report import By, UsageSum, capacity, complete_since, unusual, usage_by
from service.wiring import open_usage

WIDEST = 64
"""Characters in a cell of a table."""
COLUMNS = ("requests", "failed", "cancelled", "input_tokens", "output_tokens", "cost_usd", "unpriced", "estimated")


@dataclass(frozen=True, slots=True)
class Printed:
    """What the command says."""

    lines: Sequence[str]
    warning: str | None = None
    """What is missing in them."""


async def report(settings: Settings, *, since: float, until: float, by: Sequence[By], as_json: bool) -> Printed:
    """Return the lines for what ended in this time, in seconds since the epoch. Raises ``StoreUnavailable``."""
    async with open_usage(settings) as source:
        rows = [_row(total, by) for total in await usage_by(source.read(since, until), by)]
        whole = await complete_since(source, since, until)
    rows = [{**row, "complete_since": _instant(whole)} for row in rows]
    return Printed(_lines(rows, [*by, *COLUMNS], as_json=as_json), _missing(since, whole))


async def report_capacity(settings: Settings, *, since: float, until: float, step_s: int, as_json: bool) -> Printed:
    """Return a line for each step of time. Raises ``StoreUnavailable``."""
    async with open_usage(settings) as source:
        steps = await capacity(source.read(since, until), since=since, until=until, step_s=float(step_s))
        whole = await complete_since(source, since, until)
    rows = [
        {
            "at": _instant(step.at),
            "requests": step.requests,
            "input_tokens": step.input_tokens,
            "output_tokens": step.output_tokens,
            "concurrency": round(step.busy_s / step_s, 3),
            "peak_concurrency": step.peak,
        }
        for step in steps
    ]
    return Printed(_lines(rows, list(rows[0]), as_json=as_json), _missing(since, whole))


async def report_unusual(settings: Settings, *, as_json: bool) -> Printed:
    """Return the lines for users who are far from their own norm."""
    async with open_usage(settings) as source:
        found = await unusual(source, now=datetime.now(UTC).timestamp())
    rows = [
        {
            "key": one.key,
            "user": one.user,
            "tokens": one.tokens,
            "usual_tokens": one.usual_tokens,
            "requests": one.requests,
            "cost_usd": decimal_usd(one.cost_nano_usd),
        }
        for one in found
    ]
    names = ["key", "user", "tokens", "usual_tokens", "requests", "cost_usd"]
    return Printed(_lines(rows, names, as_json=as_json))


def _missing(since: float, whole: float) -> str | None:
    if whole <= since:
        return None
    return f"records from before {_instant(whole)} are missing: the ledger let go of them, or began later"


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _row(total: UsageSum, by: Sequence[By]) -> dict[str, Any]:
    return {
        **dict(zip(by, total.group, strict=True)),
        "requests": total.requests,
        "failed": total.failed,
        "cancelled": total.cancelled,
        "input_tokens": total.input_tokens,
        "output_tokens": total.output_tokens,
        "cached_input_tokens": total.cached_input_tokens,
        "cache_write_tokens": total.cache_write_tokens,
        "reasoning_tokens": total.reasoning_tokens,
        "cost_usd": decimal_usd(total.cost_nano_usd),
        "unpriced": total.unpriced,
        "estimated": total.estimated,
    }


def _lines(rows: Sequence[dict[str, Any]], names: Sequence[str], *, as_json: bool) -> Sequence[str]:
    """Write rows as JSON, or these of their columns as a table."""
    return [json.dumps(row) for row in rows] if as_json else list(_table(rows, names))


def _table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Iterator[str]:
    cells = [[plain_name(str(row[name]), longest=WIDEST) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    for line in (names, *cells):
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
