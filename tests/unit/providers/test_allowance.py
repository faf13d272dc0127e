"""What vendors say is left, as it is read, and as it must stand by now."""

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.domain.clock import ManualClock
from service.providers.allowance import (
    ASK_S,
    LAPSE_S,
    LISTEN_S,
    MAX_RESET_S,
    WAY_S,
    Allowance,
    Left,
    Mark,
    Resource,
    go_duration_s,
    read_anthropic,
    read_openai,
    refill_per_s,
)
from service.simulator.limits import Standing, TokenBucket, Verdict, anthropic_headers, go_duration, openai_headers


def openai(limit: object = 60, remaining: object = 59, reset: str = "1s", resource: str = "requests") -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{resource}": str(limit),
        f"x-ratelimit-remaining-{resource}": str(remaining),
        f"x-ratelimit-reset-{resource}": reset,
    }


def anthropic(resource: str, limit: object, remaining: object, reset: str = "2026-11-25T12:00:30Z") -> dict[str, str]:
    return {
        f"anthropic-ratelimit-{resource}-limit": str(limit),
        f"anthropic-ratelimit-{resource}-remaining": str(remaining),
        f"anthropic-ratelimit-{resource}-reset": reset,
    }


def lines(text: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in text.splitlines())


# Reading.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0.0),
        ("12ms", 0.012),
        ("1s", 1.0),
        ("1.5s", 1.5),
        ("6m0s", 360.0),
        ("2m59.56s", 179.56),
        ("1h0m3s", 3_603.0),
        ("250\u00b5s", 0.000_25),
        ("250\u03bcs", 0.000_25),
        ("7ns", 7e-9),
    ],
)
def test_durations_are_read_as_go_writes_them(text: str, seconds: float) -> None:
    assert go_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "8", "1.5", "s", "-1s", "1s ", "1 s", "1s2", "1d", "1.2.3s", "\u0661s", "1e3s"])
def test_what_is_no_duration_is_none(text: str) -> None:
    assert go_duration_s(text) is None


@given(st.floats(0, 86_400 * 30))
def test_durations_come_back_as_they_were_written(seconds: float) -> None:
    assert go_duration_s(go_duration(seconds)) == pytest.approx(round(seconds, 3), abs=0.01, rel=1e-4)


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
@example("9" * 5_000, "1", "1s")
@example("60", "59", "9" * 400 + "h")
def test_no_header_makes_a_reader_fail_and_what_is_read_makes_sense(limit: str, remaining: str, reset: str) -> None:
    for left in (
        *read_openai(openai(limit, remaining, reset, "requests")),
        *read_openai(openai(limit, 0, reset, "tokens")),
        *read_anthropic(anthropic("requests", limit, remaining, reset)),
        *read_anthropic(anthropic("output-tokens", limit, 0, reset)),
    ):
        assert_sensible(left)


def assert_sensible(left: Left) -> None:
    assert left.limit >= 1
    assert 0 <= left.remaining <= left.limit
    assert left.reset_s is None or 0 <= left.reset_s <= MAX_RESET_S


limits = st.integers(1, 10**9)


@given(
    limits.flatmap(lambda limit: st.tuples(st.just(limit), st.integers(0, limit))),
    limits.flatmap(lambda limit: st.tuples(st.just(limit), st.integers(0, limit))),
    st.floats(0, 86_400),
)
def test_what_a_vendor_writes_is_read_as_it_was_meant(
    requests: tuple[int, int], tokens: tuple[int, int], reset_s: float
) -> None:
    verdict = Verdict(None, 0.0, (Standing("requests", *requests, reset_s), Standing("tokens", *tokens, reset_s)))
    meant = [("requests", *requests), ("tokens", *tokens)]
    found = read_openai(lines(openai_headers(verdict)))
    assert [(left.resource, left.limit, left.remaining) for left in found] == meant
    assert [left.reset_s for left in found] == [pytest.approx(reset_s, abs=0.01, rel=1e-4)] * 2
    found = read_anthropic(lines(anthropic_headers(verdict, 1_800_000_000.0)))
    assert [(left.resource, left.limit, left.remaining) for left in found] == meant
    assert [left.reset_s for left in found] == [None, None], "it is of no use: see ANTHROPIC_NAMES"


