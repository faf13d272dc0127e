"""An event stream on a clock of its own: what is written when, and that it ends once, whatever goes wrong and when."""

import asyncio
import contextlib
import functools
import itertools
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ParamSpec

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from starlette.types import Message
from typing_extensions import override

from service.api.disconnect import SLOW_CLIENT
from service.api.keepalive import COMMENT
from service.api.outcome import OUTCOME
from service.api.streaming import EventStreamResponse
from service.config import DrainSettings, StreamSettings
from service.engine.drain import Drain
from service.engine.resumption import StreamOver
from service.errors import Draining, ServiceError, UpstreamUnavailable
from service.telemetry.metrics import Metrics

P = ParamSpec("P")

HEADERS_AFTER_S = 0.5
KEEPALIVE_S = 15.0
SETTINGS = StreamSettings(headers_after_s=HEADERS_AFTER_S, keepalive_s=KEEPALIVE_S)
START = "200"
SILENT = COMMENT.decode()
GONE = UpstreamUnavailable("gone")
DEFECT = ZeroDivisionError("secret detail")


class _Leap(selectors.DefaultSelector):
    """Waits for no time, but lets the loop's clock leap over it."""

    leap: Callable[[float], None]

    @override
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing will ever happen again"
        self.leap(max(0.0, timeout))
        return super().select(0)


class LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop in which whatever is due next is due now."""

    def __init__(self) -> None:
        selector = _Leap()
        selector.leap = self._leap
        self._now = 0.0
        super().__init__(selector)

    @override
    def time(self) -> float:
        return self._now

    def _leap(self, seconds: float) -> None:
        self._now += seconds


def without_waiting(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in a loop of its own, whose clock begins at 0."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=LeapingLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


Step = float | str | Exception
"""Seconds to wait, a chunk to give, or what to raise."""


async def taken(steps: Iterable[Step]) -> AsyncIterator[str]:
    for step in steps:
        if isinstance(step, float):
            await asyncio.sleep(step)
        elif isinstance(step, str):
            yield step
        else:
            raise step


@dataclass
class Stream:
    """Takes its steps while it opens, while it runs, and while it closes."""

    opening: Sequence[Step] = ()
    chunks: Sequence[Step] = ("a", "b")
    closing: Sequence[Step] = ()
    closed_at: float | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[str]]:
        async for _ in taken(self.opening):
            pass
        try:
            yield taken(self.chunks)
        finally:
            async for _ in taken(self.closing):
                pass
            self.closed_at = asyncio.get_running_loop().time()


class Plain:
    """Frames a chunk as it is; breaks where it is told to."""

    def __init__(self, *broken: str) -> None:
        self._broken = broken

    def chunk(self, chunk: str) -> bytes:
        self._break("chunk", chunk)
        return chunk.encode()

    def end(self) -> bytes:
        self._break("end")
        return b"END"

    def failure(self, error: ServiceError) -> bytes:
        self._break("failure")
        return f"FAILED {error.code}".encode()

    def _break(self, *places: str) -> None:
        if set(places) & set(self._broken):
            raise DEFECT


@dataclass
class Client:
    """The server's side of a connection: takes what is written, but for some time, and says when the client left."""

    leaves_at: float | None = None
    stuck: tuple[float, float] = (0.0, 0.0)
    """From when to when nothing can be written. All times count from the request."""
    breaks: bool = False
    """Whether writing raises once the client has left, as the ASGI specification allows; else it does nothing."""
    is_slow: bool = False
    holds_behind: bool = False
    """Whether a message that is stuck was taken already, and only its sender is held."""
    written: list[tuple[float, str]] = field(default_factory=list)
    ends: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    began_at: float = 0.0
    faults: list[str] = field(default_factory=list)
    """What no application may do. Not raised, since it would only be lost in a comment."""
    _is_writing: bool = False

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time() - self.began_at

    async def receive(self) -> Message:
        if self.leaves_at is None:
            await asyncio.Event().wait()
        else:
            await asyncio.sleep(self.leaves_at - self.now)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self._demand(not self._is_writing, "two writers at once")
        self._is_writing = True
        try:
            if self.holds_behind:
                self._take(message)
            await self._until_writable()
            if self.leaves_at is not None and self.now >= self.leaves_at:
                if self.breaks:
                    raise OSError("broken pipe")
            elif not self.holds_behind:
                self._take(message)
        finally:
            self._is_writing = False

    async def _until_writable(self) -> None:
        begin, end = self.stuck
        if begin <= self.now < end:
            await asyncio.sleep(end - self.now)

    def _take(self, message: Message) -> None:
        self._demand(self.ends == 0, "written after the end")
        if message["type"] == "http.response.start":
            self._demand(not self.written, "a second status")
            self.headers = message["headers"]
            self.written.append((self.now, START))
        else:
            self._demand(bool(self.written), "a body before the status")
            self.ends += not message["more_body"]
            self.written.append((self.now, message["body"].decode()))

    def _demand(self, condition: bool, fault: str) -> None:  # noqa: FBT001 - reads as assert does
        if not condition:
            self.faults.append(fault)


