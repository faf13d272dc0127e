"""Waits between attempts: full jitter in bounds."""

from hypothesis import given
from hypothesis import strategies as st

from service.resilience.backoff import Backoff

FRACTION = st.floats(0, 1, exclude_max=True)
SECONDS = st.floats(0.001, 100)


@given(base_s=SECONDS, cap_s=SECONDS, random=FRACTION, retry=st.integers(1, 10_000), at_least_s=st.floats(0, 3_600))
def test_wait_is_in_bounds_whatever_is_asked_for(
    base_s: float, cap_s: float, random: float, retry: int, at_least_s: float
) -> None:
    wait_s = Backoff(base_s, cap_s, lambda: random).wait_s(retry, at_least_s=at_least_s)
    assert at_least_s <= wait_s <= at_least_s + cap_s


def test_ceiling_doubles_with_each_retry_up_to_the_cap() -> None:
    backoff = Backoff(0.5, 3.0, lambda: 0.5)
    assert [backoff.wait_s(retry) for retry in range(1, 6)] == [0.25, 0.5, 1.0, 1.5, 1.5]


def test_jitter_comes_on_top_of_what_was_asked_for() -> None:
    assert Backoff(1.0, 5.0, lambda: 0.0).wait_s(1, at_least_s=7.0) == 7.0
    assert Backoff(1.0, 5.0, lambda: 0.5).wait_s(1, at_least_s=7.0) == 7.5
