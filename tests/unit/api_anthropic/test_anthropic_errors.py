import pytest

from service.api.anthropic.errors import error_body
from service.api.vendor import status_of
from service.errors import (
    InternalError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    RateLimited,
    RequestTooLarge,
    ServiceError,
    Unauthenticated,
    UpstreamMisconfigured,
    UpstreamThrottled,
    UpstreamTimeout,
)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("no"), 400, "invalid_request_error"),
        (ModelNotFound("no"), 404, "not_found_error"),
        (Unauthenticated("no"), 401, "authentication_error"),
        (PermissionDenied("no"), 403, "permission_error"),
        (RequestTooLarge("no"), 413, "request_too_large"),
        (RateLimited("no"), 429, "rate_limit_error"),
        (InternalError("no"), 500, "api_error"),
        (UpstreamMisconfigured("no"), 502, "api_error"),
        (UpstreamThrottled("no"), 503, "overloaded_error"),
        (Overloaded("no"), 503, "overloaded_error"),
        (UpstreamTimeout("no"), 504, "timeout_error"),
    ],
)
def test_status_and_words_are_the_vendors(error: ServiceError, status: int, kind: str) -> None:
    assert status_of(error) == status
    assert error_body(error, "req_1") == {
        "type": "error",
        "error": {"type": kind, "message": "no", "details": {"error_code": error.code, "retryable": error.retryable}},
        "request_id": "req_1",
    }