def test_all_of_anthropics_limits_are_read() -> None:
    headers = (
        anthropic("requests", 50, 49)
        | anthropic("tokens", 40_000, 39_000)
        | anthropic("input-tokens", 30_000, 29_000)
        | anthropic("output-tokens", 10_000, 8_000)
    )
    assert read_anthropic(headers) == (
        Left("requests", 50, 49),
        Left("tokens", 40_000, 39_000),
        Left("input_tokens", 30_000, 29_000, share=0.75),
        Left("output_tokens", 10_000, 8_000, share=0.25),
    )


@pytest.mark.parametrize(
    "headers",
    [
        {},
        openai(0, -1),
        openai(-1, 0),
        openai(60, -1),
        openai("60.5"),
        openai("a few"),
        openai(""),
        openai(10**13),
        openai(60, "59 or so"),
        {"x-ratelimit-limit-requests": "60"},
        {"x-ratelimit-remaining-requests": "60"},
    ],
)
def test_a_limit_that_is_none_or_cannot_be_read_is_unknown(headers: Mapping[str, str]) -> None:
    assert read_openai(headers) == ()
    assert read_anthropic(headers) == ()


def test_a_bad_limit_spoils_no_other() -> None:
    headers = openai(0, 0) | openai(1_000, 900, "soon", "tokens")
    assert read_openai(headers) == (Left("tokens", 1_000, 900, None),)


def test_more_than_the_limit_is_the_limit() -> None:
    assert read_openai(openai(60, 70)) == (Left("requests", 60, 60, 1.0),)


# What comes back.


@pytest.mark.parametrize(
    ("left", "per_s"),
    [
        (Left("requests", 60, 59, 1.0), 1.0),
        (Left("requests", 60, 60, 0.0), 1.0),
        (Left("requests", 60, 0, None), 1.0),
        (Left("requests", 60, 59, 5.0), 1.0),  # rounded, by another clock
        (Left("requests", 60, 0, 30.0), 1.0),
        (Left("requests", 10_000, 9_999, 8.64), 1 / 8.64),
        (Left("requests", 200, 0, 86_400.0), 200 / 86_400),
        (Left("requests", 14_400, 14_370, 179.56), 30 / 179.56),
    ],
)
def test_limits_are_a_minutes_unless_the_reset_says_that_they_are_a_days(left: Left, per_s: float) -> None:
    assert refill_per_s(left) == pytest.approx(per_s)


# What must be left by now.


class Bench:
    """An allowance, a clock, and calls that are sent and answered as the test says."""

    def __init__(self) -> None:
        self.allowance = Allowance()
        self.clock = ManualClock()

    def send(self, tokens: int = 0) -> Mark:
        now = self.clock.monotonic()
        self.allowance.begin(tokens, now)
        return self.allowance.mark(now)

    def hear(self, mark: Mark, *found: Left) -> None:
        self.allowance.hear(found, mark, self.clock.monotonic())

    def wait_s(self, tokens: int = 0, keep: float = 0.0) -> float:
        return self.allowance.wait_s(tokens, keep, self.clock.monotonic())


@pytest.fixture
def bench() -> Bench:
    return Bench()


def requests(remaining: int, limit: int = 60) -> Left:
    return Left("requests", limit, remaining)


def test_while_nothing_was_heard_nothing_is_waited_for(bench: Bench) -> None:
    for _ in range(1_000):
        bench.send(10**6)
    assert bench.wait_s(10**9, keep=1.0) == 0.0
    assert not bench.allowance.is_known(bench.clock.monotonic())


def test_what_is_left_is_what_may_be_sent(bench: Bench) -> None:
    bench.hear(bench.send(), requests(2))
    for _ in range(2):
        assert bench.wait_s() == 0.0
        bench.send()
    assert bench.wait_s() == pytest.approx(1.0)
    assert bench.allowance.is_known(bench.clock.monotonic())


