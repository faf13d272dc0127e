"""``WS /ws``: several generations at once on one socket, each with an id of the client's own."""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, WebSocket
from pydantic import Field, StringConstraints, TypeAdapter, ValidationError
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect, WebSocketState

from service.api.deps import AllResources, Generation, get_browser_context, refuse_foreign_page
from service.api.disconnect import departure
from service.api.errors import invalid_request, problem, render_error
from service.api.middleware import SERVICE_RESTART
from service.api.outcome import OUTCOME
from service.api.request_id import request_id_from
from service.api.request_span import begin_generation, end_generation
from service.api.request_timeout import TimeoutMs
from service.api.schemas import Body, ChatBody, GenerateBody
from service.api.sse import usage_fields
from service.auth.base import Authenticator
from service.config import Settings
from service.domain.generation import FinishReason, Usage
from service.domain.principal import Principal, RequestContext
from service.domain.trace import Tracing
from service.engine.drain import Drain, Stage
from service.engine.generation import GenerationService
from service.errors import Cancelled, InternalError, InvalidRequest, NotFound, ServiceError, SocketFull, Unauthenticated
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)
router = APIRouter()

UNSUPPORTED_DATA = 1003
POLICY_VIOLATION = 1008
MESSAGE_TOO_BIG = 1009
GONE = 1006
"""Close codes (RFC 6455 section 7.4.1)."""

TELL_S = 2.0
"""Seconds in which generations write their terminal messages before we close their socket."""

Id = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class GenerateMessage(GenerateBody):
    """Start the answer to a prompt."""

    type: Literal["generate"]
    id: Id
    timeout_ms: TimeoutMs | None = None


class ChatMessage(ChatBody):
    """Start the answer to a conversation."""

    type: Literal["chat"]
    id: Id
    timeout_ms: TimeoutMs | None = None


class CancelMessage(Body):
    """End one generation; the others go on."""

    type: Literal["cancel"]
    id: Id


class PingMessage(Body):
    """Ask for a ``pong``."""

    type: Literal["ping"]
    id: Id | None = None


ClientMessage = GenerateMessage | ChatMessage | CancelMessage | PingMessage
_message = TypeAdapter[ClientMessage](Annotated[ClientMessage, Field(discriminator="type")])


@router.websocket("/ws")
async def websocket(socket: WebSocket, resources: AllResources, generation: Generation) -> None:
    """Serve one socket. The credential is looked at before the handshake is answered."""
    try:
        refuse_foreign_page(socket, resources.settings)
        context = await get_browser_context(socket, resources)
    except ServiceError as error:
        await socket.send_denial_response(render_error(error, socket.scope))
        return
    await socket.accept()
    await SocketSession(
        socket,
        context,
        generation=generation,
        authenticator=resources.authenticator,
        settings=resources.settings,
        metrics=resources.metrics,
        drain=resources.drain,
        tracing=resources.tracing,
    ).serve()


@router.websocket("/{path:path}")
async def no_such_socket(socket: WebSocket) -> None:
    """Refuse a handshake at any other path; the last of all routes."""
    socket.scope["route"] = None  # it counts as unmatched, as any other path that no route has
    error = NotFound(f"there is no socket at {socket.url.path!r}: see docs/streaming.md for /ws")
    await socket.send_denial_response(render_error(error, socket.scope))


@dataclass(slots=True)
class _Run:
    """One generation that runs on the socket."""

    task: asyncio.Task[None]
    cut: ServiceError | None = None
    """What its client is told when we end it, by the client's wish or since the process stops."""
    ending: bool = False
    """Whether its terminal message is on the way, so that there will be no other."""


