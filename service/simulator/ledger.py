"""The invoice: one record for each call, written while it happens, and running totals that outlive the records."""

import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Literal

ApiName = Literal["openai", "anthropic"]

MOST_CALLS: Final = 200_000
"""Records kept, about 0.5 KiB each; the oldest go first."""
_WALL_OFFSET_S: Final = time.time() - time.monotonic()


@dataclass(slots=True)
class ConnectionRecord:
    """One client connection; calls that share it share this record."""

    id: int
    opened_at: float
    closed_at: float | None = None


@dataclass(slots=True)
class Call:
    """One call. Instants are seconds of the monotonic clock, which all processes of one machine share."""

    id: int
    request_id: str
    connection: ConnectionRecord
    api: ApiName
    route: str
    received_at: float
    client_request_id: str | None = None
    key: str | None = None
    """The first twelve hexadecimal digits of the SHA-256 of the caller's key."""
    model: str | None = None
    stream: bool = False
    fault: str | None = None
    """The fault that befell the call, be it asked for or a limit's refusal."""
    status: int | None = None
    input_tokens: int = 0
    output_tokens_total: int = 0
    """What the whole answer has."""
    output_tokens_delivered: int = 0
    """What was handed to the operating system for the client before the call closed."""
    first_byte_at: float | None = None
    first_token_at: float | None = None
    closed_at: float | None = None
    """When the last byte was written, or the client was seen to have left."""
    finished: bool = False
    """A complete answer was delivered, its end mark included."""
    client_left: bool = False
    client_left_at: float | None = None

    def as_json(self) -> dict[str, object]:
        """Return the record with each instant twice: `…_at` in Unix seconds, `…_monotonic_s` as measured."""
        instants = {
            "received": self.received_at,
            "first_byte": self.first_byte_at,
            "first_token": self.first_token_at,
            "closed": self.closed_at,
            "client_left": self.client_left_at,
            "connection_closed": self.connection.closed_at,
        }
        record: dict[str, object] = {
            "id": self.id,
            "request_id": self.request_id,
            "client_request_id": self.client_request_id,
            "connection_id": self.connection.id,
            "api": self.api,
            "route": self.route,
            "model": self.model,
            "key": self.key,
            "stream": self.stream,
            "status": self.status,
            "fault": self.fault,
            "input_tokens": self.input_tokens,
            "output_tokens_total": self.output_tokens_total,
            "output_tokens_delivered": self.output_tokens_delivered,
            "open": self.closed_at is None,
            "finished": self.finished,
            "client_left": self.client_left,
        }
        for name, instant in instants.items():
            record[f"{name}_at"] = None if instant is None else instant + _WALL_OFFSET_S
            record[f"{name}_monotonic_s"] = instant
        return record


@dataclass(slots=True)
class _Totals:
    calls: int = 0
    finished: int = 0
    client_left: int = 0
    input_tokens: int = 0
    output_tokens_total: int = 0
    output_tokens_delivered: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    by_fault: Counter[str] = field(default_factory=Counter)


class Ledger:
    """Keeps the latest calls, and totals over all of them since it was last cleared."""

    def __init__(self, most_calls: int = MOST_CALLS) -> None:
        self._calls: deque[Call] = deque(maxlen=most_calls)
        self._open: dict[int, Call] = {}
        self._named: dict[str, Call] = {}
        self._last_id = 0
        self._last_connection_id = 0
        self._totals = _Totals()
        self.open_connections = 0

    def open_connection(self) -> ConnectionRecord:
        """Record that a client has connected."""
        self._last_connection_id += 1
        self.open_connections += 1
        return ConnectionRecord(self._last_connection_id, time.monotonic())

    def close_connection(self, connection: ConnectionRecord) -> None:
        """Record that a connection is gone, whoever closed it."""
        connection.closed_at = time.monotonic()
        self.open_connections -= 1

    def open_call(self, connection: ConnectionRecord, api: ApiName, route: str, request_prefix: str) -> Call:
        """Record that a request was fully received."""
        self._last_id = number = self._last_id + 1
        call = Call(number, f"{request_prefix}{number:016x}", connection, api, route, time.monotonic())
        self._calls.append(call)
        self._open[number] = call
        return call

    def name_call(self, call: Call, client_request_id: str) -> None:
        """Record by what the client knows a call."""
        call.client_request_id = client_request_id
        if len(self._named) >= 2 * (self._calls.maxlen or MOST_CALLS):
            self._named = {call.client_request_id: call for call in self._calls if call.client_request_id is not None}
        self._named[client_request_id] = call

    def named(self, client_request_id: str) -> Call | None:
        """Return the latest call that the client knows by this name."""
        return self._named.get(client_request_id)

    def close_call(self, call: Call, *, finished: bool = False, client_left: bool = False) -> None:
        """Record how a call ended; only the first end counts."""
        if call.closed_at is not None:
            return
        call.closed_at = time.monotonic()
        call.finished = finished
        if client_left:
            call.client_left = True
            call.client_left_at = call.closed_at
        if self._open.pop(call.id, None) is None:
            return  # cleared while the call was open: it belongs to no total
        totals = self._totals
        totals.calls += 1
        totals.finished += finished
        totals.client_left += client_left
        totals.input_tokens += call.input_tokens
        totals.output_tokens_total += call.output_tokens_total
        totals.output_tokens_delivered += call.output_tokens_delivered
        totals.by_status[str(call.status)] += 1
        if call.fault is not None:
            totals.by_fault[call.fault] += 1

    def calls(self, since_id: int = 0) -> Iterator[Call]:
        """Yield the kept calls with a higher id, oldest first, those still open included."""
        if not self._calls:
            return iter(())
        return islice(self._calls, max(0, since_id + 1 - self._calls[0].id), None)

    def summary(self) -> dict[str, object]:
        """Return totals over every call since the last clearing, those still open included."""
        totals = self._totals
        open_calls = self._open.values()
        return {
            "calls": totals.calls + len(self._open),
            "open_calls": len(self._open),
            "open_connections": self.open_connections,
            "connections": self._last_connection_id,
            "finished": totals.finished,
            "client_left": totals.client_left,
            "input_tokens": totals.input_tokens + sum(call.input_tokens for call in open_calls),
            "output_tokens_total": totals.output_tokens_total + sum(call.output_tokens_total for call in open_calls),
            "output_tokens_delivered": totals.output_tokens_delivered
            + sum(call.output_tokens_delivered for call in open_calls),
            "by_status": dict(totals.by_status),
            "by_fault": dict(totals.by_fault),
            "last_id": self._last_id,
        }

    def clear(self) -> None:
        """Forget every call and total; ids go on, and calls that are open are no longer counted."""
        self._calls.clear()
        self._open.clear()
        self._named.clear()
        self._totals = _Totals()
