"""What a route may answer with beside its success, for OpenAPI; and the one way to write a JSON answer."""

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

_MEANINGS = {
    400: "The provider rejects this request",
    401: "Credential missing or wrong",
    403: "Not allowed",
    404: "Not found",
    408: "The body did not come in time",
    409: "Conflict",
    410: "It was here, and is not kept any more",
    413: "The body is too large",
    422: "The request is not valid; each field is named",
    429: "A limit is reached: the answer names it, and says when to come back",
    500: "A defect of the service",
    502: "The provider failed",
    503: "Overloaded, or the provider is limiting us",
    504: "The provider did not answer in time",
}


RATE_LIMIT_HEADERS: dict[str, Any] = {
    name: {"description": description, "schema": {"type": "string"}}
    for name, description in {
        "Retry-After": "Seconds after which the same request passes, if nobody else comes.",
        "RateLimit-Policy": "The limits, as `draft-ietf-httpapi-ratelimit-headers-10` writes them.",
        "RateLimit": "What is left of them right after this request.",
    }.items()
}
"""On every answer to a caller who has limits; documented where they matter most."""


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document the failures that a route may answer with."""
    return {
        status: {
            "description": _MEANINGS[status],
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            **({"headers": RATE_LIMIT_HEADERS} if status == HTTPStatus.TOO_MANY_REQUESTS else {}),
        }
        for status in statuses
    }


EVENT_STREAM: dict[str, Any] = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "description": "One event.",
            "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
        }
    }
}
"""An event stream as OpenAPI's ``content``: the schema is that of each event."""

UPSTREAM = (400, 502, 503, 504)
"""What a provider's trouble becomes."""
CALLER = (401, 403, 408, 413, 422, 429)
"""What a caller's mistake becomes."""


def json_response(answer: BaseModel, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with a schema."""
    return Response(json_bytes(answer), status_code=status, headers=headers, media_type="application/json")


def json_bytes(answer: BaseModel) -> bytes:
    """Write a schema in one step; FastAPI's own encoder walks it twice, at ten times the cost."""
    return answer.model_dump_json(exclude_none=True).encode()