def test_it_comes_back_continuously_and_never_beyond_the_limit(bench: Bench) -> None:
    bench.hear(bench.send(), requests(0, limit=120))
    bench.clock.advance(0.25)
    assert bench.wait_s() == pytest.approx(0.25)
    bench.clock.advance(bench.wait_s())
    assert bench.wait_s() == 0.0
    bench.hear(bench.send(), requests(9, limit=10))
    bench.clock.advance(LAPSE_S - 1)
    for _ in range(10):
        assert bench.wait_s() == 0.0
        bench.send()
    assert bench.wait_s() > 0.0


def test_calls_that_began_after_the_one_that_tells_are_not_in_its_word(bench: Bench) -> None:
    first = bench.send()
    for _ in range(3):
        bench.send()
    bench.hear(first, requests(3))
    assert bench.wait_s() == pytest.approx(1.0)


def test_calls_that_began_before_the_one_that_tells_are_in_its_word(bench: Bench) -> None:
    for _ in range(5):
        bench.send()
    bench.hear(bench.send(), requests(1))
    assert bench.wait_s() == 0.0


def test_a_call_that_fails_without_headers_stays_subtracted_until_the_next_word(bench: Bench) -> None:
    bench.hear(bench.send(), requests(1))
    bench.send()
    assert bench.wait_s() > 0.0
    bench.hear(bench.send(), requests(1))
    assert bench.wait_s() == 0.0


def test_an_older_call_that_answers_later_changes_nothing(bench: Bench) -> None:
    slow = bench.send()
    bench.clock.advance(WAY_S + 0.1)
    bench.hear(bench.send(), requests(30))
    bench.hear(slow, requests(0))
    assert bench.wait_s() == 0.0
    bench.hear(slow, requests(60))
    assert bench.wait_s(keep=0.6) > 0.0


def test_of_calls_that_may_have_been_reordered_the_lower_word_counts(bench: Bench) -> None:
    one, other = bench.send(), bench.send()
    bench.hear(other, requests(5))
    bench.hear(one, requests(0))
    assert bench.wait_s() == pytest.approx(1.0)
    bench.hear(one, requests(50))
    assert bench.wait_s() == pytest.approx(1.0)


def test_in_steady_use_slow_answers_cost_no_pause(bench: Bench) -> None:
    first = bench.send()
    for _ in range(50):
        bench.clock.advance(1.0)
        bench.send()
    bench.hear(first, requests(2))
    assert bench.wait_s() == 0.0, "as much came back as was sent while it ran"


def test_after_a_minute_without_news_nothing_is_known(bench: Bench) -> None:
    bench.hear(bench.send(), requests(0, limit=1))
    bench.clock.advance(LAPSE_S - 0.5)
    assert bench.wait_s() == pytest.approx(0.5)
    bench.clock.advance(0.5)
    assert bench.wait_s() == 0.0
    assert not bench.allowance.is_known(bench.clock.monotonic())


DAILY = Left("requests", 200, 0, 86_400.0)


def test_after_that_one_call_asks_what_is_left_of_what_was_used_up(bench: Bench) -> None:
    bench.hear(bench.send(), DAILY)
    bench.clock.advance(LAPSE_S)
    assert bench.wait_s() == 0.0
    asking = bench.send()
    assert bench.wait_s() == LISTEN_S
    bench.clock.advance(1.0)
    bench.hear(asking, DAILY)
    assert bench.wait_s() == LAPSE_S


def test_who_asks_and_hears_nothing_is_not_waited_for_longer_than_a_moment(bench: Bench) -> None:
    bench.hear(bench.send(), DAILY)
    bench.clock.advance(LAPSE_S)
    bench.send()
    bench.clock.advance(ASK_S - 0.1)
    assert bench.wait_s() == pytest.approx(0.1)
    bench.send()
    bench.clock.advance(0.1)
    for _ in range(10):
        assert bench.wait_s() == 0.0
        bench.send()


