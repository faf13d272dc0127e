"""When a fault befalls a call, and what faults of the body do to an answer; those of the wire are in delivery.py."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from service.simulator.directives import Directives
from service.simulator.plan import Frame, Script
from service.simulator.text import digest

USUAL_AFTER_CHUNKS: Final = 3
"""Tokens before a fault in mid-stream that names no place."""
MOST_COUNTERS: Final = 100_000


class FaultCounters:
    """Counts calls under the names that directives give, so that a fault can end or recur."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._counts: OrderedDict[str, int] = OrderedDict()

    def befalls(self, directives: Directives, model: str) -> bool:
        """Count a call that carries a fault, and tell whether the fault befalls it."""
        if directives.times is None and directives.every is None and directives.share is None:
            return True
        key = directives.key if directives.key is not None else model
        count = self._counts[key] = self._counts.pop(key, 0) + 1
        if len(self._counts) > MOST_COUNTERS:
            self._counts.popitem(last=False)
        if directives.times is not None and count > directives.times:
            return False
        if directives.every is not None and count % directives.every:
            return False
        return directives.share is None or digest(self._seed, key, count) < directives.share * (1 << 64)

    def clear(self) -> None:
        """Begin every count anew."""
        self._counts.clear()


@dataclass(frozen=True, slots=True)
class Wreckage:
    """What one vendor's answers look like under the faults of the body."""

    error_body: bytes
    error_event: bytes
    misshapen_event: bytes
    """Well-formed JSON in an event that breaks the vendor's schema."""
    misshape: Callable[[dict[str, Any]], None]
    """Break the schema of a whole answer."""


def damage_plain(body: bytes, fault: str, wreckage: Wreckage) -> bytes:
    """Return a whole answer as a fault leaves it."""
    match fault:
        case "malformed" | "eof":
            return body[: len(body) // 2]
        case "error_in_200":
            return wreckage.error_body
        case "empty":
            return b""
        case "wrong_schema":
            answer = orjson.loads(body)
            wreckage.misshape(answer)
            return orjson.dumps(answer)
        case _:
            return body


def damage_script(script: Script, directives: Directives, wreckage: Wreckage) -> Script:
    """Return a streamed answer as a fault leaves it, from the place that the directives name."""
    after = USUAL_AFTER_CHUNKS if directives.after_chunks is None else directives.after_chunks
    after = min(after, script.chunks)
    match directives.fault:
        case "empty":
            return Script(b"", iter(()), chunks=0, complete=False)
        case "eof":
            frames = _end(script.frames, after, b"")
        case "error_in_200":
            frames = _end(script.frames, after, wreckage.error_event)
        case "malformed":
            frames = _spoil(script.frames, after, lambda frame: frame.rstrip(b"\n")[:-2] + b"\n\n")
        case "wrong_schema":
            frames = _spoil(script.frames, after, lambda _: wreckage.misshapen_event)
        case _:
            return script
    return replace(script, frames=frames, complete=False)


def _end(frames: Iterator[Frame], after: int, last: bytes) -> Iterator[Frame]:
    """Yield so many tokens' frames and then the last words."""
    sent = 0
    for frame in frames:
        if sent >= after:
            break
        sent += frame[1] > 0
        yield frame
    if last:
        yield last, 0


def _spoil(frames: Iterator[Frame], after: int, spoil: Callable[[bytes], bytes]) -> Iterator[Frame]:
    """Yield all frames, one of them spoilt: the first after so many tokens."""
    sent = 0
    for data, tokens in frames:
        if sent == after:
            sent += 1
            yield spoil(data), tokens
        else:
            sent += tokens > 0
            yield data, tokens