@dataclass
class Seen:
    """How it went."""

    client: Client
    stream: Stream
    metrics: Metrics
    outcome: str = ""
    over_at: float = 0.0
    raised: BaseException | None = None

    @property
    def written(self) -> list[tuple[float, str]]:
        return self.client.written

    @property
    def told(self) -> list[str]:
        """What was written, without its times and without comments."""
        return [text for _, text in self.written if text != SILENT]

    @property
    def comments(self) -> list[float]:
        return [at for at, text in self.written if text == SILENT]

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


async def respond(
    stream: Stream,
    client: Client | None = None,
    framing: Plain | None = None,
    *,
    cut_at: float | None = None,
    settings: StreamSettings = SETTINGS,
    **options: Any,
) -> Seen:
    """Serve one request to its end, and look a minute longer."""
    client = client or Client()
    client.began_at = asyncio.get_running_loop().time()
    seen = Seen(client, stream, Metrics(CollectorRegistry()))
    drain = Drain(DrainSettings(delay_s=0, timeout_s=cut_at or 3_600))
    resources = SimpleNamespace(metrics=seen.metrics, drain=drain, settings=SimpleNamespace(streams=settings))
    scope: dict[str, Any] = {"type": "http", "state": {"resources": resources}, "received_at": 0.0, "request_id": "r"}
    if client.is_slow:
        scope[SLOW_CLIENT] = True
    response = EventStreamResponse(stream.open(), framing or Plain(), **options)
    stopping = asyncio.create_task(drain.run()) if cut_at is not None else None
    try:
        with drain.work():
            await asyncio.sleep(0)
            await response(scope, client.receive, client.send)
    except Exception as error:  # noqa: BLE001 - the tests say which it must be
        seen.raised = error
    seen.outcome, seen.over_at = scope[OUTCOME], client.now
    before = len(client.written)
    if stopping is not None:
        await stopping
    await asyncio.sleep(60)
    assert len(client.written) == before, "written after the response was over"
    assert client.faults == []
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert seen.value("llm_api_streams_active", transport="sse") == 0
    assert seen.value("llm_api_stream_ends_total", transport="sse", reason=seen.outcome) == 1
    return seen


# When what is written


@without_waiting
async def test_the_status_goes_out_with_the_first_event() -> None:
    seen = await respond(Stream(opening=[0.25], chunks=["a", 1.0, "b"]))
    assert seen.written == [(0.25, START), (0.25, "a"), (1.25, "b"), (1.25, "END")]
    assert (seen.outcome, seen.client.ends, seen.raised) == ("complete", 1, None)


@without_waiting
async def test_a_silent_beginning_is_broken_at_once_and_then_again_and_again() -> None:
    seen = await respond(Stream(opening=[40.0]))
    assert seen.written == [
        *[(0.5, START), (0.5, SILENT), (15.5, SILENT), (30.5, SILENT)],
        *[(40.0, "a"), (40.0, "b"), (40.0, "END")],
    ]


@without_waiting
async def test_silence_is_counted_from_the_last_event() -> None:
    seen = await respond(Stream(chunks=["a", 14.0, "b", 14.0, "c", 40.0]))
    assert seen.comments == [43.0, 58.0]
    assert seen.told == [START, "a", "b", "c", "END"]


@without_waiting
async def test_a_stream_that_goes_on_writing_has_no_comments() -> None:
    pair: list[Step] = ["a", 14.5]
    seen = await respond(Stream(chunks=pair * 20))
    assert seen.comments == []


@without_waiting
async def test_chunks_that_give_nothing_to_write_do_not_break_the_silence() -> None:
    seen = await respond(Stream(chunks=["a", 10.0, "", 10.0, "", 10.0, "b"]))
    assert seen.comments == [15.0, 30.0]


