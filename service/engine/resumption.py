"""Resumable streams: generations that outlive the connection of their client, and can be continued from any process."""

import asyncio
import logging
import random
import secrets
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import Literal, Self, TypeVar

from typing_extensions import override

from service.config import StreamSettings
from service.domain.principal import Principal, RequestContext
from service.domain.stream import FOREIGN_END, StreamEvent, StreamRecord
from service.engine.drain import Drain, Stage
from service.engine.framing import Framing
from service.engine.idempotency import KEEP_WAIT_S, Claim
from service.engine.stream_log import StreamLog
from service.errors import (
    Cancelled,
    InternalError,
    ServiceError,
    StoreUnavailable,
    StreamInterrupted,
    StreamNotFound,
)
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")
End = Literal["complete", "error", "cancelled", "orphaned", "draining"]

ID_PREFIX = "str_"
STREAM = b"stream "
"""How what is kept of a stream for an idempotency key begins: its id follows."""
HANDOVER_S = 2.0
"""Seconds over which a process that stops sends those on who follow others' streams: not all at once."""
READ_AHEAD = 64
"""Events that may wait for a client that is connected here; then the upstream is read no faster than by the client."""


class StreamOver(Exception):  # noqa: N818 - not an error: there is nothing left to tell
    """The stream has ended, and its reader has all of it."""


