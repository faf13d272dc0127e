"""The error tree in Anthropic's shape: ``{"type": "error", "error": {"type", "message"}, "request_id"}``.

Words as in the vendor's error page (docs.claude.com/en/api/errors). Overload is a 503 here, not the vendor's 529, which
proxies and load balancers do not know; the ``anthropic`` SDK retries both alike.
"""

from typing import Any

from service.api.vendor import status_of
from service.errors import ServiceError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    """Return the error as Anthropic's JSON; our own words stand in ``details``."""
    details: dict[str, Any] = {"error_code": error.code, "retryable": error.retryable}
    if error.resume is not None:
        details["resume"] = error.resume
    return {
        "type": "error",
        "error": {
            "type": _TYPES.get(status_of(error), "invalid_request_error"),
            "message": error.message,
            "details": details,
        },
        "request_id": request_id,
    }
