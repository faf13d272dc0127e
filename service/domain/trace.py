"""Where a piece of work stands in a trace: what is told of it, without a word on who collects it.

A span is handed on explicitly, and never by a context variable: streams are generators, which end in other contexts
than they began in.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

Value = str | int | float | bool | Sequence[str]
"""Of an attribute. Sequences are lists or tuples of one kind."""
Kind = Literal["server", "client", "producer", "consumer"]


class TraceContext(msgspec.Struct, frozen=True):
    """A place in a trace, as W3C Trace Context writes it into headers."""

    traceparent: str
    tracestate: str = ""


class Span(Protocol):
    """One piece of work, from its making to :meth:`end`. Nothing here raises, waits or blocks."""

    @property
    def trace_id(self) -> str:
        """The id of the whole trace: 32 hexadecimal digits."""
        ...

    @property
    def is_sampled(self) -> bool:
        """Whether it is exported; an exemplar that names another leads nowhere."""
        ...

    @property
    def context(self) -> TraceContext:
        """Its place, for headers and records."""
        ...

    def child(self, name: str, kind: Kind, attributes: Mapping[str, Value]) -> "Span":
        """Begin a piece of this work."""
        ...

    def rename(self, name: str) -> None:
        """Give it the name that is known only now."""
        ...

    def set(self, attributes: Mapping[str, Value]) -> None:
        """Add attributes, or replace them."""
        ...

    def event(self, name: str, attributes: Mapping[str, Value]) -> None:
        """Note what happened at this moment."""
        ...

    def fail(self, error_type: str) -> None:
        """Say that it failed, by a word of a small set; a message would be free text, which may quote a prompt."""
        ...

    def end(self) -> None:
        """Say that it is over; a second time changes nothing."""
        ...


def exemplar_of(span: Span | None) -> str | None:
    """Return the id of the trace that a measured value may name; None where no collector has it."""
    return span.trace_id if span is not None and span.is_sampled else None


class Tracing(Protocol):
    """Begins the spans that have no other above them in this process."""

    def root(
        self,
        name: str,
        kind: Kind,
        attributes: Mapping[str, Value],
        *,
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),
        context: TraceContext | None = None,
    ) -> Span:
        """Begin a span under a caller's, if one is given that can be read, else a trace.

        ``links`` lead to what came before it elsewhere. ``context`` is the place that a new trace is to begin at, for
        who must be able to say it later without having kept it.
        """
        ...
