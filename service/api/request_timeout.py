"""For how long an answer is of use to the caller who asks for it: a header of requests, a field of messages."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import HTTPConnection

from service.errors import InvalidRequest

REQUEST_TIMEOUT = "X-Request-Timeout-Ms"
MIN_TIMEOUT_MS = 100
"""Less is a mistake in the unit: no provider answers so soon."""
MAX_TIMEOUT_MS = 86_400_000
"""A day: more than any answer takes."""
_WHOLE = re.compile("[0-9]{1,8}")

TimeoutMs = Annotated[int, Field(ge=MIN_TIMEOUT_MS, le=MAX_TIMEOUT_MS)]
"""The same in a message on a WebSocket."""


def request_timeout_s(connection: HTTPConnection) -> float | None:
    """Return the seconds that the header gives; raise ``InvalidRequest`` naming it where it gives no such time."""
    value = connection.headers.get(REQUEST_TIMEOUT)
    if value is None:
        return None
    if not _WHOLE.fullmatch(value) or not MIN_TIMEOUT_MS <= int(value) <= MAX_TIMEOUT_MS:
        raise InvalidRequest.at(
            REQUEST_TIMEOUT,
            f"whole milliseconds from {MIN_TIMEOUT_MS} to {MAX_TIMEOUT_MS} for which the answer is of use; "
            "leave it out for no end",
        )
    return int(value) / 1_000


def documented_timeout(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the header in OpenAPI (a route's ``openapi_extra``, added to ``extra``): it is read here."""
    parameter = {
        "name": REQUEST_TIMEOUT,
        "in": "header",
        "required": False,
        "description": "For how long the answer is of use from when the request came: whole milliseconds, "
        f"{MIN_TIMEOUT_MS} to {MAX_TIMEOUT_MS}.",
        # As the other headers that are read here. An integer would say of every header that is not listed that it is
        # refused, by the reading of OpenAPI that our conformance test has.
        "schema": {"type": "string"},
    }
    return {**extra, "parameters": [*extra.get("parameters", ()), parameter]}