class _Close(Exception):  # noqa: N818 - not an error of ours
    """We end the socket: with which code, and why in words."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class SocketSession:
    """One socket's generations. Each started one gets exactly one terminal message: ``done`` or ``error``.

    When the process stops, the socket is told, starts nothing any more once new work is refused, and closes as soon as
    nothing runs on it. Whoever reads is the only one that speaks for the socket as a whole.
    """

    def __init__(
        self,
        socket: WebSocket,
        context: RequestContext,
        *,
        generation: GenerationService,
        authenticator: Authenticator,
        settings: Settings,
        metrics: Metrics,
        drain: Drain,
        tracing: Tracing | None = None,
    ) -> None:
        self._socket = socket
        self._tracing = tracing
        self._context = context
        self._generation = generation
        self._authenticator = authenticator
        self._max_message_bytes = settings.server.max_message_bytes
        self._max_generations = settings.server.generations_per_socket
        self._metrics = metrics
        self._drain = drain
        self._running: dict[str, _Run] = {}
        self._waiting: asyncio.Timeout | None = None
        """Around the wait for the next message, to end that wait."""

    async def serve(self) -> None:
        """Read messages until the client leaves; what still runs then is cancelled, its upstream calls too."""
        told = self._drain.told
        try:
            with (
                told(Stage.NOTICED, self._wake),
                told(Stage.REFUSING, self._wake),
                told(Stage.CUTTING, self._cut_generations),
            ):
                await self._read()
        except WebSocketDisconnect:
            pass
        except _Close as close:
            # In this order: what still runs would otherwise write behind the close frame.
            await self._tell_generations(Cancelled(f"the socket closes: {close.reason}"))
            await self._end_generations()
            with contextlib.suppress(WebSocketDisconnect):
                await self._write({"type": "websocket.close", "code": close.code, "reason": close.reason})
        finally:
            await self._end_generations()

    async def _read(self) -> None:
        """Handle one message after another; raise ``WebSocketDisconnect`` or ``_Close`` at the end."""
        told = False
        while True:
            if self._drain.stage and not told:
                told = True
                await self._tell(None, self._drain.error())  # nothing has failed by it
            if self._drain.stage >= Stage.REFUSING and not self._running:
                raise _Close(SERVICE_RESTART, "the process is stopping: connect again, to reach another")
            try:
                async with asyncio.timeout(None) as self._waiting:
                    message = await self._socket.receive()
            except TimeoutError:
                continue  # something else has happened
            finally:
                self._waiting = None
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect
            text = message.get("text")
            if text is None:
                raise _Close(UNSUPPORTED_DATA, "send JSON as text messages")
            if len(text) > self._max_message_bytes or len(text.encode()) > self._max_message_bytes:
                raise _Close(MESSAGE_TOO_BIG, f"a message has at most {self._max_message_bytes} bytes")
            await self._handle(text)

    def _wake(self) -> None:
        """Let the reader look at the stage, and at what still runs."""
        if self._waiting is not None:
            self._waiting.reschedule(asyncio.get_running_loop().time())
            self._waiting = None  # a second time, before the reader is there, would be an error

    def _cut_generations(self) -> None:
        for run in self._running.values():
            self._cut(run, self._drain.error())

    def _cut(self, run: _Run, error: ServiceError) -> None:
        """End a generation, unless its end is on the way already."""
        if not run.ending:
            run.cut = error
            run.ending = True
            run.task.cancel()

    async def _tell_generations(self, error: ServiceError) -> None:
        """End what runs with an error, for a bounded time."""
        for run in self._running.values():
            self._cut(run, error)
        if self._running:
            await asyncio.wait([run.task for run in self._running.values()], timeout=TELL_S)

    async def _end_generations(self) -> None:
        tasks = [run.task for run in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _handle(self, text: str) -> None:
        try:
            message = _message.validate_json(text)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False, include_input=False)
            await self._send_error(self._unused(_id_in(text)), invalid_request(_without_tag(faults), root="message"))
            return
        try:
            match message:
                case PingMessage():
                    await self._send({"type": "pong", "id": message.id})
                case CancelMessage():
                    self._cancel(message.id)
                case GenerateMessage() | ChatMessage():
                    await self._start(message)
        except Unauthenticated as error:
            await self._send_error(self._unused(message.id), error)
            raise _Close(POLICY_VIOLATION, error.message) from None
        except ServiceError as error:
            await self._send_error(self._unused(message.id), error)

    def _unused(self, generation_id: str | None) -> str | None:
        """Return the id for an error about a message; None where that would look like the end of what runs under it."""
        return None if generation_id in self._running else generation_id

    async def _start(self, message: GenerateMessage | ChatMessage) -> None:
        if self._drain.stage >= Stage.REFUSING:
            raise self._drain.error()
        if message.id in self._running:
            raise InvalidRequest.at("id", f"a generation {message.id!r} runs already on this socket")
        if len(self._running) >= self._max_generations:
            raise SocketFull(f"{self._max_generations} generations run already on this socket; wait for one, or cancel")
        # A socket lives for hours: its key may have been revoked since the handshake.
        principal = self._authenticator.renew(self._context.principal)
        task = asyncio.create_task(self._run(message, principal, time.monotonic()))
        self._running[message.id] = _Run(task)
        task.add_done_callback(lambda _: self._forget(message.id))
        # Let it begin before the next message is read: a task that is cancelled earlier never runs, and tells nothing.
        await asyncio.sleep(0)

    def _cancel(self, generation_id: str) -> None:
        run = self._running.get(generation_id)
        if run is None:
            raise InvalidRequest.at("id", f"no generation {generation_id!r} runs on this socket")
        self._cut(run, Cancelled("the client cancelled this generation"))

    def _forget(self, generation_id: str) -> None:
        del self._running[generation_id]
        if self._drain.stage:
            self._wake()

    async def _run(self, message: GenerateMessage | ChatMessage, principal: Principal, received_at: float) -> None:
        request_id = request_id_from(None)
        tracing = self._tracing
        context = RequestContext(
            request_id=request_id,
            principal=principal,
            received_at=received_at,
            deadline_at=None if message.timeout_ms is None else received_at + message.timeout_ms / 1_000,
            span=None if tracing is None else begin_generation(tracing, self._socket.scope, request_id),
        )
        reason = ""
        failure: ServiceError | None = None
        self._metrics.streams_active.labels("ws").inc()
        try:
            await self._generate(message, context)
            reason = "complete"
            self._metrics.requests_ended.labels("ws", "none").inc()
        except ServiceError as error:
            reason, failure = "error", error
            self._running[message.id].ending = True
            await self._send_error(message.id, error, context.request_id)
        except asyncio.CancelledError:
            cut = self._running[message.id].cut
            if cut is None:
                raise
            reason, failure = cut.code, cut
            await self._send_error(message.id, cut, context.request_id)
        except WebSocketDisconnect:
            return
        except Exception:  # the outer edge of the task: a defect must not leave a generation without its end
            reason, failure = "error", InternalError("the generation failed by a defect of the service")
            logger.exception("generation on a socket failed by a defect", extra=context.log_fields)
            self._metrics.unhandled_errors.labels("websocket").inc()
            await self._send_error(message.id, failure, context.request_id)
        finally:
            if not reason:
                reason = self._socket.scope[OUTCOME] = departure(self._socket.scope)
                self._metrics.requests_ended.labels("ws", "caller").inc()
            self._metrics.streams_active.labels("ws").dec()
            self._metrics.stream_ends.labels("ws", reason).inc()
            if context.span is not None:
                has_begun = context.timings.first_content is not None
                end_generation(context.span, reason, failure, has_begun=has_begun)

    async def _generate(self, message: GenerateMessage | ChatMessage, context: RequestContext) -> None:
        await self._send(
            {"type": "started", "id": message.id, "model": message.model, "request_id": context.request_id}
        )
        usage: Usage | None = None
        finish_reason: FinishReason | None = None
        first = True
        async with self._generation.stream(message.to_request(), context) as chunks:
            async for chunk in chunks:
                usage = chunk.usage or usage
                finish_reason = chunk.finish_reason or finish_reason
                text = chunk.text
                if text:
                    await self._send({"type": "delta", "id": message.id, "text": text})
                    if first:
                        first = False
                        now = time.monotonic()
                        others_s = context.timings.others_until(now)
                        self._metrics.note_first_token(
                            "ws", now - context.received_at, others_s, trace_id=context.exemplar
                        )
        self._running[message.id].ending = True
        fields = usage_fields(usage, finish_reason, model=message.model, request_id=context.request_id)
        await self._send({"type": "usage", "id": message.id, **fields})
        await self._send(
            {"type": "done", "id": message.id, "finish_reason": finish_reason, "request_id": context.request_id}
        )

    async def _send_error(self, generation_id: str | None, error: ServiceError, request_id: str | None = None) -> None:
        self._metrics.requests_ended.labels("ws", error.fault).inc()
        await self._tell(generation_id, error, request_id)

    async def _tell(self, generation_id: str | None, error: ServiceError, request_id: str | None = None) -> None:
        fields = problem(error, request_id or self._context.request_id)
        # A client that leaves meanwhile is noticed by whoever reads.
        with contextlib.suppress(WebSocketDisconnect):
            await self._send({**fields, "type": "error", "id": generation_id, "problem_type": fields["type"]})

    async def _send(self, message: dict[str, Any]) -> None:
        await self._write({"type": "websocket.send", "text": orjson.dumps(message).decode()})

    async def _write(self, message: Message) -> None:
        """Write; raise ``WebSocketDisconnect`` where either side has ended the socket."""
        # The framework raises that only for whoever writes when the connection breaks, and a RuntimeError for the next.
        socket = self._socket
        if (
            socket.client_state is not WebSocketState.CONNECTED
            or socket.application_state is not WebSocketState.CONNECTED
        ):
            raise WebSocketDisconnect(GONE)
        await socket.send(message)


def _id_in(text: str) -> str | None:
    """Return the id of a message that is wrong otherwise, so that its sender can tell which one it was."""
    try:
        candidate = orjson.loads(text).get("id")
    except (orjson.JSONDecodeError, AttributeError):
        return None
    return candidate if isinstance(candidate, str) else None


def _without_tag(faults: list[Any]) -> list[Any]:
    """Drop the union's tag from the faults' places: the client never sent a field of that name."""
    tags = {"generate", "chat", "cancel", "ping"}
    return [
        {**fault, "loc": fault["loc"][1:]} if fault["loc"] and fault["loc"][0] in tags else fault for fault in faults
    ]
