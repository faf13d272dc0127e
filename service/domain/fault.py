"""Whose fault a failure is."""

from typing import Literal

from service.errors import (
    Cancelled,
    CircuitOpen,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    PermissionDenied,
    RateLimited,
    RequestTimeout,
    RequestTooLarge,
    ServiceError,
    Unauthenticated,
    UpstreamError,
    UpstreamRejected,
)

Fault = Literal["none", "caller", "capacity", "provider", "service"]
"""``capacity`` is a limit of ours that was not the caller's own."""

_CALLER = (
    InvalidRequest,
    Unauthenticated,
    PermissionDenied,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    RequestTooLarge,
    RateLimited,
    Cancelled,
    UpstreamRejected,
)


def fault_of(error: BaseException | None) -> Fault:
    """Say whose fault it is that something ended with this; a task that was cancelled was left by its caller."""
    match error:
        case None:
            return "none"
        case Overloaded():
            return "capacity"
        case _ if isinstance(error, _CALLER) or not isinstance(error, Exception):
            return "caller"
        case UpstreamError() | CircuitOpen():
            return "provider"
        case ServiceError() if 400 <= error.status < 500:  # noqa: PLR2004 - RFC 9110 section 15.5
            return "caller"
        case _:
            return "service"
