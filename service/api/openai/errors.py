"""The error tree in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``.

Statuses and words as in the vendor's error guide (platform.openai.com/docs/guides/error-codes), so that the ``openai``
SDK raises the class that its users expect.
"""

from typing import Any

from service.api.vendor import status_of
from service.errors import (
    PermissionDenied,
    RateLimited,
    ServiceError,
    Unauthenticated,
    UpstreamRejected,
)

_FIRST_SERVER_ERROR = 500

_TYPES: tuple[tuple[type[ServiceError], str], ...] = (
    (Unauthenticated, "authentication_error"),
    (PermissionDenied, "permission_error"),
    (RateLimited, "rate_limit_error"),
)
_CODES: tuple[tuple[type[ServiceError], str], ...] = (
    (Unauthenticated, "invalid_api_key"),
    (RateLimited, "rate_limit_exceeded"),
)


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    """Return the error as OpenAI's JSON; ``retryable``, ``request_id`` and ``resume`` are our additions."""
    fields: dict[str, Any] = {
        "message": error.message,
        "type": _type_of(error),
        "param": error.fields[0].field if error.fields else None,
        "code": _code_of(error),
        # The SDK keeps this object alone of an error in mid-stream.
        "retryable": error.retryable,
        "request_id": request_id,
    }
    if error.resume is not None:
        fields["resume"] = error.resume
    return {"error": fields, "request_id": request_id}


def _type_of(error: ServiceError) -> str:
    for kind, word in _TYPES:
        if isinstance(error, kind):
            return word
    return "invalid_request_error" if status_of(error) < _FIRST_SERVER_ERROR else "server_error"


def _code_of(error: ServiceError) -> str:
    """Return the upstream's own word where it is about this very request, such as ``context_length_exceeded``."""
    if isinstance(error, UpstreamRejected) and error.upstream_code:
        return error.upstream_code
    for kind, word in _CODES:
        if isinstance(error, kind):
            return word
    return error.code
