"""``Idempotency-Key``: a request that is sent again is answered once, whole or streamed."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import override

from service.api.disconnect import until_disconnect
from service.api.paths import route_path
from service.domain.idempotency import HEADER, IdempotencyKey
from service.domain.principal import RequestContext
from service.domain.stream import StreamEvent
from service.engine.idempotency import Claim
from service.engine.resumption import OwnedStream
from service.errors import InvalidRequest, ServiceError
from service.resources import Resources

REPLAYED: Final = "Idempotency-Replayed"
STREAM: Final = b"stream "
"""How what is kept of a stream begins: its id follows."""
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
    content = await request.body() + request.scope["query_string"]
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


class KeyedStream(AbstractAsyncContextManager[AsyncIterator[Sequence[StreamEvent]]]):
    """A stream that was begun for a key: where it fails before its first content, the key is free again."""

    def __init__(self, owned: OwnedStream, claim: Claim) -> None:
        self._owned = owned
        self._claim = claim

    @override
    async def __aenter__(self) -> AsyncIterator[Sequence[StreamEvent]]:
        try:
            return await self._owned.__aenter__()
        except ServiceError:
            await self._claim.forget()
            raise

    @override
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._owned.__aexit__(kind, error, traceback)


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
