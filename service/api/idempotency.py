"""``Idempotency-Key``: a request that is sent again is answered once, whole or streamed."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from service.api.disconnect import until_disconnect
from service.api.paths import route_path
from service.domain.idempotency import HEADER, IdempotencyKey
from service.domain.principal import RequestContext
from service.errors import InvalidRequest
from service.resources import Resources

REPLAYED: Final = "Idempotency-Replayed"
_TICKET = b"ticket="
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def given_key(request: Request) -> str | None:
    """Return the key that the request came with; raise ``InvalidRequest`` where it is none."""
    key = request.headers.get(HEADER)
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidRequest.at(HEADER, "takes 1 to 255 visible ASCII characters, different for each new request")
    return key


async def idempotency_key(request: Request, context: RequestContext) -> IdempotencyKey | None:
    """Return what tells the request, if it came with a key."""
    key = given_key(request)
    if key is None:
        return None
    # Who comes again has another ticket: it says who asks, and not for what.
    query = [pair for pair in request.scope["query_string"].split(b"&") if not pair.startswith(_TICKET)]
    content = await request.body() + b"&".join(query)
    return IdempotencyKey.of(context.principal.name, route_path(request.scope), key, content)


async def answered_once(
    request: Request, resources: Resources, context: RequestContext, work: Callable[[], Awaitable[bytes]]
) -> Response:
    """Answer with the JSON that ``work`` gives, or gave to the same request before.

    Without a key the client's departure cancels the work; with one it goes on, for when the client comes again.
    """
    key = await idempotency_key(request, context)
    if key is None:
        return Response(await until_disconnect(request, work()), media_type="application/json")
    answer, replayed = await until_disconnect(request, resources.idempotency.answer(key, context, work))
    headers = {REPLAYED: "true"} if replayed else None
    return Response(answer, media_type="application/json", headers=headers)


def documented_key(extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe the header in OpenAPI (a route's ``openapi_extra``, added to ``extra``): it is read here."""
    parameter = {
        "name": HEADER,
        "in": "header",
        "required": False,
        "description": "A name of your choice for this request: sent again with it, it is answered once.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    }
    known = dict(extra or {})
    return {**known, "parameters": [*known.get("parameters", []), parameter]}
