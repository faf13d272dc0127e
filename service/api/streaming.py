"""Sending a generation as it comes: one response for every event stream, whatever its framing."""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Literal

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from service.api.disconnect import SLOW_CLIENT, ClientDisconnected, cancelled_on_disconnect, departure
from service.api.sse import MEDIA_TYPE
from service.domain.generation import Chunk
from service.engine.framing import Framing
from service.errors import InternalError, ServiceError
from service.resources import Resources
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

HEADERS = (
    (b"content-type", MEDIA_TYPE.encode()),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


class EventStreamResponse(Response):
    """An event stream with exactly one terminal event.

    The generation is opened before the status goes out, so that what fails until then is a status of its own. When
    the client leaves, the generation is cancelled, which closes the upstream connection.
    """

    def __init__(
        self,
        stream: AbstractAsyncContextManager[AsyncIterator[Chunk]],
        framing: Framing[Chunk],
    ) -> None:
        self._stream = stream
        self._framing = framing
        self.status_code = 200
        self.background = None
        self.raw_headers = list(HEADERS)

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; raise ``ServiceError`` only before the status."""
        reason = "cancelled"
        resources: Resources = scope["state"]["resources"]
        metrics = resources.metrics
        active = metrics.streams_active.labels("sse")
        active.inc()
        try:
            async with cancelled_on_disconnect(receive, resources.drain) as stop_listening, self._stream as chunks:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                terminal, reason = await self._send_chunks(chunks, send, metrics, scope["received_at"])
                # Servers call a response's end a disconnect too: it must not cut the closing of the upstream short.
                stop_listening()
                await send({"type": "http.response.body", "body": terminal, "more_body": False})
                if scope.get(SLOW_CLIENT):
                    reason = "slow_client"
        except ClientDisconnected:
            reason = departure(scope)
        except ServiceError:
            reason = "error"
            raise
        finally:
            active.dec()
            metrics.stream_ends.labels("sse", reason).inc()

    async def _send_chunks(
        self, chunks: AsyncIterator[Chunk], send: Send, metrics: Metrics, received_at: float
    ) -> tuple[bytes, Literal["complete", "error"]]:
        """Send all but the terminal frames; give those, and how the stream ended."""
        framing = self._framing
        first = True
        failure: ServiceError | None = None
        try:
            async for chunk in chunks:
                body = framing.chunk(chunk)
                if body:
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                    if first:
                        first = False
                        metrics.time_to_first_token.labels("sse").observe(time.monotonic() - received_at)
        except ServiceError as error:
            failure = error
        except Exception:  # the outer edge of a stream: a defect must not end it without a terminal event
            logger.exception("stream failed by a defect")
            metrics.unhandled_errors.labels("stream").inc()
            failure = InternalError("the stream failed by a defect of the service")
        return (framing.end(), "complete") if failure is None else (framing.failure(failure), "error")
