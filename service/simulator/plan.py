"""What is to be sent for one request, and when: the form in which an answer of either vendor reaches the wire."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from service.simulator.ledger import Call

Frame = tuple[bytes, int]
"""One server-sent event and how many tokens it carries."""


@dataclass(frozen=True, slots=True)
class Script:
    """A streamed answer. Frames are made while they are sent, so that an idle stream holds next to nothing."""

    preamble: bytes
    """The events before the first token."""
    frames: Iterator[Frame]
    """Each token's event, and after (or between) them events without tokens, sent together with the one before."""
    chunks: int
    """How many of the frames carry tokens."""
    complete: bool = True
    """Whether a reader who has had all of it has had a complete answer."""


@dataclass(frozen=True, slots=True)
class Trip:
    """Where a fault of the wire happens; with neither place, before the head."""

    kind: Literal["reset", "cut", "stall"]
    after_bytes: int | None = None
    after_chunks: int | None = None
    stall_s: float | None = None
    """None stalls until the client leaves."""

    @property
    def before_head(self) -> bool:
        """Whether not even the status line is sent."""
        return self.after_bytes is None and self.after_chunks is None


@dataclass(frozen=True, slots=True)
class Pace:
    """When tokens are due."""

    first_s: float = 0.0
    gap_s: float = 0.0
    jitter: float = 0.0
    number: int = 0
    """Digest from which jitter is drawn."""


AT_ONCE: Final = Pace()


@dataclass(slots=True)
class Plan:
    """What is to be sent for one request: a whole body, or a script."""

    head: bytes
    """Status line and headers, without those on length and connection."""
    body: bytes = b""
    script: Script | None = None
    tokens: int = 0
    """Tokens of a whole body."""
    complete: bool = True
    """Whether a whole body is a complete answer."""
    pace: Pace = AT_ONCE
    early_headers: bool = False
    chunk_bytes: int = 0
    header_gap_s: float = 0.0
    trip: Trip | None = None
    call: Call | None = None
    """None for routes that are not invoiced."""
