"""Streams that can be continued: what the routes that begin streams share, and the numbering of events."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol, TypeVar

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from service.api.deps import header_credential
from service.api.idempotency import REPLAYED, idempotency_key
from service.api.streaming import EventStreamResponse, Outcome
from service.domain.idempotency import IdempotencyKey
from service.domain.principal import RequestContext
from service.domain.stream import StreamEvent
from service.domain.ticket import digest_of
from service.engine.framing import Framing
from service.engine.resumption import STREAM, StreamOver, resume_path
from service.errors import Fault, InvalidRequest, ServiceError, StreamNotFound, fault_of_code
from service.resources import Resources

T = TypeVar("T")

RESUMABLE = "X-LLM-Resumable"
LAST_EVENT_ID = "Last-Event-ID"
STREAM_ID = b"x-stream-id"
MAX_NUMBER = 10**15 - 1
"""No stream has so many events; and every reader of JSON can still tell such numbers apart."""
_NUMBER = re.compile("[0-9]{1,15}")
RECONNECT_MS = 250
"""What browsers wait before they come back; left alone they take some seconds."""


_FAILURES = (b"event: error\n", b'data: {"error"')
"""How the terminal events of failures begin, in each framing."""
_CODE = re.compile(rb'"(?:error_)?code":"([a-z_]+)"')
"""Our word for a failure, in each framing."""


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
        self.stream_id = stream_id
        self.has_failed = False
        """Whether the terminal event was a failure's."""
        self.fault: Fault = "us"
        """Whose it was, if so."""
        self._prefix = f"id: {stream_id}:".encode()
        self._number = after
        self._framing = framing

    def chunk(self, chunk: Sequence[StreamEvent]) -> bytes:
        """Number the events that came."""
        last = chunk[-1]
        self._number = last.number
        if last.last:
            self.has_failed = last.frame.startswith(_FAILURES)
            if self.has_failed and (code := _CODE.search(last.frame)):
                self.fault = fault_of_code(code[1].decode())
        prefix = self._prefix
        return b"".join([b"%b%d\n%b" % (prefix, event.number, event.frame) for event in chunk if event.frame])

    def end(self) -> bytes:
        """Return nothing."""
        return b""

    def failure(self, error: ServiceError) -> bytes:
        """Frame what ends this connection and not the stream: without a number, but with where to go on."""
        error.resume = resume_path(self.stream_id, self._number)
        return self._framing.failure(error)


class NumberedStreamResponse(EventStreamResponse[Sequence[StreamEvent]]):
    """A resumable stream, on the first of its connections."""

    def __init__(
        self,
        stream: AbstractAsyncContextManager[AsyncIterator[Sequence[StreamEvent]]],
        framing: NumberedFraming,
        *,
        preface: bytes = b"",
    ) -> None:
        super().__init__(stream, framing, ((STREAM_ID, framing.stream_id.encode()),), preface=preface, ends_itself=True)
        self._numbered = framing

    @override
    def _outcome_of_end(self) -> Outcome:
        if not self._numbered.has_failed:
            return "complete"
        self._fault = self._numbered.fault
        return "error"


class ContinuedStreamResponse(NumberedStreamResponse):
    """The rest of a stream; 204 where there is none, on which a browser's EventSource comes back no more."""

    _tells_first_token = False

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; raise ``ServiceError`` only before the status."""
        try:
            await super().__call__(scope, receive, send)
        except StreamOver:
            headers = {STREAM_ID.decode(): self._numbered.stream_id}
            await Response(status_code=204, headers=headers)(scope, receive, send)


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
    asked = _asks_for_resumption(request)
    key = await idempotency_key(request, context)
    if key is not None:
        return await _streamed_once(resources, context, stream, framing, key)
    if not resumable and not asked:
        return EventStreamResponse(stream, framing)
    # Where a header says who calls, nobody has looked at the ticket.
    ticket = None if header_credential(request) else request.query_params.get("ticket")
    owned = await resources.streams.start(
        stream, framing, context, ticket_digest=None if ticket is None else digest_of(ticket).hex()
    )
    return NumberedStreamResponse(
        owned, NumberedFraming(owned.id, framing), preface=_browsers_preface(request, owned.id)
    )


async def _streamed_once(
    resources: Resources,
    context: RequestContext,
    stream: AbstractAsyncContextManager[AsyncIterator[T]],
    framing: Framing[T],
    key: IdempotencyKey,
) -> Response:
    """Answer with a stream that a client finds again by its key, from its first event."""
    claim = await resources.idempotency.claim(key, context)
    while (kept := claim.answer) is not None:
        position = Position(kept.removeprefix(STREAM).decode(), 0)
        try:
            response = await continued(resources, context, position, framing)
        except StreamNotFound:  # its events are not kept as long as its key
            claim = await resources.idempotency.claim(key, context, instead_of=kept)
        else:
            response.headers[REPLAYED] = "true"
            return response
    try:
        owned = await resources.streams.start(stream, framing, context, claim=claim)
    except BaseException:
        await claim.forget()
        raise
    return NumberedStreamResponse(owned, NumberedFraming(owned.id, framing))


async def continued(
    resources: Resources, context: RequestContext, position: Position, framing: FailureFraming
) -> Response:
    """Answer with what comes behind a position; raise ``StreamNotFound`` or ``StoreUnavailable``."""
    stream_id, after = position
    followed = await resources.streams.follow(stream_id, after, context.principal)
    return ContinuedStreamResponse(followed, NumberedFraming(stream_id, framing, after=after))


def last_event(connection: HTTPConnection) -> Position | None:
    """Return where the client says that its stream broke; raise ``InvalidRequest`` where that is no event's id."""
    value = connection.headers.get(LAST_EVENT_ID)
    if not value:
        return None
    stream_id, _, number = value.rpartition(":")
    if not stream_id or not _NUMBER.fullmatch(number):
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


def asks_for_stream(request: Request, *, stream: bool) -> bool:
    """Whether the answer is a stream: by its body's word, or since it continues one."""
    return stream or bool(request.headers.get(LAST_EVENT_ID))


def documented_headers(extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe the headers in OpenAPI (a route's ``openapi_extra``, added to ``extra``): they are read here."""
    parameters = [
        {
            "name": RESUMABLE,
            "in": "header",
            "required": False,
            "description": "`true` asks for a stream that can be continued, from any process; `false` does not.",
            "schema": {"type": "string"},
        },
        {
            "name": LAST_EVENT_ID,
            "in": "header",
            "required": False,
            "description": "`STREAM_ID:NUMBER`: continue a resumable stream behind this event; no model is asked.",
            "schema": {"type": "string"},
        },
    ]
    return {**(extra or {}), "parameters": parameters}


OVER: dict[int | str, dict[str, Any]] = {204: {"description": "The stream has ended, and you have all of it."}}
