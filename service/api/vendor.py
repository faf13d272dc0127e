"""What the surfaces of both vendors share: open bodies, the statuses of errors, and the failures they document."""

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, ConfigDict

from service.api.responses import RATE_LIMIT_HEADERS
from service.errors import InvalidRequest, ModelNotFound, ServiceError

_FAILURES = {
    400: "A field is wrong, and named; or the provider rejects this very request.",
    401: "No API key, or a wrong one.",
    403: "The key does not allow this.",
    404: "No such model, or not one of this key's: the message lists those there are; or no such stream to continue.",
    408: "The rest of the body did not come in time.",
    409: "A request with the same idempotency key is being answered.",
    413: "The body is too large.",
    429: "A limit is reached: the message names it, and `Retry-After` says when to come back.",
    500: "A defect of the service.",
    502: "The provider failed, or its answer is not valid.",
    503: "The service or the provider is overloaded; `Retry-After` says how long to wait.",
    504: "The provider did not answer in time.",
}


class Open(BaseModel):
    """A JSON object that may hold more than we know: unknown fields go on to a provider of the same dialect."""

    model_config = ConfigDict(extra="allow", strict=True, hide_input_in_errors=True)


def as_text_parts(value: Any) -> Any:
    """Take a string for a list of one text part, so that errors name one path and not each branch of a union."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def status_of(error: ServiceError) -> int:
    """Return a vendor's status for the error: both have a 400 for validation and a 404 for an unknown model."""
    if isinstance(error, ModelNotFound):
        return 404
    if isinstance(error, InvalidRequest):
        return 400
    return error.status


def failures(shape: Any, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document failures in a vendor's shape, a model or a union of two: those named, or all there are."""
    return {
        status: {
            "model": shape,
            "description": _FAILURES[status],
            **({"headers": RATE_LIMIT_HEADERS} if status == HTTPStatus.TOO_MANY_REQUESTS else {}),
        }
        for status in statuses or _FAILURES
    }