def test_nobody_waits_for_who_asks_where_enough_must_be_there(bench: Bench) -> None:
    bench.hear(bench.send(), requests(0))
    bench.clock.advance(LAPSE_S)
    for _ in range(60):
        assert bench.wait_s() == 0.0
        bench.send()
    assert bench.wait_s() == LISTEN_S


def test_call_that_is_not_sent_leaves_what_it_took_and_lets_another_ask(bench: Bench) -> None:
    bench.hear(bench.send(), requests(1), Left("tokens", 600, 100))
    bench.send(100)
    bench.allowance.give_back(100, bench.clock.monotonic())
    assert bench.wait_s(100) == 0.0
    assert bench.wait_s(110) == pytest.approx(1.0)
    bench.hear(bench.send(), DAILY)
    bench.clock.advance(LAPSE_S)
    bench.send()
    bench.allowance.give_back(0, bench.clock.monotonic())
    assert bench.wait_s() == 0.0


def test_no_wait_is_longer_than_the_word_is_good_for(bench: Bench) -> None:
    bench.hear(bench.send(), Left("requests", 200, 0, 86_400.0))
    assert bench.wait_s() == LAPSE_S


def test_a_word_that_was_a_minute_on_its_way_is_none(bench: Bench) -> None:
    mark = bench.send()
    bench.clock.advance(LAPSE_S)
    bench.hear(mark, requests(0))
    assert bench.wait_s() == 0.0


def test_after_a_lapse_any_word_is_news(bench: Bench) -> None:
    older = bench.send()
    bench.hear(bench.send(), requests(0))
    bench.clock.advance(LAPSE_S - 1)
    late = Mark(older.allowance, older.requests, older.tokens, bench.clock.monotonic())
    bench.clock.advance(1)
    bench.hear(late, requests(0))
    assert bench.wait_s() > 0.0


def test_tokens_are_waited_for_by_their_number(bench: Bench) -> None:
    bench.hear(bench.send(500), requests(10), Left("tokens", 6_000, 200))
    assert bench.wait_s(200) == 0.0
    assert bench.wait_s(700) == pytest.approx(5.0)
    bench.send(200)
    assert bench.wait_s(0) == 0.0
    assert bench.wait_s(100) == pytest.approx(1.0)


def test_a_call_larger_than_the_limit_waits_for_all_there_can_be(bench: Bench) -> None:
    bench.hear(bench.send(), Left("tokens", 6_000, 3_000))
    assert bench.wait_s(10**6) == bench.wait_s(6_000) == pytest.approx(30.0)
    bench.clock.advance(30.0)
    assert bench.wait_s(10**6) == 0.0


def test_input_and_output_count_for_their_share(bench: Bench) -> None:
    found = (Left("input_tokens", 30_000, 900, None, 0.75), Left("output_tokens", 10_000, 100, None, 0.25))
    bench.hear(bench.send(), *found)
    assert bench.wait_s(400) == 0.0
    bench.send(400)
    assert bench.wait_s(400) == pytest.approx(100 / (10_000 / 60))


def test_a_part_of_the_limit_can_be_kept(bench: Bench) -> None:
    bench.hear(bench.send(), requests(4))
    assert bench.wait_s() == 0.0
    assert bench.wait_s(keep=0.05) == 0.0
    assert bench.wait_s(keep=0.1) == pytest.approx(3.0)
    assert bench.wait_s(keep=1.0) == pytest.approx(56.0), "more than all is all"


def test_waiting_is_told_without_a_change(bench: Bench) -> None:
    bench.hear(bench.send(), requests(1), Left("tokens", 600, 100))
    waits = {bench.wait_s(tokens, keep) for tokens, keep in ((50, 0.0), (50, 0.0)) for _ in range(3)}
    assert waits == {0.0}


def test_a_new_limit_takes_the_place_of_the_old(bench: Bench) -> None:
    bench.hear(bench.send(), requests(0, limit=60))
    bench.hear(bench.send(), requests(0, limit=600))
    assert bench.wait_s() == pytest.approx(0.1)