@pytest.mark.parametrize("first", ["a", GONE])
@without_waiting
async def test_a_first_content_just_when_the_status_is_due_is_told_once(first: Step) -> None:
    for moment in (HEADERS_AFTER_S, HEADERS_AFTER_S - 1e-9, HEADERS_AFTER_S + 1e-9):
        opening: list[Step] = [moment] if isinstance(first, str) else [moment, first]
        seen = await respond(Stream(opening=opening, chunks=[first]))
        if seen.raised is not None:
            assert (seen.raised, seen.written) == (GONE, [])
        else:
            assert seen.told == [START, *(["a", "END"] if first == "a" else ["FAILED upstream_unavailable"])]
            assert len(seen.comments) <= 1


@without_waiting
async def test_no_comment_waits_in_line_for_a_client_that_does_not_read() -> None:
    seen = await respond(Stream(opening=[0.25], chunks=["a", 1.0, "b", 40.0]), Client(stuck=(1.0, 100.0)))
    assert seen.written == [
        *[(0.25, START), (0.25, "a"), (100.0, "b"), (115.0, SILENT), (130.0, SILENT)],
        (140.0, "END"),
    ]


@pytest.mark.parametrize(("opening", "third"), [(2.0, (100.0, "a")), (200.0, (115.0, SILENT))])
@without_waiting
async def test_an_event_waits_for_the_comment_that_is_being_written(opening: float, third: tuple[float, str]) -> None:
    seen = await respond(Stream(opening=[opening]), Client(stuck=(0.0, 100.0)))
    assert seen.written[:3] == [(100.0, START), (100.0, SILENT), third]
    assert seen.told == [START, "a", "b", "END"]


@without_waiting
async def test_an_end_waits_for_the_comment_that_is_being_written() -> None:
    seen = await respond(Stream(chunks=["a", 20.0]), Client(stuck=(10.0, 100.0)))
    assert seen.written == [(0.0, START), (0.0, "a"), (100.0, SILENT), (100.0, "END")]


@without_waiting
async def test_a_preface_goes_out_with_the_status_and_once() -> None:
    assert (await respond(Stream(), preface=b"PRE")).told == [START, "PRE", "a", "b", "END"]
    late = await respond(Stream(opening=[1.0]), preface=b"PRE")
    assert [text for _, text in late.written] == [START, "PRE", SILENT, "a", "b", "END"]
    assert (await respond(Stream(opening=[GONE]), preface=b"PRE")).written == []


@without_waiting
async def test_headers_can_be_added_before_and_after_the_response_is_made() -> None:
    client = Client()
    response = EventStreamResponse(Stream().open(), Plain(), headers=[(b"x-stream-id", b"str_1")])
    response.headers["request-id"] = "my-id"
    resources = SimpleNamespace(
        metrics=Metrics(CollectorRegistry()), drain=Drain(DrainSettings()), settings=SimpleNamespace(streams=SETTINGS)
    )
    await response(
        {"type": "http", "state": {"resources": resources}, "received_at": 0.0, "request_id": "r"},
        client.receive,
        client.send,
    )
    assert dict(client.headers) == {
        b"content-type": b"text/event-stream; charset=utf-8",
        b"cache-control": b"no-cache, no-transform",
        b"x-accel-buffering": b"no",
        b"x-stream-id": b"str_1",
        b"request-id": b"my-id",
    }


@without_waiting
async def test_only_content_is_a_first_token() -> None:
    count = "llm_api_time_to_first_token_seconds_count"
    seen = await respond(Stream(opening=[40.0, GONE]))
    assert len(seen.comments) == 3
    assert seen.value(count, transport="sse") == 0
    seen = await respond(Stream(opening=[40.0]))
    assert seen.value(count, transport="sse") == 1


# What goes wrong

EARLY, LATE = 0.25, 2.0
"""Before and after the status is out by itself."""


@pytest.mark.parametrize(("error", "outcome"), [(GONE, "error"), (Draining("stopping"), "draining"), (DEFECT, "error")])
@without_waiting
async def test_what_fails_before_the_status_is_raised(error: Exception, outcome: str) -> None:
    seen = await respond(Stream(opening=[EARLY, error]))
    assert (seen.raised, seen.written, seen.outcome) == (error, [], outcome)


CODES = [(GONE, "upstream_unavailable", "error"), (Draining("stopping"), "draining", "draining")]
FAILURES = [*CODES, (DEFECT, "internal_error", "error")]


