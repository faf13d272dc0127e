"""The search for the knee, on curves whose knee is known."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load.capacity.search import Found, Limits, Measure, Verdict, find_knee

LIMITS = Limits(start=5, rate_max=1000)


def up_to(capacity: float, beyond: Verdict = "breached") -> Measure:
    return lambda rate: "held" if rate <= capacity else beyond


@given(st.floats(min_value=0.2, max_value=900))
def test_the_knee_is_found_from_below_within_the_tolerance(capacity: float) -> None:
    found = find_knee(up_to(capacity), LIMITS)
    assert found.bounded_by == "objectives"
    assert found.knee_per_s is not None
    assert capacity / 1.1001 <= found.knee_per_s <= capacity


@given(st.floats(min_value=0.2, max_value=900), st.integers(0, 2**32))
def test_the_knee_is_confirmed_by_a_second_run_whatever_the_noise(capacity: float, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - repeatable

    def noisy(rate: float) -> Verdict:
        right = dice.random() > 0.15
        return "held" if (rate <= capacity) is right else "breached"

    found = find_knee(noisy, LIMITS)
    if found.knee_per_s is not None:
        assert found.runs[found.knee_per_s].count("held") == 2


def test_one_bad_run_below_the_knee_is_not_taken_for_it() -> None:
    made: list[float] = []

    def unlucky(rate: float) -> Verdict:
        made.append(rate)
        return "breached" if rate > 100 or len(made) == 3 else "held"

    found = find_knee(unlucky, LIMITS)
    assert found.knee_per_s == pytest.approx(95, rel=0.06)


def test_one_lucky_run_above_the_knee_is_not_taken_for_it() -> None:
    lucky: set[float] = set()

    def once(rate: float) -> Verdict:
        if 40 < rate <= 100 and rate not in lucky:
            lucky.add(rate)
            return "held"
        return "held" if rate <= 40 else "breached"

    found = find_knee(once, LIMITS)
    assert found.knee_per_s is not None
    assert found.knee_per_s <= 40
    assert found.bounded_by == "objectives"


def test_a_dip_below_the_knee_ends_the_search_below_it() -> None:
    """Where 30 to 50 does not hold, 80 is no knee, whatever it does itself."""

    def dipping(rate: float) -> Verdict:
        return "breached" if 30 < rate < 60 or rate > 100 else "held"

    found = find_knee(dipping, Limits(start=5, rate_max=1000, factor=1.3))
    assert found.knee_per_s is not None
    assert found.knee_per_s <= 30


def test_invalid_runs_are_no_knee_and_what_is_below_them_is_a_lower_bound() -> None:
    found = find_knee(up_to(60, beyond="invalid"), LIMITS)
    assert found.bounded_by == "generator"
    assert found.knee_per_s is not None
    assert 60 / 1.1001 <= found.knee_per_s <= 60


def test_where_every_run_is_invalid_there_is_no_knee() -> None:
    assert find_knee(lambda _: "invalid", LIMITS) == Found(
        None, "nothing_held", find_knee(lambda _: "invalid", LIMITS).runs
    )


def test_where_nothing_holds_there_is_no_knee() -> None:
    found = find_knee(lambda _: "breached", LIMITS)
    assert (found.knee_per_s, found.bounded_by) == (None, "nothing_held")
    assert min(found.runs) >= LIMITS.rate_min


def test_what_holds_throughout_is_bounded_by_the_highest_rate_tried() -> None:
    found = find_knee(up_to(10_000), LIMITS)
    assert (found.knee_per_s, found.bounded_by) == (1000, "rate_max")


@pytest.mark.parametrize("steps", range(1, 12))
def test_no_more_runs_are_made_than_allowed(steps: int) -> None:
    found = find_knee(up_to(70), Limits(start=5, rate_max=1000, steps_max=steps))
    assert sum(map(len, found.runs.values())) <= steps
    if found.bounded_by == "steps":
        assert found.knee_per_s is None or found.runs[found.knee_per_s].count("held") >= 2


def test_runs_that_never_agree_did_not_hold() -> None:
    verdicts: dict[float, list[Verdict]] = {}

    def torn(rate: float) -> Verdict:
        if rate <= 20:
            return "held"
        left = verdicts.setdefault(rate, ["held", "invalid", "breached"])
        return left.pop() if left else "breached"

    found = find_knee(torn, LIMITS)
    assert found.knee_per_s is not None
    assert found.knee_per_s <= 20
