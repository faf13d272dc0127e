import pytest

from service.api.openai.errors import error_body
from service.api.vendor import status_of
from service.errors import (
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    RateLimited,
    ServiceError,
    Unauthenticated,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
)


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (InvalidRequest("no"), 400, "invalid_request_error", "invalid_request"),
        (ModelNotFound("no"), 404, "invalid_request_error", "model_not_found"),
        (Unauthenticated("no"), 401, "authentication_error", "invalid_api_key"),
        (PermissionDenied("no"), 403, "permission_error", "permission_denied"),
        (RateLimited("no"), 429, "rate_limit_error", "rate_limit_exceeded"),
        (Overloaded("no"), 503, "server_error", "overloaded"),
        (UpstreamThrottled("no"), 503, "server_error", "upstream_throttled"),
        (UpstreamTimeout("no"), 504, "server_error", "upstream_timeout"),
        (UpstreamRejected("no"), 400, "invalid_request_error", "upstream_rejected"),
        (
            UpstreamRejected("no", upstream_code="context_length_exceeded"),
            400,
            "invalid_request_error",
            "context_length_exceeded",
        ),
    ],
)
def test_status_and_words_are_the_vendors(error: ServiceError, status: int, kind: str, code: str) -> None:
    body = error_body(error, "req_1")
    assert status_of(error) == status
    fields = {"message": "no", "type": kind, "param": None, "code": code}
    ours = {"retryable": error.retryable, "request_id": "req_1"}
    assert body == {"error": {**fields, **ours}, "request_id": "req_1"}


def test_param_is_the_first_field_at_fault() -> None:
    error = error_body(InvalidRequest.at("messages.0.content", "is needed"), "req_1")["error"]
    assert error["param"] == "messages.0.content"
    assert error["message"] == "messages.0.content: is needed"