@pytest.mark.parametrize(("error", "code", "outcome"), FAILURES)
@pytest.mark.parametrize("place", ["opening", "first", "later"])
@without_waiting
async def test_what_fails_after_the_status_is_the_one_terminal_event(
    place: str, error: Exception, code: str, outcome: str
) -> None:
    stream = {
        "opening": Stream(opening=[LATE, error]),
        "first": Stream(chunks=["a", error]),
        "later": Stream(opening=[LATE], chunks=["a", LATE, error, "b"]),
    }[place]
    seen = await respond(stream)
    assert seen.told == [START, *([] if place == "opening" else ["a"]), f"FAILED {code}"]
    assert (seen.client.ends, seen.raised, seen.outcome) == (1, None, outcome)
    assert seen.value("llm_api_unhandled_errors_total", place="stream") == (error is DEFECT)


@pytest.mark.parametrize(("broken", "told"), [("b", [START, "a"]), ("end", [START, "a", "b"])])
@without_waiting
async def test_a_defect_of_the_framing_is_an_error_event(broken: str, told: list[str]) -> None:
    seen = await respond(Stream(), framing=Plain(broken))
    assert seen.told == [*told, "FAILED internal_error"]
    assert (seen.client.ends, seen.outcome, seen.raised) == (1, "error", None)
    assert seen.stream.closed_at is not None


@without_waiting
async def test_a_first_chunk_that_cannot_be_framed_is_an_error_event_too() -> None:
    seen = await respond(Stream(), framing=Plain("chunk"))
    assert (seen.told, seen.outcome) == ([START, "FAILED internal_error"], "error")


@without_waiting
async def test_a_failure_that_cannot_be_framed_leaves_the_stream_cut_and_never_passed_off_as_whole() -> None:
    seen = await respond(Stream(chunks=["a", GONE]), framing=Plain("failure"))
    assert (seen.told, seen.client.ends, seen.raised, seen.outcome) == ([START, "a"], 0, DEFECT, "error")


@pytest.mark.parametrize("error", [GONE, DEFECT])
@pytest.mark.parametrize("chunks", [["a", "b"], ["a", 20.0, "b"]])
@without_waiting
async def test_what_fails_while_the_stream_closes_comes_after_the_end_and_is_not_told(
    error: Exception, chunks: list[Step]
) -> None:
    seen = await respond(Stream(chunks=chunks, closing=[1.0, error]))
    assert (seen.told, seen.client.ends, seen.outcome) == ([START, "a", "b", "END"], 1, "complete")
    assert seen.raised is None
    assert seen.value("llm_api_unhandled_errors_total", place="stream") == (error is DEFECT)


@without_waiting
async def test_the_end_does_not_wait_for_the_stream_to_close() -> None:
    seen = await respond(Stream(closing=[40.0]))
    assert seen.written[-1] == (0.0, "END")
    assert seen.stream.closed_at == 40.0


@pytest.mark.parametrize("opening", [EARLY, LATE])
@without_waiting
async def test_a_stream_with_nothing_left_ends_without_a_word(opening: float) -> None:
    seen = await respond(Stream(opening=[opening, StreamOver()]))
    assert seen.outcome == "complete"
    if opening == EARLY:
        assert isinstance(seen.raised, StreamOver)
        assert seen.written == []
    else:
        assert (seen.raised, seen.told, seen.client.ends) == (None, [START, ""], 1)


class Swallowing(Stream):
    """Lets vanish what ends it."""

    @override
    @asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[str]]:
        with contextlib.suppress(BaseException):
            yield taken(self.chunks)


@without_waiting
async def test_a_stream_that_swallows_its_own_end_still_has_one() -> None:
    seen = await respond(Swallowing(chunks=["a", 1.0]), framing=Plain("end", "failure"))
    assert (seen.told, seen.client.ends, seen.outcome) == ([START, "a"], 0, "error")
    seen = await respond(Swallowing(chunks=["a", 9.0]), Client(leaves_at=5.0))
    assert (seen.outcome, seen.raised) == ("client_disconnect", None)
    seen = await respond(Swallowing(chunks=["a", 9.0]), cut_at=5.0)
    assert (seen.told, seen.outcome) == ([START, "a", "FAILED draining"], "draining")


# A client that leaves

MOMENTS = [
    Stream(opening=[9.0]),
    Stream(chunks=["a", 9.0, "b"]),
    Stream(opening=[LATE], chunks=["a", 20.0, "b"]),
    Stream(opening=[9.0], closing=[GONE]),
    Stream(chunks=["a", 9.0], closing=[1.0, DEFECT]),
]


