"""From the error tree to responses: problem+json on our own routes, the vendor's shape under ``/v1``."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from service.api.anthropic.errors import error_body as anthropic_body
from service.api.openai.errors import error_body as openai_body
from service.api.outcome import FAULT
from service.api.paths import route_path
from service.api.vendor import status_of
from service.errors import (
    FieldError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RequestTooLarge,
    ServiceError,
    Unauthenticated,
)

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

PROBLEM_TYPE = "https://github.com/llm-api/llm-api/blob/main/docs/errors.md#"
"""What ``type`` begins with; the error's code follows."""


def problem(error: ServiceError, request_id: str) -> dict[str, Any]:
    """Return the error as problem details (RFC 9457), with our ``code`` and ``request_id`` beside its members."""
    body: dict[str, Any] = {
        "type": PROBLEM_TYPE + error.code,
        "title": error.title,
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        "retryable": error.retryable,
        "request_id": request_id,
    }
    if error.retry_after_s is not None:
        body["retry_after_s"] = error.retry_after_s
    if error.resume is not None:
        body["resume"] = error.resume
    if error.fields:
        body["errors"] = [
            {"field": fault.field, "message": fault.message, "type": fault.type} for fault in error.fields
        ]
    return body


def render_error(error: ServiceError, scope: Scope) -> Response:
    """Make the response of an error, in the shape that the route's clients know, and note whose fault it is."""
    scope[FAULT] = error.fault
    path = route_path(scope)
    request_id: str = scope["request_id"]
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, -int(-error.retry_after_s // 1)))
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="llm-api"'
    if isinstance(error, RequestTooLarge):
        headers["Connection"] = "close"
    if path.startswith("/v1/messages") or (path.startswith("/v1/models") and _is_anthropic(scope)):
        headers["request-id"] = request_id
        return _json(anthropic_body(error, request_id), status_of(error), headers)
    if path.startswith("/v1/"):
        return _json(openai_body(error, request_id), status_of(error), headers)
    return _json(problem(error, request_id), error.status, headers, "application/problem+json")


def _is_anthropic(scope: Scope) -> bool:
    """Whether the client is one of Anthropic's, on the route that both vendors have."""
    return any(name == b"anthropic-version" for name, _ in scope["headers"])


def _json(
    body: Mapping[str, Any], status: int, headers: Mapping[str, str], media_type: str = "application/json"
) -> Response:
    return Response(orjson.dumps(body), status_code=status, headers=dict(headers), media_type=media_type)


async def on_service_error(request: Request, error: Exception) -> Response:
    """Render what any layer below raised on purpose."""
    if not isinstance(error, ServiceError):
        raise TypeError(error)
    return render_error(error, request.scope)


async def on_validation_error(request: Request, error: Exception) -> Response:
    """Render what FastAPI found wrong with a path, a query or a header."""
    if not isinstance(error, RequestValidationError):
        raise TypeError(error)
    return render_error(invalid_request(error.errors()), request.scope)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Render what the framework refuses by itself: no such path, no such method."""
    if not isinstance(error, HTTPException):
        raise TypeError(error)
    response = render_error(_framework_error(error), request.scope)
    response.headers.update(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # The framework names only the methods of the first route with this path (RFC 9110 section 15.5.6: all of them).
        response.headers["Allow"] = ", ".join(sorted(_methods_of(request) or ("GET", "HEAD")))
    return response


def invalid_request(faults: Any, *, root: str = "") -> InvalidRequest:
    """Make one error of Pydantic's list of faults, each with the dotted path of its field."""
    fields = tuple(
        FieldError(_dotted(fault["loc"]) or root or "body", _sentence(fault["msg"]), fault["type"]) for fault in faults
    )
    return InvalidRequest("; ".join(f"{field.field}: {field.message}" for field in fields), fields=fields)


def _dotted(location: tuple[int | str, ...]) -> str:
    parts = location[1:] if location and location[0] in ("body", "query", "path", "header") else location
    return ".".join(str(part) for part in parts)


def _sentence(message: str) -> str:
    return message.removeprefix("Value error, ")


def _methods_of(request: Request) -> set[str]:
    routes: list[BaseRoute] = request.app.routes
    return {
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    }


def _framework_error(error: HTTPException) -> ServiceError:
    detail = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NotFound(f"{detail}: see /docs for the paths there are")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return MethodNotAllowed(f"{detail}: see /docs for the methods of this path")
    return InvalidRequest(detail)