class ResumableStreams:
    """Begins, finds, continues and ends resumable streams. A stream belongs to the principal that asked for it."""

    def __init__(self, *, log: StreamLog, settings: StreamSettings, drain: Drain, metrics: Metrics) -> None:
        self._log = log
        self._settings = settings
        self._drain = drain
        self._metrics = metrics
        self._owned: dict[str, OwnedStream] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Own streams while the context is open; those that still run at its end are cut short, and say so."""
        try:
            yield
        finally:
            left = tuple(self._owned.values())
            for owned in left:
                owned.cut_short()
            await asyncio.gather(*(owned.task for owned in left), return_exceptions=True)
            try:
                await self._log.flush()
            except StoreUnavailable:
                logger.warning("the ends of resumable streams could not be kept")

    async def start(
        self,
        stream: AbstractAsyncContextManager[AsyncIterator[T]],
        framing: Framing[T],
        context: RequestContext,
        *,
        ticket_digest: str | None = None,
        claim: Claim | None = None,
    ) -> "OwnedStream":
        """Begin a generation of this process's own. Its client finds it by the key of ``claim``, if there is one.

        The key is held while the stream runs, kept when it is whole, or its caller ended it, and forgotten otherwise.
        Raises ``StoreUnavailable`` where it could not be continued: the caller asked for that.
        """
        record = StreamRecord(
            id=ID_PREFIX + secrets.token_urlsafe(18),
            principal=context.principal.name,
            request_id=context.request_id,
            ticket_digest=ticket_digest,
            key_digest=context.principal.key_digest,
            interruption=framing.failure(
                StreamInterrupted(
                    "the process that generated this stream is gone, and the rest of it is lost: ask again"
                )
            ),
            cancellation=framing.failure(Cancelled("the caller ended this stream")),
        )
        owned = OwnedStream(record, log=self._log, settings=self._settings, drain=self._drain, claim=claim)
        await self._log.create(record, owned.ended_elsewhere)
        if claim is not None:
            await claim.hold(owned.answer)
        self._owned[record.id] = owned
        self._metrics.resumable_streams_active.inc()
        owned.task = asyncio.create_task(self._generate(owned, stream, framing, context), name=record.id)
        # Let it begin: a task that is cancelled earlier never runs, and would leave the log without an end.
        await asyncio.sleep(0)
        return owned

    async def find(self, stream_id: str) -> StreamRecord | None:
        """Return what is known of a stream, whoever asked for it; raise ``StoreUnavailable``."""
        return await self._log.find(stream_id)

    async def follow(self, stream_id: str, after: int, principal: Principal) -> "FollowedStream":
        """Continue a stream behind event ``after``.

        Raises ``StreamNotFound`` for an unknown one and for someone else's, and ``StoreUnavailable``.
        """
        try:
            await self._owned_record(stream_id, principal)
        except StreamNotFound:
            self._metrics.stream_resumes.labels("not_found").inc()
            raise
        # What this process generates it can tell as long as it generates; what another does, a third can tell too.
        stage = Stage.CUTTING if stream_id in self._owned else Stage.REFUSING
        return FollowedStream(stream_id, after, log=self._log, drain=self._drain, until=stage, metrics=self._metrics)

    async def end(self, stream_id: str, principal: Principal) -> None:
        """End a stream of the principal's, wherever it runs; one that is over stays as it is.

        Raises ``StreamNotFound``, for someone else's too, and ``StoreUnavailable``.
        """
        record = await self._owned_record(stream_id, principal)
        await self._log.end(record.id, record.cancellation)

    async def _owned_record(self, stream_id: str, principal: Principal) -> StreamRecord:
        record = await self._log.find(stream_id)
        if record is None or record.principal != principal.name:
            raise StreamNotFound(f"there is no stream {stream_id!r} of yours, or it is not kept any more")
        return record

    async def _generate(
        self,
        owned: "OwnedStream",
        stream: AbstractAsyncContextManager[AsyncIterator[T]],
        framing: Framing[T],
        context: RequestContext,
    ) -> None:
        reason: End = "cancelled"
        try:
            with self._drain.work(), self._drain.told(Stage.CUTTING, owned.cut_short):
                reason = await owned.generate(stream, framing)
        except Exception:  # the outer edge of the task; its readers were told by `generate`
            fields = {"stream_id": owned.id, **context.log_fields}
            logger.exception("resumable stream failed by a defect", extra=fields)
            self._metrics.unhandled_errors.labels("stream").inc()
            reason = "error"
        finally:
            del self._owned[owned.id]
            self._metrics.resumable_streams_active.dec()
            self._metrics.resumable_stream_ends.labels(reason).inc()


class OwnedStream(AbstractAsyncContextManager[AsyncIterator[Sequence[StreamEvent]]]):
    """A generation of this process's own. As a context manager it is what its first client reads.

    Entering waits for the first content, and raises what failed before it. Leaving is the client's departure: the
    generation goes on, for a while. Its log and its client get the same events.
    """

    task: asyncio.Task[None]
    """What generates; set when it is made."""

    def __init__(
        self, record: StreamRecord, *, log: StreamLog, settings: StreamSettings, drain: Drain, claim: Claim | None
    ) -> None:
        self.id = record.id
        self._cancellation = record.cancellation
        self._claim = claim
        self._log = log
        self._settings = settings
        self._drain = drain
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()
        self._number = 0
        """Of the newest event."""
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._unread: deque[StreamEvent] = deque()
        self._arrived = asyncio.Event()
        self._has_room = asyncio.Event()
        self._attached = True
        self._detached_at = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._over = False
        """Whether the terminal event is on its way."""
        self._stop: tuple[ServiceError | None, End] | None = None
        """Why the generation was stopped; without an error if somebody else ended the log."""
        self._was_wished = False
        """Whether it was the caller who ended the log."""

    @property
    def answer(self) -> bytes:
        """Return what is kept of it for an idempotency key."""
        return STREAM + self.id.encode()

    # What its first client does

    @override
    async def __aenter__(self) -> AsyncIterator[Sequence[StreamEvent]]:
        try:
            await asyncio.shield(self._opened)
        except ServiceError:
            # With the status gone, the log's own event tells it, under its number.
            if not self._is_known:
                raise
        except asyncio.CancelledError:
            self._detach()
            raise
        return self

    @override
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._detach()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[StreamEvent]:
        while not self._unread:
            if self._over:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        events = tuple(self._unread)
        self._unread.clear()
        self._has_room.set()
        return events

    @property
    def _is_known(self) -> bool:
        """Whether the client was told the id by now, so that it can come back."""
        return self._loop.time() - self._began_at >= self._settings.headers_after_s

    def _detach(self) -> None:
        self._attached = False
        self._has_room.set()
        self._detached_at = self._loop.time()
        if self._over:
            return
        if self._opened.done() or self._is_known or self._claim is not None:
            self._loop.call_later(self._settings.orphan_s, self._look_for_readers)
        else:
            self._end(Cancelled("the client left before it knew this stream"), "cancelled")

    # What ends it

    def cut_short(self) -> None:
        """End the generation since the process stops."""
        self._end(
            StreamInterrupted("the process stopped before this stream had finished; what came is right: ask again"),
            "draining",
        )

    def ended_elsewhere(self, frame: bytes) -> None:
        """Stop generating, since somebody ended the log with this event."""
        if self._over:
            return
        self._was_wished = frame == self._cancellation
        self._end(None, "cancelled")
        self._over = True
        if not self._opened.done():
            self._opened.set_result(None)  # its client finds the terminal event
        self._tell([StreamEvent(FOREIGN_END, frame, last=True)])

    def _look_for_readers(self) -> None:
        if not self._over:
            # Kept, since the loop alone would let it be collected.
            self._looking = self._loop.create_task(self._cancel_if_orphaned())

    async def _cancel_if_orphaned(self) -> None:
        try:
            unread_s = min(self._loop.time() - self._detached_at, await self._log.unfollowed_s(self.id))
        except StoreUnavailable:
            unread_s = 0.0  # nobody can come back now, but may be about to
        left_s = self._settings.orphan_s - unread_s
        if left_s > 0:
            self._loop.call_later(left_s, self._look_for_readers)
        else:
            self._end(Cancelled(f"no client listened for {self._settings.orphan_s:g} s"), "orphaned")

    def _end(self, error: ServiceError | None, reason: End) -> None:
        if self._stop is None and not self._over:
            self._stop = error, reason
            self.task.cancel()

    # What generates it

    async def generate(self, stream: AbstractAsyncContextManager[AsyncIterator[T]], framing: Framing[T]) -> End:
        """Generate to the end, whichever it is, and write it; a defect is told to the readers, and raised."""
        error: ServiceError | None = None
        try:
            async with stream as chunks:
                self._opened.set_result(None)
                async for chunk in chunks:
                    await self._publish(framing.chunk(chunk))
        except asyncio.CancelledError:
            if self._stop is None:
                raise
            error, reason = self._stop
            await self._settle_key(is_whole=self._was_wished)
            if error is not None:
                self._finish(framing.failure(error), error)
            return reason
        except ServiceError as failed:
            await self._fail(framing, failed)
            return "error"
        except Exception:
            await self._fail(framing, InternalError("the stream failed by a defect of the service"))
            raise
        self._finish(framing.end(), None)
        await self._settle_key(is_whole=self._number <= self._settings.events_max)
        return "complete"

    async def _fail(self, framing: Framing[T], error: ServiceError) -> None:
        self._stop = self._stop or (error, "error")  # what ends it too, meanwhile, comes too late
        await self._settle_key(is_whole=False)
        self._finish(framing.failure(error), error)

    async def _settle_key(self, *, is_whole: bool) -> None:
        """Keep the key for a stream that can be told again; let it go before the client hears that there is none."""
        if self._claim is None:
            return
        if is_whole:
            await asyncio.wait((self._claim.keep(self.answer),), timeout=KEEP_WAIT_S)
        else:
            await self._claim.forget()

    async def _publish(self, body: bytes) -> None:
        if not body:
            return
        self._append([StreamEvent(self._number + at, frame) for at, frame in enumerate(frames_of(body), 1)])
        await self._log.room(self.id)
        while self._attached and len(self._unread) >= READ_AHEAD:
            self._has_room.clear()
            await self._has_room.wait()

    def _finish(self, body: bytes, error: ServiceError | None) -> None:
        if self._over:
            return
        self._over = True
        # Where the provider's own bytes told the end already, there is no frame left for it.
        *frames, last = frames_of(body) or [b""]
        events = [StreamEvent(self._number + at, frame) for at, frame in enumerate(frames, 1)]
        self._append([*events, StreamEvent(self._number + len(frames) + 1, last, last=True)])
        if not self._opened.done():
            if error is None:
                raise AssertionError("a stream ends without an error only after its first content")
            self._opened.set_exception(error)
            self._opened.exception()  # whoever waited may be gone

    def _append(self, events: list[StreamEvent]) -> None:
        self._log.append(self.id, events)
        self._tell(events)

    def _tell(self, events: list[StreamEvent]) -> None:
        self._number = events[-1].number
        if self._attached:
            self._unread.extend(events)
            self._arrived.set()


class FollowedStream(AbstractAsyncContextManager[AsyncIterator[Sequence[StreamEvent]]]):
    """A stream read from its log, to its end or until this process stops.

    Entering waits for the first event; it raises ``StreamOver`` where there is none left, ``StreamNotFound`` where
    events in between are not kept any more.
    """

    _events: AsyncIterator[Sequence[StreamEvent]]

    def __init__(
        self, stream_id: str, after: int, *, log: StreamLog, drain: Drain, until: Stage, metrics: Metrics
    ) -> None:
        self._id = stream_id
        self._after = after
        self._log = log
        self._drain = drain
        self._until = until
        self._metrics = metrics
        self._stack = AsyncExitStack()
        self._timer: asyncio.TimerHandle | None = None
        self._first: Sequence[StreamEvent] = ()
        self._is_leaving = False
        self._wait: asyncio.Timeout | None = None

    @override
    async def __aenter__(self) -> AsyncIterator[Sequence[StreamEvent]]:
        async with AsyncExitStack() as stack:
            stack.enter_context(self._drain.told(Stage.CUTTING, self._leave))
            if self._until is Stage.REFUSING:
                stack.callback(self._stop_timer)
                stack.enter_context(self._drain.told(Stage.REFUSING, self._soon_leave))
            try:
                self._events = await stack.enter_async_context(self._log.follow(self._id, self._after))
                self._first = await self._next()
            except StopAsyncIteration:
                pass
            except StreamNotFound:
                self._metrics.stream_resumes.labels("not_found").inc()
                raise
            if not any(event.frame for event in self._first):
                self._metrics.stream_resumes.labels("over").inc()
                raise StreamOver
            self._metrics.stream_resumes.labels("continued").inc()
            self._stack = stack.pop_all()
        return self

    @override
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[StreamEvent]:
        if self._first:
            events, self._first = self._first, ()
        else:
            events = await self._next()
        return events

    async def _next(self) -> Sequence[StreamEvent]:
        """Wait for the next events; raise ``Draining`` where the client shall go on elsewhere."""
        if not self._is_leaving:
            with suppress(TimeoutError):
                async with asyncio.timeout(None) as self._wait:
                    return await anext(self._events)
        raise self._drain.error()

    def _soon_leave(self) -> None:
        delay_s = random.uniform(0, HANDOVER_S)  # noqa: S311 - spreads a load
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._leave)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _leave(self) -> None:
        self._is_leaving = True
        if self._wait is not None:
            with suppress(RuntimeError):  # it is over, and will not be waited for again
                self._wait.reschedule(0)


def resume_path(stream_id: str, after: int) -> str:
    """Write where a stream can be continued behind event ``after``."""
    return f"/streams/{stream_id}?after={after}"


def frames_of(body: bytes) -> list[bytes]:
    """Split whole events, each with its blank line, from each other."""
    return [block + b"\n\n" for block in body.split(b"\n\n")[:-1]]
