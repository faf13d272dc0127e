import statistics
from itertools import chain, pairwise

import pytest

from load.arrivals import Arrival, Segment, evenly, randomly, replayed, schedule, share
from load.sample_trace import lines


def _times(segments: list[Segment], seed: int | None = None) -> list[float]:
    return [arrival.at_s for arrival in schedule(segments, evenly() if seed is None else randomly(seed))]


def test_a_constant_rate_has_equal_gaps_and_its_exact_number() -> None:
    assert _times([Segment(4, 1)]) == [0, 0.25, 0.5, 0.75]
    assert len(_times([Segment(0.1, 10)])) == 1
    assert len(_times([Segment(3, 100)])) == 300


def test_a_poisson_process_has_its_mean_and_a_spread_of_one() -> None:
    gaps = [after - before for before, after in pairwise(_times([Segment(50, 400)], seed=3))]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(1, rel=0.03)


def test_a_poisson_process_is_the_same_for_the_same_seed() -> None:
    assert _times([Segment(5, 10)], seed=1) == _times([Segment(5, 10)], seed=1)
    assert _times([Segment(5, 10)], seed=1) != _times([Segment(5, 10)], seed=2)


def test_steps_have_each_their_rate_and_a_pause_has_nothing() -> None:
    times = _times([Segment(2, 2), Segment(0, 3), Segment(4, 1)])
    assert times == [0, 0.5, 1, 1.5, 5, 5.25, 5.5, 5.75]


def test_a_poisson_process_follows_a_rate_that_changes() -> None:
    times = _times([Segment(10, 100), Segment(100, 100)], seed=9)
    early = sum(time < 100 for time in times)
    assert early == pytest.approx(1000, rel=0.1)
    assert len(times) - early == pytest.approx(10_000, rel=0.05)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_the_workers_shares_together_are_everything_once(workers: int) -> None:
    whole = list(schedule([Segment(10, 5)], randomly(1)))
    shares = [list(share(iter(whole), index, workers)) for index in range(workers)]
    assert sorted(chain.from_iterable(shares), key=lambda arrival: arrival.at_s) == whole
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_trace_is_replayed_in_order_faster_and_up_to_the_end() -> None:
    rows = [Arrival(4, 1, 2), Arrival(0, 3, 4), Arrival(10, 5, 6)]
    assert list(replayed(rows, speed=2, duration_s=5)) == [Arrival(0, 3, 4), Arrival(2, 1, 2)]


def test_the_sample_trace_is_what_its_seed_makes() -> None:
    with open("load/traces/sample.csv", encoding="utf-8") as file:  # noqa: PTH123 - one line
        assert [line.rstrip("\n") for line in file] == list(lines())
