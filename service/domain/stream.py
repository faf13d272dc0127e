"""A resumable stream: what is remembered of it, and its numbered events."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

FOREIGN_END = 1_000_000_000
"""The number of the terminal event of a stream that its owner did not end: one for all readers, and greater than any
other. A client may have been told events that never reached the log, since its owner died; were the number the next
one in the log, that client would seem to have seen the end, and would be told nothing."""


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """What any process needs to go on with a stream that another one began."""

    id: str
    """``str_`` and 144 random bits in URL-safe characters."""
    principal: str
    """The name of the principal that asked; nobody else can see the stream."""
    request_id: str
    interruption: bytes
    """The framed event that ends the stream where its owner is gone, in the form that its readers know."""
    cancellation: bytes
    """The framed event that ends the stream where its caller ended it."""
    ticket_digest: str | None = None
    """SHA-256, in hex, of the ticket by which it was opened: a browser that reconnects by itself shows it again."""
    key_digest: bytes | None = None
    """That of the principal's key (:class:`service.domain.principal.Principal`)."""


class StreamEvent(NamedTuple):
    """One event of a resumable stream, as its readers get it but for the ``id:`` line."""

    number: int
    """From 1, without a gap; ``FOREIGN_END`` for a terminal one that is not the owner's."""
    frame: bytes
    """With its blank line. Empty in a terminal one where the frame before it said the end already."""
    last: bool = False
    """Whether it is the terminal one, after which nothing comes."""


def events_after(events: Sequence[StreamEvent], after: int) -> Sequence[StreamEvent] | None:
    """Return the events greater than ``after`` of some that ascend; None where one is missing in between."""
    if not events or events[-1].number <= after:
        return ()
    if events[0].number <= after:
        events = [event for event in events if event.number > after]
    numbered = events[:-1] if events[-1].number == FOREIGN_END else events
    # Numbers that ascend have no gap where the last is as far away as there are numbers.
    whole = not numbered or numbered[-1].number - after == len(numbered)
    return events if whole else None
