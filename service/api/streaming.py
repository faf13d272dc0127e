"""Sending a generation as it comes: one response for every event stream, whatever its framing."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import ClassVar, Generic, Literal, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from service.api.deps import CONTEXT
from service.api.disconnect import SLOW_CLIENT, ClientDisconnected, cancelled_on_disconnect, departure
from service.api.keepalive import Wire
from service.api.outcome import FAULT, OUTCOME
from service.api.request_span import log_fields
from service.api.sse import MEDIA_TYPE
from service.domain.principal import RequestContext
from service.engine.framing import Framing
from service.engine.resumption import StreamOver
from service.errors import Draining, Fault, InternalError, ServiceError
from service.resources import Resources
from service.telemetry.metrics import Metrics

T = TypeVar("T")

logger = logging.getLogger(__name__)

Outcome = Literal["complete", "client_disconnect", "slow_client", "error", "cancelled", "draining"]

HEADERS = (
    (b"content-type", MEDIA_TYPE.encode()),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


class EventStreamResponse(Response, Generic[T]):
    """An event stream with exactly one terminal event, which is never silent for long.

    Until the status is out (see :class:`service.api.keepalive.Wire`), what fails is raised, to become a status of its
    own; later it is the terminal event. When the client leaves, the stream is cancelled, which closes what it holds.
    """

    _tells_first_token: ClassVar[bool] = True
    """Whether its first content is the generation's."""

    def __init__(
        self,
        stream: AbstractAsyncContextManager[AsyncIterator[T]],
        framing: Framing[T],
        headers: Iterable[tuple[bytes, bytes]] = (),
        *,
        preface: bytes = b"",
        ends_itself: bool = False,
    ) -> None:
        """Make it; nothing starts yet.

        ``preface`` goes out with the status, before any event or comment. ``ends_itself`` says that the stream comes to
        a terminal event of its own when the process stops.
        """
        self._ends_itself = ends_itself
        self._preface = preface
        self._outcome: Outcome = "cancelled"
        self._fault: Fault | None = None
        """Whose fault it is that the stream failed, if it did."""
        self._stream = stream
        self._framing = framing
        self.status_code = 200
        self.background = None
        self.raw_headers = [*HEADERS, *headers]
        self._log_fields: Mapping[str, str] = {}

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; raise only before the status, or where not even a failure can be framed or sent.

        ``StreamOver`` is raised on too, where there is nothing to send.
        """
        resources: Resources = scope["state"]["resources"]
        self._log_fields = log_fields(scope)
        active = resources.metrics.streams_active.labels("sse")
        active.inc()
        wire = Wire(send, self.raw_headers, resources.settings.streams, preface=self._preface)
        try:
            async with cancelled_on_disconnect(
                scope, receive, None if self._ends_itself else resources.drain
            ) as stop_listening:
                await self._pass_on(wire, stop_listening, resources.metrics, scope)
            if scope.get(SLOW_CLIENT):
                self._outcome = "slow_client"
        except ClientDisconnected:
            self._outcome = departure(scope)
        except StreamOver:
            self._outcome = "complete"
            if not wire.committed:
                raise
            with contextlib.suppress(ClientDisconnected):
                await wire.end(b"")
        except ServiceError as error:
            if not wire.ended:
                self._outcome = self._outcome_of(error)
                if not wire.committed:
                    raise
                with contextlib.suppress(ClientDisconnected):
                    await wire.end(self._framing.failure(error))
        except Exception:
            self._outcome = "error"
            raise
        finally:
            active.dec()
            scope[OUTCOME] = self._outcome
            if self._fault is not None:
                scope[FAULT] = self._fault
            self._count_end(resources.metrics, wire)
            await wire.close()

    def _count_end(self, metrics: Metrics, wire: Wire) -> None:
        metrics.stream_ends.labels("sse", self._outcome).inc()
        if self._outcome == "complete" and self._tells_first_token:
            metrics.stream_longest_gap.observe(wire.longest_gap_s)

    def _outcome_of_end(self) -> Outcome:
        """Say how a stream went that came to its end."""
        return "complete"

    def _outcome_of(self, error: ServiceError) -> Outcome:
        self._fault = error.fault
        return "draining" if isinstance(error, Draining) else "error"

    async def _pass_on(self, wire: Wire, stop_listening: Callable[[], object], metrics: Metrics, scope: Scope) -> None:
        """Send what comes and the terminal event.

        What is raised was not told to the client yet, unless the wire says that it has ended.
        """
        try:
            async with self._stream as chunks:
                terminal, outcome = await self._send_chunks(chunks, wire, metrics, scope)
                # Servers call a response's end a disconnect too: it must not cut the closing of the upstream short.
                stop_listening()
                await wire.end(terminal)
                self._outcome = outcome
        except (ClientDisconnected, StreamOver):
            raise
        except Exception as error:  # the outer edge of a stream: a defect must not end it without a terminal event
            if _is_cancelled():
                # What goes wrong while a stream is left is not why it ends.
                _note(error, metrics, self._log_fields)
                raise asyncio.CancelledError from error
            if wire.ended:
                _note(error, metrics, self._log_fields)
            elif not wire.committed:
                raise
            else:
                raise _note(error, metrics, self._log_fields) from error
        if not wire.ended:
            if _is_cancelled():
                raise asyncio.CancelledError
            raise _note(AssertionError("the stream swallowed what ended it"), metrics, self._log_fields)

    async def _send_chunks(
        self, chunks: AsyncIterator[T], wire: Wire, metrics: Metrics, scope: Scope
    ) -> tuple[bytes, Outcome]:
        """Send all but the terminal event; give that, and how the stream ended."""
        framing = self._framing
        first = True
        try:
            async for chunk in chunks:
                events = framing.chunk(chunk)
                if events:
                    await wire.write(events)
                    if first and self._tells_first_token:
                        first = False
                        context: RequestContext | None = scope.get(CONTEXT)
                        metrics.note_first_token(
                            "sse",
                            time.monotonic() - scope["received_at"],
                            0.0 if context is None else context.timings.others_until(time.monotonic()),
                            trace_id=None if context is None else context.exemplar,
                        )
            return framing.end(), self._outcome_of_end()
        except ClientDisconnected:
            raise
        except Exception as error:  # the outer edge, as above
            if _is_cancelled():
                raise
            failure = _note(error, metrics, self._log_fields)
        return framing.failure(failure), self._outcome_of(failure)


def _note(error: Exception, metrics: Metrics, log_fields: Mapping[str, str]) -> ServiceError:
    """Return what the client is told of a failure; log and count it if no code expected it."""
    if isinstance(error, ServiceError):
        return error
    logger.error("stream failed by a defect", exc_info=error, extra=log_fields)
    metrics.unhandled_errors.labels("stream").inc()
    return InternalError("the stream failed by a defect of the service")


def _is_cancelled() -> bool:
    """Whether somebody wants this task to stop: a clean-up that fails must not hide that."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