@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("leaves_at", [EARLY, HEADERS_AFTER_S, 5.0])
@pytest.mark.parametrize("stream", MOMENTS, ids=range(len(MOMENTS)))
@without_waiting
async def test_leaving_closes_the_stream_and_nothing_more_is_written(
    stream: Stream, leaves_at: float, *, breaks: bool
) -> None:
    stream = Stream(stream.opening, stream.chunks, stream.closing)
    seen = await respond(stream, Client(leaves_at, breaks=breaks))
    assert (seen.outcome, seen.raised, seen.client.ends) == ("client_disconnect", None, 0)
    assert all(at < leaves_at for at, _ in seen.written)
    if not stream.closing and leaves_at > sum(step for step in stream.opening if isinstance(step, float)):
        assert stream.closed_at == leaves_at


@without_waiting
async def test_a_client_that_leaves_while_a_comment_is_stuck_is_let_go() -> None:
    client = Client(leaves_at=5.0, stuck=(0.0, 100.0))
    seen = await respond(Stream(opening=[50.0]), client)
    assert (seen.outcome, seen.written, seen.raised) == ("client_disconnect", [], None)
    assert seen.over_at == 5.0


@without_waiting
async def test_a_write_that_the_server_refuses_is_a_departure() -> None:
    client = Client(leaves_at=1.0, breaks=True)
    stream = Stream(chunks=["a", 1.0, "b", 9.0])
    seen = await respond(stream, client)
    assert (seen.told, seen.outcome, stream.closed_at) == ([START, "a"], "client_disconnect", 1.0)
    assert seen.value("llm_api_unhandled_errors_total", place="stream") == 0


@without_waiting
async def test_a_client_that_was_too_slow_is_counted_as_that() -> None:
    seen = await respond(Stream(chunks=["a", 9.0]), Client(leaves_at=5.0, is_slow=True))
    assert seen.outcome == "slow_client"
    seen = await respond(Stream(), Client(is_slow=True))
    assert seen.outcome == "slow_client"


@pytest.mark.parametrize("opening", [EARLY, 9.0])
@without_waiting
async def test_a_task_that_is_cancelled_from_outside_says_so(opening: float) -> None:
    stream = Stream(opening=[opening], chunks=["a", 30.0])
    serving = asyncio.create_task(respond(stream))
    await asyncio.sleep(5.0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert asyncio.all_tasks() == {asyncio.current_task()}


# A process that stops


@without_waiting
async def test_a_stop_before_the_status_is_a_status() -> None:
    stream = Stream(opening=[9.0])
    seen = await respond(stream, cut_at=EARLY)
    assert isinstance(seen.raised, Draining)
    assert (seen.written, seen.outcome) == ([], "draining")


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (Stream(opening=[9.0]), [START]),
        (Stream(chunks=["a", 9.0, "b"]), [START, "a"]),
        (Stream(chunks=["a", 9.0, "b"], closing=[1.0]), [START, "a"]),
        (Stream(chunks=["a", 9.0, "b"], closing=[1.0, GONE]), [START, "a"]),
        (Stream(opening=[1.0], chunks=["a", 9.0], closing=[DEFECT]), [START, "a"]),
    ],
)
@without_waiting
async def test_a_stop_after_the_status_is_the_terminal_event(stream: Stream, told: list[str]) -> None:
    stream = Stream(stream.opening, stream.chunks, stream.closing)
    seen = await respond(stream, cut_at=5.0)
    assert seen.told == [*told, "FAILED draining"]
    assert (seen.client.ends, seen.outcome, seen.raised) == (1, "draining", None)


@without_waiting
async def test_the_upstream_is_closed_before_a_stop_is_told() -> None:
    stream = Stream(chunks=["a", 9.0], closing=[2.0])
    seen = await respond(stream, cut_at=5.0)
    assert stream.closed_at == 7.0
    assert seen.written[-1] == (7.0, "FAILED draining")


@pytest.mark.parametrize("chunks", [["a", 2.0, "b", 9.0], ["a", 30.0]])
@without_waiting
async def test_a_stop_reaches_a_client_that_did_not_read_for_a_while(chunks: list[Step]) -> None:
    seen = await respond(Stream(chunks=chunks), Client(stuck=(1.0, 20.0)), cut_at=5.0)
    assert seen.told == [START, "a", "FAILED draining"]
    assert (seen.written[-1][0], seen.client.ends, seen.outcome) == (20.0, 1, "draining")


