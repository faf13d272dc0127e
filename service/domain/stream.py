"""A resumable stream: what is remembered of it, and its numbered events."""

from dataclasses import dataclass
from typing import NamedTuple


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


class StreamEvent(NamedTuple):
    """One event of a resumable stream, as its readers get it but for the ``id:`` line."""

    number: int
    """From 1, without a gap."""
    frame: bytes
    """With its blank line."""
    last: bool = False
    """Whether it is the terminal one, after which nothing comes."""
