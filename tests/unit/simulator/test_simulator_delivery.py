"""Delivery stepped by hand: a loop that only records its timers, and a wire that blocks when told."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, cast

import pytest

from service.simulator.delivery import Delivery
from service.simulator.ledger import Call, Ledger
from service.simulator.plan import Frame, Pace, Plan, Script, Trip


class RecordingLoop:
    """Keeps the one step that is due, and how long it was to wait."""

    def __init__(self) -> None:
        self.step: Callable[[], None] | None = None
        self.delays: list[float] = []

    def call_later(self, delay_s: float, step: Callable[[], None]) -> asyncio.Handle:
        self.delays.append(delay_s)
        return self.call_soon(step)

    def call_soon(self, step: Callable[[], None]) -> asyncio.Handle:
        assert self.step is None, "a delivery waits for one thing at a time"
        self.step = step
        return cast("asyncio.Handle", self)

    def cancel(self) -> None:
        self.step = None

    def run(self) -> bool:
        step, self.step = self.step, None
        if step is not None:
            step()
        return step is not None


class FakeWire:
    def __init__(self) -> None:
        self.paused = False
        self.blocks_after = 10**9
        self.writes: list[bytes] = []
        self.end: str | None = None

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        self.paused = len(self.writes) >= self.blocks_after

    def reset(self) -> None:
        self.end = "reset"

    def cut(self) -> None:
        self.end = "cut"

    def delivered(self, *, reusable: bool) -> None:
        self.end = "reusable" if reusable else "closed"


class Bench:
    def __init__(self, *, http10: bool = False, tokens: int = 5, stream: bool = True, **plan: Any) -> None:
        def frames() -> Iterator[Frame]:
            for number in range(tokens):
                yield b"[%d]" % number, 1
            yield b"(end)", 0

        self.ledger, self.loop, self.wire = Ledger(), RecordingLoop(), FakeWire()
        self.call: Call = self.ledger.open_call(self.ledger.open_connection(), "openai", "/", "req_")
        made = Plan(b"HEAD\r\n", call=self.call, **plan)
        if stream:
            made.script = Script(b"(begin)", frames(), chunks=tokens)
        self.delivery = Delivery(
            self.wire,
            made,
            self.ledger,
            cast("asyncio.AbstractEventLoop", self.loop),
            keep_alive=True,
            http10=http10,
        )
        self.delivery.start()

    def run(self) -> "Bench":
        while self.loop.run():
            pass
        return self

    @property
    def body(self) -> bytes:
        data = b"".join(self.wire.writes).partition(b"\r\n\r\n")[2]
        body = b""
        while data:
            size, _, rest = data.partition(b"\r\n")
            body += rest[: int(size, 16)]
            data = rest[int(size, 16) + 2 :]
        return body


WHOLE = b"(begin)[0][1][2][3][4](end)"
SLOW = Pace(first_s=5.0, gap_s=2.0)


def test_a_paced_stream_makes_one_write_for_each_token_and_waits_between() -> None:
    bench = Bench(pace=SLOW).run()
    assert len(bench.wire.writes) == 5
    assert bench.wire.writes[0].startswith(b"HEAD\r\ntransfer-encoding: chunked\r\n\r\n")
    assert bench.body == WHOLE
    assert bench.wire.writes[-1].endswith(b"5\r\n(end)\r\n0\r\n\r\n")
    # The clock of the delivery runs ahead of the real one, which stands still here: each token's due time counts.
    assert [round(delay) for delay in bench.loop.delays] == [5, 7, 9, 11, 13]
    assert (bench.call.output_tokens_delivered, bench.call.finished, bench.wire.end) == (5, True, "reusable")


def test_a_burst_is_one_write() -> None:
    bench = Bench().run()
    assert len(bench.wire.writes) == 1
    assert bench.body == WHOLE


def test_a_long_burst_lets_others_have_their_turn() -> None:
    bench = Bench(tokens=50_000).run()
    assert 3 <= len(bench.wire.writes) <= 10
    assert bench.call.output_tokens_delivered == 50_000


def test_jitter_stays_within_its_fraction_and_repeats() -> None:
    def gaps(number: int) -> list[float]:
        bench = Bench(tokens=200, pace=Pace(first_s=10.0, gap_s=10.0, jitter=0.5, number=number)).run()
        due = [0.0, *bench.loop.delays]
        return [round(later - sooner, 1) for sooner, later in pairwise(due)]

    first = gaps(7)
    assert all(4.8 <= gap <= 15.2 for gap in first)
    assert max(first) > 14
    assert min(first) < 6
    assert [round(gap) for gap in gaps(8)] != [round(gap) for gap in first]
    assert all(abs(again - gap) < 0.3 for again, gap in zip(gaps(7), first, strict=True))


def test_early_headers_send_the_preamble_before_the_first_wait() -> None:
    bench = Bench(pace=SLOW, early_headers=True)
    assert bench.body == b"(begin)"
    assert bench.run().body == WHOLE
    assert round(bench.loop.delays[0]) == 5
    assert Bench(pace=Pace(first_s=5.0), early_headers=True).body == b"(begin)"


def test_a_slow_reader_stops_the_production_and_what_it_did_not_take_is_not_delivered() -> None:
    bench = Bench(pace=SLOW)
    bench.wire.blocks_after = 2
    bench.run()
    assert len(bench.wire.writes) == 2
    assert bench.call.output_tokens_delivered == 1
    bench.wire.blocks_after = 10**9
    bench.wire.paused = False
    bench.delivery.resume()
    assert bench.call.output_tokens_delivered == 2
    assert bench.run().body == WHOLE
    assert bench.call.output_tokens_delivered == 5


def test_a_whole_answer_counts_when_the_reader_has_taken_it() -> None:
    bench = Bench(stream=False, body=b"{}", tokens=0)
    assert bench.wire.writes == [b"HEAD\r\ncontent-length: 2\r\n\r\n{}"]
    assert bench.call.finished


def test_a_client_that_leaves_a_blocked_stream_has_had_only_what_it_took() -> None:
    bench = Bench(pace=SLOW)
    bench.wire.blocks_after = 3
    bench.run()
    bench.delivery.abandon()
    assert (bench.call.output_tokens_delivered, bench.call.client_left, bench.call.finished) == (2, True, False)


def test_leaving_while_waiting_cancels_the_wait() -> None:
    bench = Bench(pace=SLOW)
    bench.delivery.abandon()
    assert bench.loop.step is None
    assert (bench.call.output_tokens_delivered, bench.call.client_left) == (0, True)


@pytest.mark.parametrize("kind", ["reset", "cut"])
@pytest.mark.parametrize("place", range(len(WHOLE)))
def test_a_fault_after_k_bytes_sends_exactly_k_bytes(kind: Any, place: int) -> None:
    bench = Bench(pace=SLOW, trip=Trip(kind, after_bytes=place)).run()
    assert bench.body == WHOLE[:place]
    assert not b"".join(bench.wire.writes).endswith(b"0\r\n\r\n")
    assert (bench.wire.end, bench.call.finished, bench.call.client_left) == (kind, False, False)
    assert bench.call.output_tokens_delivered == WHOLE[:place].count(b"]")


def test_a_fault_after_n_chunks_sends_exactly_n_tokens() -> None:
    for place, sent in [(0, b"(begin)"), (2, b"(begin)[0][1]"), (99, b"(begin)[0][1][2][3][4]")]:
        assert Bench(trip=Trip("cut", after_chunks=place)).run().body == sent


def test_a_stall_goes_on_where_it_stopped() -> None:
    for place in range(len(WHOLE)):
        bench = Bench(trip=Trip("stall", after_bytes=place, stall_s=60.0))
        assert bench.body == WHOLE[:place]
        assert bench.run().body == WHOLE
        assert bench.call.output_tokens_delivered == 5


def test_a_stall_without_an_end_waits_for_the_client_to_leave() -> None:
    bench = Bench(trip=Trip("stall")).run()
    assert bench.wire.writes == []
    assert bench.call.closed_at is None
    bench.delivery.abandon()
    assert bench.call.client_left


def test_a_whole_body_is_cut_in_the_middle() -> None:
    bench = Bench(stream=False, body=b"0123456789", trip=Trip("cut", after_chunks=3)).run()
    assert b"".join(bench.wire.writes) == b"HEAD\r\ncontent-length: 10\r\n\r\n01234"


@pytest.mark.parametrize("size", range(1, 9))
def test_chunk_bytes_cut_the_body_into_http_chunks_each_its_own_write(size: int) -> None:
    bench = Bench(chunk_bytes=size).run()
    assert bench.body == WHOLE
    pieces = bench.wire.writes[1:-1]
    assert [int(piece.partition(b"\r\n")[0], 16) for piece in pieces[:-1]] == [size] * (len(pieces) - 1)
    assert bench.wire.writes[-1] == b"0\r\n\r\n"
    assert bench.call.output_tokens_delivered == 5


def test_slow_headers_come_byte_by_byte() -> None:
    bench = Bench(header_gap_s=0.5).run()
    head = b"HEAD\r\ntransfer-encoding: chunked\r\n\r\n"
    assert bench.wire.writes[: len(head)] == [bytes([byte]) for byte in head]
    assert bench.body == WHOLE


def test_http_1_0_gets_a_stream_that_ends_with_the_connection() -> None:
    bench = Bench(http10=True).run()
    assert b"".join(bench.wire.writes) == b"HEAD\r\nconnection: close\r\n\r\n" + WHOLE
    assert bench.wire.end == "closed"
