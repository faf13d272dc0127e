"""Delivery of one answer: a state machine on timers that keeps its pace, meets faults of the wire and invoices it."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from service.simulator.ledger import Ledger
from service.simulator.plan import Frame, Plan

BURST_BYTES: Final = 64 * 1024
"""Most bytes of one write of a burst; after it other streams have their turn."""


class Wire(Protocol):
    """The connection, as a delivery sees it."""

    paused: bool
    """Whether bytes wait in this process because the client does not take them."""

    def write(self, data: bytes) -> None:
        """Hand bytes to the operating system, or keep them and become paused."""

    def reset(self) -> None:
        """Close at once with RST; the client may lose bytes already written."""

    def cut(self) -> None:
        """Close with FIN after the bytes already written."""

    def delivered(self, *, reusable: bool) -> None:
        """Take the next request; a connection that is not reusable is closed."""


class Delivery:
    """Owns the connection's output from `start` until `delivered`, `cut`, `reset` or `abandon`.

    Every write goes through `_send`, which runs the next step only when the client has taken the bytes: a slow reader
    stops the production of tokens, and what was not taken is not counted as delivered.
    """

    __slots__ = (
        "_call",
        "_chunked",
        "_clock_s",
        "_frames",
        "_keep_alive",
        "_ledger",
        "_loop",
        "_noise",
        "_opening",
        "_pending",
        "_plan",
        "_sent_bytes",
        "_sent_chunks",
        "_then",
        "_timer",
        "_trip",
        "_unsettled",
        "_wire",
    )

    def __init__(
        self,
        wire: Wire,
        plan: Plan,
        ledger: Ledger,
        loop: asyncio.AbstractEventLoop,
        *,
        keep_alive: bool,
        http10: bool,
    ) -> None:
        self._wire = wire
        self._plan = plan
        self._ledger = ledger
        self._loop = loop
        self._call = plan.call
        self._trip = plan.trip
        self._chunked = plan.script is not None and not http10
        self._keep_alive = keep_alive and (plan.script is None or not http10)
        self._timer: asyncio.Handle | None = None
        self._then: Callable[[], None] | None = None
        self._unsettled = 0
        self._frames: Iterator[Frame] | None = None
        self._pending: Frame | None = None
        self._opening = True
        self._sent_bytes = 0
        self._sent_chunks = 0
        self._noise = plan.pace.number or 1
        self._clock_s = 0.0

    def start(self) -> None:
        """Begin; the first byte may be due at once."""
        pace = self._plan.pace
        self._clock_s = time.monotonic()
        if self._plan.early_headers and self._plan.script is not None:
            self._open()
        else:
            self._clock_s += self._jittered(pace.first_s)
            self._wait(self._open)

    def resume(self) -> None:
        """Go on: the client has taken what was written."""
        if (then := self._then) is not None:
            self._then = None
            self._settle(self._unsettled)
            self._clock_s = max(self._clock_s, time.monotonic())
            then()

    def abandon(self) -> None:
        """Stop: the connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._then = self._frames = None
        if self._call is not None:
            self._ledger.close_call(self._call, client_left=True)

    # Steps, in their order.

    def _open(self) -> None:
        if self._trip is not None and self._trip.before_head:
            self._spring(self._open)
            return
        head = self._plan.head + self._framing()
        if self._plan.header_gap_s > 0:
            self._trickle([head[at : at + 1] for at in range(len(head))], self._plan.header_gap_s, 0, self._begin)
        else:
            self._begin(head)

    def _begin(self, head: bytes = b"") -> None:
        script = self._plan.script
        if script is None:
            self._send_whole(head)
        else:
            self._frames = script.frames
            self._pending = (script.preamble, 0)
            self._tick(head)

    def _framing(self) -> bytes:
        length = b"" if self._plan.script is not None else b"content-length: %d\r\n" % len(self._plan.body)
        if self._chunked:
            length = b"transfer-encoding: chunked\r\n"
        return length + (b"\r\n" if self._keep_alive else b"connection: close\r\n\r\n")

    def _send_whole(self, head: bytes) -> None:
        body, trip, tokens = self._plan.body, self._trip, self._plan.tokens
        place = len(body) // 2 if trip is None or trip.after_bytes is None else trip.after_bytes
        if trip is not None and place < len(body):
            self._plan.body = body[place:]
            self._send(head + body[:place], 0, lambda: self._spring(lambda: self._send_whole(b"")))
        elif size := self._plan.chunk_bytes:
            pieces = [body[at : at + size] for at in range(0, len(body), size)]
            self._send(head, 0, lambda: self._trickle(pieces, 0.0, tokens, self._end))
        else:
            self._send(head + body, tokens, self._end)

    def _tick(self, head: bytes = b"") -> None:
        """Send the event that is due, and those that belong to it; in a burst as many as one write takes."""
        pending, frames = self._pending, self._frames
        assert pending is not None  # noqa: S101 - the last tick ends the delivery
        assert frames is not None  # noqa: S101 - the same
        burst = BURST_BYTES if self._plan.pace.gap_s == 0 else 0
        raw = not self._chunked or self._plan.chunk_bytes > 0
        out = [head] if head else []
        tokens = size = 0
        alone = self._opening and self._plan.early_headers
        then: Callable[[], None] = self._end
        while pending is not None:
            data, count = pending
            if self._trip is not None and (room := self._room(data)) is not None:
                out.append(self._start_of(data, room, raw=raw))
                self._pending = (data[room:], count)
                then = self._spring
                break
            self._opening = False
            if data:
                out.append(data if raw else b"%x\r\n%b\r\n" % (len(data), data))
            tokens += count
            size += len(data)
            self._sent_chunks += count > 0
            self._sent_bytes += len(data)
            self._pending = pending = next(frames, None)
            if pending is not None and pending[1] and (alone or (tokens and size >= burst)):
                then = self._schedule
                break
        if then == self._end and self._chunked and not self._plan.chunk_bytes:
            out.append(b"0\r\n\r\n")
        self._ship(b"".join(out), len(head), tokens, then)

    def _ship(self, data: bytes, head_bytes: int, tokens: int, then: Callable[[], None]) -> None:
        size = self._plan.chunk_bytes
        if not size:
            self._send(data, tokens, then)
            return
        pieces = [data[:head_bytes]] if head_bytes else []
        for at in range(head_bytes, len(data), size):
            piece = data[at : at + size]
            pieces.append(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
        if then == self._end and self._chunked:
            pieces.append(b"0\r\n\r\n")
        self._trickle(pieces, 0.0, tokens, then)

    def _schedule(self) -> None:
        """Wait for the next token.

        Lateness of this process is made up for, so that a stream keeps its mean pace; that of the reader is not.
        """
        pace = self._plan.pace
        if self._sent_chunks == 0:
            self._clock_s += self._jittered(pace.first_s)
        else:
            self._clock_s += self._jittered(pace.gap_s)
        self._wait(self._tick)

    def _end(self) -> None:
        plan = self._plan
        self._timer = None  # its handle refers back to this object
        if self._call is not None:
            complete = plan.complete if plan.script is None else plan.script.complete
            self._ledger.close_call(self._call, finished=complete)
        self._wire.delivered(reusable=self._keep_alive)

    # Faults of the wire.

    def _room(self, data: bytes) -> int | None:
        """Return how much of an event is sent before the fault, or None if it does not happen in this event."""
        trip, script = self._trip, self._plan.script
        assert trip is not None  # noqa: S101 - asked only then
        if trip.after_bytes is not None:
            room = trip.after_bytes - self._sent_bytes
            return room if room < len(data) else None
        after = min(trip.after_chunks or 0, script.chunks if script is not None else 0)
        return 0 if not self._opening and self._sent_chunks >= after else None

    def _start_of(self, data: bytes, room: int, *, raw: bool) -> bytes:
        self._sent_bytes += room
        part = data[:room]
        if raw or not part:
            return part
        if self._trip is not None and self._trip.kind == "stall":
            return b"%x\r\n%b\r\n" % (room, part)
        return b"%x\r\n%b" % (len(data), part)  # announces the whole event, as a server does that dies in mid-write

    def _spring(self, again: Callable[[], None] | None = None) -> None:
        trip, self._trip = self._trip, None
        assert trip is not None  # noqa: S101 - called only then
        if trip.kind == "stall":
            if trip.stall_s is not None:
                self._clock_s = time.monotonic() + trip.stall_s
                self._wait(again or self._tick)
            return
        self._timer = None
        if self._call is not None:
            self._ledger.close_call(self._call)
        if trip.kind == "reset":
            self._wire.reset()
        else:
            self._wire.cut()

    # Time and bytes.

    def _jittered(self, seconds: float) -> float:
        if not (jitter := self._plan.pace.jitter):
            return seconds
        self._noise = noise = (self._noise * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        return seconds * (1 + jitter * ((noise >> 32) / 0x7FFFFFFF - 1))

    def _wait(self, then: Callable[[], None]) -> None:
        """Run a step when the delivery's clock says so; at once if that has passed and nothing was sent yet."""
        delay_s = self._clock_s - time.monotonic()
        if delay_s > 0:
            self._timer = self._loop.call_later(delay_s, then)
        elif self._sent_bytes:
            self._timer = self._loop.call_soon(then)
        else:
            then()

    def _send(self, data: bytes, tokens: int, then: Callable[[], None]) -> None:
        call = self._call
        if call is not None and call.first_byte_at is None and data:
            call.first_byte_at = time.monotonic()
        if data:
            self._wire.write(data)
        if self._wire.paused:
            self._unsettled = tokens
            self._then = then
            return
        if tokens:
            self._settle(tokens)
        then()

    def _settle(self, tokens: int) -> None:
        call = self._call
        if call is not None and tokens:
            call.output_tokens_delivered += tokens
            if call.first_token_at is None:
                call.first_token_at = time.monotonic()

    def _trickle(self, pieces: list[bytes], gap_s: float, tokens: int, then: Callable[[], None]) -> None:
        """Write pieces one by one, each in its own turn of the event loop, so that none is merged with the next."""
        remaining = iter(pieces)

        def step() -> None:
            if (piece := next(remaining, None)) is None:
                self._settle(tokens)
                then()
            else:
                self._send(piece, 0, wait)

        def wait() -> None:
            self._timer = self._loop.call_later(gap_s, step) if gap_s else self._loop.call_soon(step)

        step()
