"""One call to one provider on behalf of a request, and what becomes of what it brings."""

from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

import msgspec

from service.domain.clock import Deadline
from service.domain.generation import Usage
from service.domain.trace import Span
from service.engine.catalogue import Route
from service.errors import (
    DeadlinePassed,
    InternalError,
    ServiceError,
    UpstreamError,
    UpstreamInvalid,
    UpstreamOverloaded,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.providers.base import Provider, ProviderKey
from service.queueing.provider_queue import Turn
from service.resilience.breaker import Permit
from service.telemetry import semconv

T = TypeVar("T")

OUTAGES = (UpstreamUnavailable, UpstreamTimeout, UpstreamOverloaded, UpstreamInvalid)
"""What opens a breaker after some. A 429 is the fate of a working provider."""
PUSH_BACKS = (UpstreamThrottled, UpstreamOverloaded, UpstreamTimeout)
"""What says that less should be asked at a time."""
MAY_BE_BILLED = (UpstreamInvalid, UpstreamTimeout)
"""Failures after which the provider may have read and written all the same; other failures took nothing."""

Kind = Literal["first", "retry", "fallback", "hedge"]
"""``fallback``: after a failure, at another route or with another key."""


class Attempt(msgspec.Struct, frozen=True):
    """One call to one provider."""

    provider: Provider
    route: Route
    key: ProviderKey
    deadline: Deadline
    kind: Kind
    permit: Permit | None
    """None where there is no breaker."""
    turn: Turn
    """To be ended when the call is over, whichever way; attempts that brought nothing have done it."""
    is_out_of_time: Callable[[], bool]
    """Whether the caller gives no more time, so that a timeout says nothing of the provider."""
    span: Span | None = None
    """What is told of it; None where the request is not traced."""

    def end(self, usage: Usage | None, *, is_whole: bool = True) -> None:
        """End the call and its turn; ``is_whole`` says whether all of its answer was read."""
        self.turn.end(usage)
        if self.span is not None:
            if not is_whole:
                self.span.set({semconv.OUTCOME: "cancelled"})
            self.span.end()

    def judged(self, error: UpstreamError) -> UpstreamError:
        """Return what a failure is to the caller: a timeout for which its own deadline was too early is its own."""
        if not isinstance(error, UpstreamTimeout) or not self.is_out_of_time():
            return error
        passed = DeadlinePassed("the time that the request gave was over", provider=error.provider)
        passed.__cause__ = error
        return passed

    def broke_off(self, error: Exception) -> None:
        """Take note that what had begun well did not end well."""
        if self.span is not None:
            self.span.fail(error.code if isinstance(error, ServiceError) else InternalError.code)
        if isinstance(error, UpstreamTimeout) and self.is_out_of_time():
            return
        if isinstance(error, PUSH_BACKS):
            self.turn.pushed_back()
        if self.permit is not None and isinstance(error, OUTAGES):
            self.permit.failed(error.code)


Call = Callable[[Attempt], Awaitable[T]]
"""Makes one attempt; returns once nothing that follows can be taken back."""
Lose = Callable[[Attempt, T | None], Awaitable[None]]
"""Gives up what an attempt brought, if it came to bring anything, because another one was faster."""
