"""The simulator's own routes: /ledger, /control and /health; and what they change."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from typing import Any, Final
from urllib.parse import parse_qs

import orjson

from service.simulator.directives import NOTHING, DirectiveError, Directives, parse
from service.simulator.faults import FaultCounters
from service.simulator.http_protocol import Request
from service.simulator.ledger import MOST_CALLS, Ledger
from service.simulator.limits import Limits
from service.simulator.options import SimulatorOptions

_FIXED: Final = ("host", "port", "exit_with_parent")
"""Options that hold from start to end."""
_LIMITS: Final = ("requests_per_minute", "tokens_per_minute")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is not a vendor's."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"


class ControlError(ValueError):
    """A change that the control route does not know, or a value that it does not take."""


class Control:
    """Everything about a running simulator that can be looked at or changed. Raises ControlError for wrong options."""

    def __init__(self, options: SimulatorOptions) -> None:
        for name in _changeable():
            _check(name, getattr(options, name))
        self._given = options
        self.options = options
        self.directives = NOTHING
        self._directives_text = ""
        self.ledger = Ledger()
        self.limits = Limits(options.requests_per_minute, options.tokens_per_minute)
        self.counters = FaultCounters(options.seed)
        self._routes: dict[str, dict[str, Callable[[Request], Reply]]] = {
            "/health": {"GET": self._show_health},
            "/ledger": {"GET": self._show_ledger, "DELETE": self._clear_ledger},
            "/ledger/summary": {"GET": self._show_summary},
            "/control": {"GET": self._show_control, "POST": self._take_change, "DELETE": self._reset},
        }

    def reset(self) -> None:
        """Go back to the options given at the start, with an empty ledger, full buckets and counts begun anew."""
        self.change({"directives": "", **{name: getattr(self._given, name) for name in _changeable()}})
        self.limits = Limits(self._given.requests_per_minute, self._given.tokens_per_minute)
        self.counters.clear()
        self.ledger.clear()

    def change(self, wanted: dict[str, Any]) -> None:
        """Change options and standing directives; all of it, or nothing and a ControlError."""
        text = wanted.get("directives", self._directives_text) or ""
        if not isinstance(text, str):
            raise ControlError("directives: takes text such as 'fault=500;times=3', or null")
        try:
            directives: Directives = parse(text)
        except DirectiveError as exc:
            raise ControlError(str(exc)) from exc
        changes = {name: value for name, value in wanted.items() if name != "directives"}
        for name, value in changes.items():
            _check(name, value)
        if "keys" in changes:
            changes["keys"] = tuple(changes["keys"])
        self.options = replace(self.options, **changes)
        self.directives = directives
        self._directives_text = text
        if any(name in changes for name in _LIMITS):
            self.limits = Limits(self.options.requests_per_minute, self.options.tokens_per_minute)
        if "directives" in wanted:
            self.counters.clear()

    def shown(self) -> dict[str, Any]:
        """Return the options that hold now, keys left out, and the standing directives."""
        options = {name: value for name, value in asdict(self.options).items() if name != "keys"}
        return {**options, "keys": len(self.options.keys), "directives": self._directives_text}

    def answer(self, request: Request) -> Reply | None:
        """Answer one of the simulator's own routes; None for any other."""
        methods = self._routes.get(request.path)
        if methods is None:
            return None
        answer = methods.get(request.method)
        if answer is None:
            return _error(405, f"{request.path} takes {', '.join(methods)}, not {request.method}")
        return answer(request)

    def _show_health(self, _: Request) -> Reply:
        return Reply(200, b'{"status":"ok"}')

    def _show_summary(self, _: Request) -> Reply:
        return Reply(200, orjson.dumps(self.ledger.summary()))

    def _clear_ledger(self, _: Request) -> Reply:
        self.ledger.clear()
        return Reply(200, b"{}")

    def _show_control(self, _: Request) -> Reply:
        return Reply(200, orjson.dumps(self.shown()))

    def _reset(self, request: Request) -> Reply:
        self.reset()
        return self._show_control(request)

    def _take_change(self, request: Request) -> Reply:
        try:
            wanted = orjson.loads(request.body)
        except orjson.JSONDecodeError as exc:
            return _error(400, f"not JSON: {exc}")
        if not isinstance(wanted, dict):
            return _error(400, "takes a JSON object")
        try:
            self.change(wanted)
        except ControlError as exc:
            return _error(400, str(exc))
        return self._show_control(request)

    def _show_ledger(self, request: Request) -> Reply:
        given = {name: values[-1] for name, values in parse_qs(request.query).items()}
        if (names := given.get("client_request_id")) is not None:
            named = (self.ledger.named(name) for name in names.split(","))
            return Reply(200, orjson.dumps([call.as_json() for call in named if call is not None]))
        since, limit = given.get("since_id", "0"), given.get("limit", str(MOST_CALLS))
        if not (since.isdecimal() and limit.isdecimal()):
            return _error(400, f"since_id and limit take whole numbers, not {since!r} and {limit!r}")
        calls = islice(self.ledger.calls(int(since)), int(limit))
        records: Iterator[dict[str, object]] = (call.as_json() for call in calls)
        if given.get("format") == "jsonl":
            lines = b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records)
            return Reply(200, lines, b"application/jsonl")
        return Reply(200, orjson.dumps(list(records)))


def _error(status: int, message: str) -> Reply:
    return Reply(status, orjson.dumps({"error": message}))


def _changeable() -> list[str]:
    return [item.name for item in fields(SimulatorOptions) if item.name not in _FIXED]


def _check(name: str, value: Any) -> None:
    if name not in _changeable():
        raise ControlError(f"{name}: not known; there are directives, {', '.join(_changeable())}")
    match name:
        case "keys":
            fits = isinstance(value, list | tuple) and all(isinstance(key, str) for key in value)
        case "requests_per_minute" | "tokens_per_minute":
            fits = value is None or (isinstance(value, int) and value >= 0)
        case "jitter":
            fits = isinstance(value, int | float) and 0 <= value <= 1
        case "seed" | "output_tokens":
            fits = isinstance(value, int) and value >= 0
        case _:
            fits = isinstance(value, int | float) and value >= 0
    if not fits or isinstance(value, bool):
        raise ControlError(f"{name}: does not take {value!r}")
