"""The one grammar by which a call or the control route asks for a pace, a length or a fault: `key=value;key=value`."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Final

STATUS_FAULTS: Final = frozenset({"400", "401", "403", "404", "429", "quota", "500", "503", "529"})
"""Answered with the vendor's own error instead of a completion."""
BODY_FAULTS: Final = frozenset({"eof", "malformed", "error_in_200", "empty", "wrong_schema", "no_usage"})
"""Answered with a 200 whose body is not what it should be."""
WIRE_FAULTS: Final = frozenset({"reset", "stall", "cut", "slow_headers"})
"""Break the connection's bytes or their timing, never their content."""
FAULTS: Final = STATUS_FAULTS | BODY_FAULTS | WIRE_FAULTS


class DirectiveError(ValueError):
    """A directive that is not in the grammar; its text names the key and what it takes."""


@dataclass(frozen=True, slots=True)
class Directives:
    """What one call asks for; None leaves it to the next weaker source and in the end to the options."""

    ttft_ms: float | None = None
    gap_ms: float | None = None
    jitter: float | None = None
    prefill_us: float | None = None
    tokens: int | None = None
    piece_chars: int | None = None
    """Characters of each token of an `echo:` answer; without it, word by word."""
    chunk_bytes: int | None = None
    """The body is cut into pieces of this many bytes, each its own HTTP chunk and its own write."""
    early_headers: bool | None = None
    """Send the head and the events before the first token at once, then wait for the time to first token."""
    cached_tokens: int | None = None
    """Input tokens reported as read from the vendor's prompt cache."""
    fault: str | None = None
    after_chunks: int | None = None
    """Tokens sent before a fault in mid-answer."""
    after_bytes: int | None = None
    """Bytes of the body sent before a fault on the wire."""
    stall_ms: float | None = None
    """How long `stall` lasts; without it, until the client leaves."""
    header_gap_ms: float | None = None
    """Time between two bytes of the head under `slow_headers`."""
    retry_after_s: float | None = None
    """Seconds in the `retry-after` of an error; -1 leaves the header out."""
    times: int | None = None
    """The fault befalls only the first calls, this many for each `key`."""
    every: int | None = None
    """The fault befalls only each n-th call of its `key`."""
    share: float | None = None
    """The fault befalls this fraction of calls, by a sequence that the seed fixes."""
    key: str | None = None
    """The name under which `times` and `every` count; without it, the model's name."""


NOTHING: Final = Directives()


def _number(low: float, high: float = math.inf) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = float(text)
        if not (low <= value <= high and math.isfinite(value)):
            raise ValueError
        return value

    convert.__doc__ = f"a number from {low:g}" + ("" if high == math.inf else f" to {high:g}")
    return convert


def _whole(low: int, high: int = 1_000_000_000) -> Callable[[str], int]:
    def convert(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    convert.__doc__ = f"a whole number from {low} to {high}"
    return convert


def _flag(text: str) -> bool:
    """1 or 0"""  # noqa: D400 - ends the sentence of the error that quotes it
    return {"1": True, "true": True, "0": False, "false": False}[text.lower()]


def _fault(text: str) -> str:
    name = text.replace("-", "_")
    if name not in FAULTS:
        raise ValueError
    return name


_fault.__doc__ = f"one of {', '.join(sorted(FAULTS))}"


def _name(text: str) -> str:
    """any text without ;"""  # noqa: D400, D403 - ends the sentence of the error that quotes it
    return text


CONVERTERS: Final[dict[str, Callable[[str], object]]] = {
    "ttft_ms": _number(0, 3_600_000),
    "gap_ms": _number(0, 3_600_000),
    "jitter": _number(0, 1),
    "prefill_us": _number(0, 1_000_000),
    "tokens": _whole(0, 1_000_000),
    "piece_chars": _whole(1),
    "chunk_bytes": _whole(1),
    "early_headers": _flag,
    "cached_tokens": _whole(0),
    "fault": _fault,
    "after_chunks": _whole(0),
    "after_bytes": _whole(0),
    "stall_ms": _number(0, 3_600_000),
    "header_gap_ms": _number(0, 60_000),
    "retry_after_s": _number(-1, 1_000_000),
    "times": _whole(1),
    "every": _whole(1),
    "share": _number(0, 1),
    "key": _name,
}


@lru_cache(maxsize=4096)
def parse(text: str) -> Directives:
    """Return what `key=value;key=value` asks for; of a key that stands twice, the last.

    Raises DirectiveError for anything else: a misspelt fault must not pass as a healthy answer.
    """
    values: dict[str, object] = {}
    for part in text.split(";"):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not key and not equals:
            continue
        key = key.replace("-", "_").lower()
        convert = CONVERTERS.get(key)
        if convert is None:
            raise DirectiveError(f"unknown directive {key!r}; there are {', '.join(CONVERTERS)}")
        try:
            values[key] = convert(value)
        except (ValueError, KeyError, OverflowError):
            raise DirectiveError(f"directive {key!r} takes {convert.__doc__}, not {value!r}") from None
    return replace(NOTHING, **values)  # type: ignore[arg-type]  # each converter gives its field's type


@lru_cache(maxsize=4096)
def parse_model(model: str) -> tuple[str, Directives]:
    """Split a model's name into the name proper and its directives: `NAME;key=value…`, or `sim-FAULT` for short."""
    name, _, text = model.partition(";")
    if name.startswith("sim-") and (fault := name[4:].replace("-", "_")) in FAULTS:
        return name, merge(Directives(fault=fault), parse(text))
    return name, parse(text)


def parse_headers(headers: Iterable[tuple[bytes, bytes]]) -> Directives:
    """Return what `x-sim: …` and `x-sim-KEY: value[;key=value…]` headers ask for, given with lower-case names."""
    parts = []
    for name, value in headers:
        key = name.removeprefix(b"x-sim").removeprefix(b"-").decode("latin-1")
        parts.append(f"{key}={value.decode('latin-1')}" if key else value.decode("latin-1"))
    return parse(";".join(parts))


@lru_cache(maxsize=4096)
def merge(weaker: Directives, stronger: Directives) -> Directives:
    """Return both together; where they disagree, the stronger.

    A fault brings its own positions and counts with it: those of a weaker fault are not mixed in.
    """
    given = {item.name: value for item in fields(stronger) if (value := getattr(stronger, item.name)) is not None}
    if "fault" in given:
        weaker = replace(weaker, **dict.fromkeys(_OF_A_FAULT))
    return replace(weaker, **given)


_OF_A_FAULT: Final = (
    "after_chunks",
    "after_bytes",
    "stall_ms",
    "header_gap_ms",
    "retry_after_s",
    "times",
    "every",
    "share",
    "key",
)
