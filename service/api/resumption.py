"""Streams that can be continued: what the routes that begin streams share, and the numbering of events."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol, TypeVar

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from service.api.streaming import EventStreamResponse
from service.domain.principal import RequestContext
from service.domain.stream import StreamEvent
from service.domain.ticket import digest_of
from service.engine.framing import Framing
from service.engine.resumption import StreamOver, resume_path
from service.errors import InvalidRequest, ServiceError
from service.resources import Resources

T = TypeVar("T")

RESUMABLE = "X-LLM-Resumable"
LAST_EVENT_ID = "Last-Event-ID"
STREAM_ID = b"x-stream-id"
MAX_NUMBER = 2**53
"""No stream has so many events; and every reader of JSON can still tell such numbers apart."""
RECONNECT_MS = 250
"""What browsers wait before they come back; left alone they take some seconds."""


class Position(NamedTuple):
    """A place in a resumable stream."""

    stream_id: str
    after: int
    """The number of the last event that the client has."""


class FailureFraming(Protocol):
    """What is left of a framing where the chunks are framed already."""

    def failure(self, error: ServiceError) -> bytes:
        """See :class:`service.engine.framing.Framing`."""
        ...


class NumberedFraming:
    """Puts its ``id:`` line on each event of a resumable stream. The terminal one is among them."""

    def __init__(self, stream_id: str, framing: FailureFraming, *, after: int = 0) -> None:
        self._stream_id = stream_id
        self._prefix = f"id: {stream_id}:".encode()
        self._number = after
        self._framing = framing

    def chunk(self, chunk: Sequence[StreamEvent]) -> bytes:
        """Number the events that came."""
        self._number = chunk[-1].number
        prefix = self._prefix
        return b"".join([b"%b%d\n%b" % (prefix, event.number, event.frame) for event in chunk if event.frame])

    def end(self) -> bytes:
        """Return nothing."""
        return b""

    def failure(self, error: ServiceError) -> bytes:
        """Frame what ends this connection and not the stream: without a number, but with where to go on."""
        error.resume = resume_path(self._stream_id, self._number)
        return self._framing.failure(error)


class ContinuedStreamResponse(EventStreamResponse[Sequence[StreamEvent]]):
    """The rest of a stream; 204 where there is none, on which a browser's EventSource comes back no more."""

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; raise ``ServiceError`` only before the status."""
        try:
            await super().__call__(scope, receive, send)
        except StreamOver:
            await Response(status_code=204)(scope, receive, send)


async def event_stream(
    request: Request,
    resources: Resources,
    context: RequestContext,
    stream: AbstractAsyncContextManager[AsyncIterator[T]],
    framing: Framing[T],
    *,
    resumable: bool = False,
) -> Response:
    """Answer with a stream: a new one, one that can be continued, or the rest of one, as the request's headers say.

    Raises ``InvalidRequest`` naming the header, ``StreamNotFound``, and ``StoreUnavailable`` where a stream is to be
    resumable.
    """
    position = last_event(request)
    if position is not None:
        return await continued(resources, context, position, framing)
    if not resumable and not _asks_for_resumption(request):
        return EventStreamResponse(stream, framing)
    ticket = request.query_params.get("ticket")
    owned = await resources.streams.start(
        stream, framing, context, ticket_digest=None if ticket is None else digest_of(ticket).hex()
    )
    return EventStreamResponse(
        owned,
        NumberedFraming(owned.id, framing),
        headers=((STREAM_ID, owned.id.encode()),),
        preface=_browsers_preface(request, owned.id),
    )


async def continued(
    resources: Resources, context: RequestContext, position: Position, framing: FailureFraming
) -> Response:
    """Answer with what comes behind a position; raise ``StreamNotFound`` or ``StoreUnavailable``."""
    stream_id, after = position
    followed = await resources.streams.follow(stream_id, after, context.principal)
    return ContinuedStreamResponse(
        followed, NumberedFraming(stream_id, framing, after=after), headers=((STREAM_ID, stream_id.encode()),)
    )


def last_event(connection: HTTPConnection) -> Position | None:
    """Return where the client says that its stream broke; raise ``InvalidRequest`` where that is no event's id."""
    value = connection.headers.get(LAST_EVENT_ID)
    if not value:
        return None
    stream_id, _, number = value.rpartition(":")
    if not stream_id or not (number.isascii() and number.isdigit()) or int(number[:20]) > MAX_NUMBER:
        raise InvalidRequest.at(LAST_EVENT_ID, "the id of an event of a resumable stream: STREAM_ID:NUMBER")
    return Position(stream_id, int(number))


def _asks_for_resumption(request: Request) -> bool:
    value = request.headers.get(RESUMABLE)
    if value is None:
        return False
    match value.lower():
        case "true" | "1":
            return True
        case "false" | "0":
            return False
        case _:
            raise InvalidRequest.at(RESUMABLE, "true or false")


def _browsers_preface(request: Request, stream_id: str) -> bytes:
    """Tell a browser the id before the first event, and how soon to come back.

    It reconnects by itself, and without an id it would ask the model again. Other readers do not, and many take an
    event without data for one that has some.
    """
    if "sec-fetch-mode" not in request.headers:
        return b""
    return f"retry: {RECONNECT_MS}\nid: {stream_id}:0\n\n".encode()


def documented_headers(extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe the headers in OpenAPI (a route's ``openapi_extra``, added to ``extra``): they are read here."""
    parameters = [
        {
            "name": RESUMABLE,
            "in": "header",
            "required": False,
            "description": "Ask for a stream that can be continued, from any process.",
            "schema": {"type": "string", "enum": ["true", "false"]},
        },
        {
            "name": LAST_EVENT_ID,
            "in": "header",
            "required": False,
            "description": "Continue a resumable stream behind this event; the rest of the request is not looked at.",
            "schema": {"type": "string", "pattern": "^[^:]+:[0-9]{1,15}$"},
        },
    ]
    return {**(extra or {}), "parameters": parameters}


OVER: dict[int | str, dict[str, Any]] = {204: {"description": "The stream has ended, and you have all of it."}}
