"""The budget of extra attempts: never more than its ratio or its floor, and what quieter times left."""

from hypothesis import given
from hypothesis import strategies as st

from service.domain.clock import ManualClock
from service.resilience.budget import SLOT_S, Budget

RESERVE = 5.0
SLOTS = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60)), min_size=1, max_size=30)
"""For each slot: how many requests come, and how many extra attempts are wanted."""


@given(slots=SLOTS, ratio=st.floats(0, 1), per_s=st.floats(0, 20), first=st.integers(0, 29))
def test_no_stretch_of_time_spends_more_than_it_earns_and_the_reserve(
    slots: list[tuple[int, int]], ratio: float, per_s: float, first: int
) -> None:
    clock = ManualClock()
    budget = Budget(ratio=ratio, per_s=per_s, reserve=RESERVE, clock=clock)
    spent, earned = 0, RESERVE
    for number, (requests, wanted) in enumerate(slots):
        # Both mixed, as they come.
        for turn in range(max(requests, wanted)):
            if turn < requests:
                budget.earn()
            if turn < wanted and budget.spend() and number >= first:
                spent += 1
        if number >= first:
            earned += max(ratio * requests, per_s * SLOT_S)
        clock.advance(SLOT_S)
    assert spent <= earned + 1e-6


def test_outage_at_a_high_rate_costs_a_tenth_more_and_the_reserve() -> None:
    clock = ManualClock()
    budget = Budget(ratio=0.1, per_s=1.0, reserve=10.0, clock=clock)
    retries = 0
    for _ in range(2_000):
        budget.earn()
        retries += budget.spend()
        clock.advance(0.005)
    assert 200 <= retries <= 210


def test_few_requests_may_be_tried_again_all_the_same() -> None:
    clock = ManualClock()
    budget = Budget(ratio=0.1, per_s=1.0, reserve=10.0, clock=clock)
    while budget.spend():
        pass
    clock.advance(3 * SLOT_S)
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]


def test_reserve_is_bounded_however_quiet_it_was() -> None:
    clock = ManualClock()
    budget = Budget(ratio=0.1, per_s=1.0, reserve=10.0, clock=clock)
    clock.advance(3_600)
    assert sum(budget.spend() for _ in range(50)) == 10


def test_what_begins_with_nothing_has_to_earn_first() -> None:
    budget = Budget(ratio=0.5, per_s=0.0, reserve=10.0, initial=0.0, clock=ManualClock())
    assert not budget.spend()
    budget.earn()
    budget.earn()
    assert [budget.spend(), budget.spend()] == [True, False]
