"""The client's end of one event stream: its status, its events, and a comment wherever it would be silent for long."""

import asyncio
import contextlib
import math
from collections.abc import Sequence

from starlette.types import Send

from service.api.disconnect import ClientDisconnected
from service.config import StreamSettings

COMMENT = b": keep-alive\n"
"""One line, and no blank one behind it: the ``openai`` SDK keeps the last ``id:`` that it saw, and takes any blank line
after that for the end of an event, on whose empty data it fails. A comment may stand wherever a line begins (HTML
Living Standard, section 9.2.5); since only whole events are written, here it is never within one."""


class Wire:
    """Writes one event stream, never two things at once.

    The status goes out with the first event, or with a comment after ``headers_after_s``; another comment follows each
    ``keepalive_s`` in which nothing was written. That costs a timer for each stream, and a task only while a comment is
    written. Made within the event loop; who makes it closes it.
    """

    def __init__(
        self, send: Send, headers: Sequence[tuple[bytes, bytes]], settings: StreamSettings, *, preface: bytes = b""
    ) -> None:
        """``preface`` goes out behind the status."""
        self._send = send
        self._headers = headers
        self._preface = preface
        self._keepalive_s = settings.keepalive_s
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self._started = False
        self._silent_since: float | None = self._time()
        """None while events are being written: to a slow reader that takes long, and a comment would not help it."""
        self._comment: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(settings.headers_after_s, self._break_silence)
        """Runs whenever no comment is being written."""
        self.longest_gap_s = 0.0
        """Between two writes of events, in seconds; comments do not count."""
        self._wrote_at = math.inf
        self.ended = False
        """Whether the terminal event was written."""

    @property
    def committed(self) -> bool:
        """Whether the status is out, or on its way: a failure from then on can only be told by an event."""
        return self._started or self._comment is not None

    async def write(self, events: bytes, *, more: bool = True) -> None:
        """Write whole events; raise ``ClientDisconnected`` where the server refuses to, since nobody is there."""
        if self._comment is not None:
            # Shielded, so that cancelling who waits never stops a comment between a response's status and its body.
            await asyncio.shield(self._comment)
        self._silent_since = None
        try:
            if not self._started:
                await self._start()
            await self._send({"type": "http.response.body", "body": events, "more_body": more})
        except OSError as error:
            raise ClientDisconnected from error
        now = self._time()
        if now - self._wrote_at > self.longest_gap_s:  # noqa: PLR1730 - max() would be a call more for each chunk
            self.longest_gap_s = now - self._wrote_at
        self._wrote_at = self._silent_since = now

    async def end(self, events: bytes) -> None:
        """Write the terminal event, which ends the response."""
        await self.write(events, more=False)
        self._timer.cancel()
        self.ended = True

    async def close(self) -> None:
        """Write nothing any more."""
        if self._comment is not None:
            self._comment.cancel()
            await asyncio.wait([self._comment])
        self._timer.cancel()

    async def _start(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        self._started = True
        if self._preface:
            await self._send({"type": "http.response.body", "body": self._preface, "more_body": True})

    def _break_silence(self) -> None:
        if self._silent_since is None:
            wait_s = self._keepalive_s
        elif self._started:
            wait_s = self._silent_since + self._keepalive_s - self._time()
        else:
            wait_s = 0.0
        if wait_s > 0:
            self._timer = self._loop.call_later(wait_s, self._break_silence)
        else:
            self._comment = self._loop.create_task(self._write_comment())

    async def _write_comment(self) -> None:
        try:
            # Where the server refuses to write, nobody is there, which is told to whoever listens for that.
            with contextlib.suppress(OSError):
                if not self._started:
                    await self._start()
                await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})
            self._silent_since = self._time()
            self._timer = self._loop.call_later(self._keepalive_s, self._break_silence)
        finally:
            self._comment = None
