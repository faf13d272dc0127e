"""The span of the call that a provider makes on behalf of an attempt.

The one thing of a trace that goes by a context variable: else each provider's every method would have a parameter that
none of them uses. Whoever makes an attempt sets and resets it in one coroutine, around the call up to its first
content; no generator does.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

from yarl import URL

from service.domain.trace import Span
from service.telemetry import semconv

_span: ContextVar[Span | None] = ContextVar("outgoing", default=None)
_UNTOLD = nullcontext()


def outgoing(span: Span | None) -> AbstractContextManager[None]:
    """Let what is called within the block know its span. Not for generators."""
    return _UNTOLD if span is None else _set(span)


@contextmanager
def _set(span: Span) -> Iterator[None]:
    token = _span.set(span)
    try:
        yield
    finally:
        _span.reset(token)


class Outgoing:
    """One HTTP call, as far as its span goes."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    @classmethod
    def now(cls) -> "Outgoing | None":
        """Return the call that is being made, if it is traced."""
        span = _span.get()
        return None if span is None else cls(span)

    def goes_to(self, url: URL) -> None:
        """Note the address, which has no secret in it."""
        self._span.set(
            {
                semconv.URL_FULL: str(url),
                semconv.SERVER_ADDRESS: url.host or "",
                semconv.SERVER_PORT: url.port or 0,
            }
        )

    def answered(self, status: int) -> None:
        """Note the status."""
        self._span.set({semconv.RESPONSE_STATUS: status})

    def headers(self) -> Mapping[str, str]:
        """Return what lets a server of ours go on with the trace."""
        context = self._span.context
        more = {"tracestate": context.tracestate} if context.tracestate else {}
        return {"traceparent": context.traceparent, **more}
