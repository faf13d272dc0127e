"""Rate limits: what they admit, what they say, and whether it is true."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.simulator.limits import FREE, Limits, TokenBucket, anthropic_headers, go_duration, openai_headers

SECONDS = st.floats(0, 100, allow_nan=False)


@given(st.integers(1, 1000), st.lists(st.tuples(SECONDS, st.integers(1, 50)), max_size=60))
def test_a_bucket_never_hands_out_more_than_its_capacity_and_what_time_refilled(
    per_minute: int, calls: list[tuple[float, int]]
) -> None:
    bucket = TokenBucket(per_minute, now=0.0)
    now = handed_out = 0.0
    for pause_s, amount in calls:
        now += pause_s
        if bucket.wait_s(amount, now) == 0:
            bucket.take(amount, now)
            handed_out += amount
        assert handed_out <= per_minute + per_minute / 60 * now + 1e-6


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 1000))
def test_who_waits_as_long_as_told_is_admitted(per_minute: int, first: int, second: int) -> None:
    bucket = TokenBucket(per_minute, now=0.0)
    if first <= per_minute:
        bucket.take(first, 0.0)
    wait_s = bucket.wait_s(second, 0.0)
    if second > per_minute:
        assert wait_s == math.inf
    else:
        if wait_s > 0.002:
            assert bucket.wait_s(second, wait_s - 0.001) > 0
        assert bucket.wait_s(second, wait_s + 1e-9) == pytest.approx(0, abs=1e-6)


def test_a_refused_call_takes_nothing_from_either_bucket() -> None:
    limits = Limits(requests_per_minute=10, tokens_per_minute=100)
    assert limits.admit("k", 60, 0.0).refused is None
    refused = limits.admit("k", 60, 0.0)
    assert refused.refused == "tokens"
    assert refused.wait_s == pytest.approx(12.0)  # 20 tokens are missing at 100 a minute
    admitted = limits.admit("k", 40, 0.0)
    assert admitted.refused is None
    assert {s.dimension: s.remaining for s in admitted.standings} == {"requests": 8, "tokens": 0}


def test_each_key_has_buckets_of_its_own() -> None:
    limits = Limits(requests_per_minute=1, tokens_per_minute=None)
    assert limits.admit("a", 1, 0.0).refused is None
    assert limits.admit("b", 1, 0.0).refused is None
    assert limits.admit("a", 1, 0.0).refused == "requests"


def test_without_limits_every_call_is_free_and_nothing_is_said() -> None:
    assert Limits(None, None).admit("a", 10**9, 0.0) is FREE
    assert openai_headers(FREE) == ""


def test_a_call_that_no_bucket_ever_holds_is_refused_without_a_time() -> None:
    verdict = Limits(None, 100).admit("a", 101, 0.0)
    assert (verdict.refused, verdict.wait_s) == ("tokens", math.inf)


def test_a_limit_of_nothing_admits_nothing() -> None:
    assert Limits(0, None).admit("a", 1, 0.0).refused == "requests"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.012, "12ms"), (1, "1s"), (1.5, "1.5s"), (59.999, "59.999s"), (360, "6m0s"), (3603.25, "1h0m3.25s")],
)
def test_durations_are_written_as_go_writes_them(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


def test_headers_tell_limit_remainder_and_reset() -> None:
    verdict = Limits(requests_per_minute=60, tokens_per_minute=600).admit("k", 100, 0.0)
    assert openai_headers(verdict).splitlines() == [
        "x-ratelimit-limit-requests: 60",
        "x-ratelimit-remaining-requests: 59",
        "x-ratelimit-reset-requests: 1s",
        "x-ratelimit-limit-tokens: 600",
        "x-ratelimit-remaining-tokens: 500",
        "x-ratelimit-reset-tokens: 10s",
    ]
    assert anthropic_headers(verdict, wall_s=0.0).splitlines() == [
        "anthropic-ratelimit-requests-limit: 60",
        "anthropic-ratelimit-requests-remaining: 59",
        "anthropic-ratelimit-requests-reset: 1970-01-01T00:00:01Z",
        "anthropic-ratelimit-tokens-limit: 600",
        "anthropic-ratelimit-tokens-remaining: 500",
        "anthropic-ratelimit-tokens-reset: 1970-01-01T00:00:10Z",
    ]