def test_each_limit_goes_by_its_own_news(bench: Bench) -> None:
    bench.hear(bench.send(), requests(0), Left("tokens", 600, 0))
    bench.clock.advance(0.5)
    bench.hear(bench.send(), requests(10))
    assert bench.wait_s() == 0.0
    assert bench.wait_s(10) == pytest.approx(0.5)
    assert bench.allowance.ratios(bench.clock.monotonic()) == {"requests": 10 / 60, "tokens": 0.0}


# The law: alone with a key, a call that it lets pass is one that the vendor lets pass.


@dataclass(frozen=True)
class Planned:
    """A call that somebody wants to make: how long after the one before, how large, and how slow to answer."""

    after_s: float
    tokens: int
    answer_s: float


class Vendor:
    """Its buckets, and the way there and back; refuses nothing, but fails where it would have to."""

    def __init__(self, requests_per_minute: int, tokens_per_minute: int, *, way_s: float) -> None:
        self.clock = ManualClock(monotonic=0.0)
        self.allowance = Allowance()
        self.under_way: list[tuple[float, int, Callable[[], None]]] = []
        """What happens when; in order of time, and of calls."""
        self._requests = TokenBucket(requests_per_minute, 0.0)
        self._tokens = TokenBucket(tokens_per_minute, 0.0)
        self._way_s = way_s
        self._events = count()

    def send(self, call: Planned) -> None:
        now = self.clock.monotonic()
        self.allowance.begin(call.tokens, now)
        self._push(now + self._way_s, partial(self._arrive, call, self.allowance.mark(now)))

    def run_until(self, end: float) -> None:
        while self.under_way and self.under_way[0][0] <= end:
            at, _, happens = heapq.heappop(self.under_way)
            self.clock.advance(max(0.0, at - self.clock.monotonic()))
            happens()
        self.clock.advance(max(0.0, end - self.clock.monotonic()))

    def _arrive(self, call: Planned, mark: Mark) -> None:
        now = self.clock.monotonic()
        for bucket, amount in ((self._requests, 1), (self._tokens, call.tokens)):
            # While a call was on its way to a full bucket nothing came back: by so much it may be too early.
            assert bucket.wait_s(amount, now) <= self._way_s + 1e-6, f"refused at {now}"
            bucket.take(amount, now)
        self._push(now + call.answer_s + self._way_s, partial(self._hear, mark, self._told()))

    def _hear(self, mark: Mark, found: tuple[Left, ...]) -> None:
        self.allowance.hear(found, mark, self.clock.monotonic())

    def _told(self) -> tuple[Left, ...]:
        now = self.clock.monotonic()
        buckets: tuple[tuple[Resource, TokenBucket], ...] = (("requests", self._requests), ("tokens", self._tokens))
        return tuple(Left(name, bucket.capacity, max(0, math.floor(bucket.level(now)))) for name, bucket in buckets)

    def _push(self, at: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self.under_way, (at, next(self._events), happens))


planned = st.builds(
    Planned,
    st.one_of(st.just(0.0), st.floats(0, 3), st.floats(0, 30)),
    st.integers(0, 400),
    st.one_of(st.floats(0, 0.5), st.floats(0, 50)),
)


@given(
    calls=st.lists(planned, min_size=1, max_size=60),
    requests_per_minute=st.integers(1, 120),
    tokens_per_minute=st.integers(400, 6_000),
    way_s=st.floats(0, WAY_S),
)
def test_alone_with_a_key_what_passes_here_passes_there(
    calls: list[Planned], requests_per_minute: int, tokens_per_minute: int, way_s: float
) -> None:
    vendor = Vendor(requests_per_minute, tokens_per_minute, way_s=way_s)
    for call in calls:
        vendor.run_until(vendor.clock.monotonic() + call.after_s)
        now = vendor.clock.monotonic()
        if not vendor.allowance.is_known(now) and vendor.under_way:
            continue  # one call asks, and its word is waited for
        if not vendor.allowance.wait_s(call.tokens, 0.0, now):
            vendor.send(call)
    vendor.run_until(vendor.clock.monotonic() + 60.0)