@without_waiting
async def test_a_stop_while_the_status_is_stuck_behind_another_answer_is_told_once() -> None:
    seen = await respond(Stream(opening=[9.0]), Client(stuck=(0.0, 20.0)), cut_at=5.0)
    assert (seen.told, seen.comments) == ([START, "FAILED draining"], [20.0])
    seen = await respond(Stream(), Client(stuck=(0.0, 20.0)), cut_at=5.0)
    assert isinstance(seen.raised, Draining)
    assert seen.written == []


@without_waiting
async def test_a_stop_never_makes_a_second_status() -> None:
    client = Client(stuck=(0.0, 20.0), holds_behind=True)
    seen = await respond(Stream(opening=[2.0]), client, cut_at=5.0)
    assert (seen.told, seen.outcome, seen.raised) == ([START, "FAILED draining"], "draining", None)


class Translating(Stream):
    """Says that it failed where it was cancelled."""

    @override
    @asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[str]]:
        async def chunks() -> AsyncIterator[str]:
            try:
                async for chunk in taken(self.chunks):
                    yield chunk
            except asyncio.CancelledError:
                raise GONE from None

        yield chunks()


@without_waiting
async def test_a_cancellation_that_comes_back_as_a_failure_is_still_one() -> None:
    seen = await respond(Translating(chunks=["a", 9.0]), Client(leaves_at=5.0))
    assert (seen.told, seen.outcome, seen.raised) == ([START, "a"], "client_disconnect", None)
    seen = await respond(Translating(chunks=["a", 9.0]), cut_at=5.0)
    assert (seen.told, seen.outcome, seen.raised) == ([START, "a", "FAILED draining"], "draining", None)


@without_waiting
async def test_a_stop_that_meets_a_departure_is_no_defect() -> None:
    client = Client(leaves_at=1.0, stuck=(0.0, 7.0), breaks=True)
    seen = await respond(Stream(opening=[3.0]), client, cut_at=1.0)
    assert (seen.written, seen.raised, seen.outcome in {"client_disconnect", "draining"}) == ([], None, True)


@without_waiting
async def test_a_stop_behind_the_end_does_not_matter() -> None:
    stream = Stream(closing=[9.0])
    seen = await respond(stream, cut_at=5.0)
    assert (seen.told, seen.outcome, seen.raised) == ([START, "a", "b", "END"], "complete", None)


# All of it

moments = st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0, 7.0, 15.0, 15.5, 33.0])
steps = st.lists(st.one_of(moments, st.sampled_from(["a", "b", "", GONE, DEFECT])), max_size=8)


@given(
    stream=st.builds(
        Stream,
        opening=st.lists(st.one_of(moments, st.just(GONE)), max_size=2),
        chunks=steps,
        closing=st.lists(moments, max_size=1),
    ),
    leaves_at=st.one_of(st.none(), st.floats(0.0, 80.0)),
    stuck=st.tuples(moments, moments).map(lambda pair: (pair[0], pair[0] + pair[1])),
    cut_at=st.one_of(st.none(), st.floats(0.125, 80.0)),
    breaks=st.booleans(),
)
def test_whatever_happens_a_stream_ends_once_and_is_never_silent_for_long(
    stream: Stream, leaves_at: float | None, stuck: tuple[float, float], cut_at: float | None, *, breaks: bool
) -> None:
    client = Client(leaves_at, stuck, breaks=breaks)
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        seen = runner.run(respond(stream, client, cut_at=cut_at))
    told = seen.told
    if seen.raised is not None:
        assert (seen.written, isinstance(seen.raised, ServiceError)) == ([], True)
    elif seen.outcome == "client_disconnect":
        assert client.ends == 0
    elif client.ends == 0:
        # It left just when the end was written: servers then take what is written, and nobody gets it.
        assert leaves_at is not None
    else:
        assert told[0] == START
        assert told[-1] == "END" if seen.outcome == "complete" else told[-1].startswith("FAILED")
        chunks = [step for step in stream.chunks if isinstance(step, str) and step]
        assert told[1:-1] == chunks[: len(told) - 2]
    if leaves_at is None and cut_at is None and stuck[0] == stuck[1] and seen.raised is None:
        times = [at for at, _ in seen.written]
        assert times[0] <= HEADERS_AFTER_S
        assert all(later - at <= KEEPALIVE_S for at, later in itertools.pairwise(times))
