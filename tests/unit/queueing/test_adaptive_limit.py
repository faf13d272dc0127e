"""The adaptive limit, on a clock of the test's."""

import math

from service.domain.clock import ManualClock
from service.queueing.concurrency import FORGOTTEN_S, LEAST, AdaptiveLimit


class Bench:
    """A limit that sees calls in windows."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.limit = AdaptiveLimit(clock=self.clock)

    def window(self, seconds: float, *, running: int, calls: int = 20) -> None:
        """Let calls begin, and have their first contents, within a window."""
        for _ in range(calls):
            if running >= self.limit.value * 0.95:  # a backlog leaves a twentieth to others
                self.limit.was_needed()
            self.limit.began(running)
            self.clock.advance(1.1 / calls)
            self.limit.first_content(seconds)


def test_nothing_is_limited_before_the_provider_shows_a_reason() -> None:
    bench = Bench()
    for running in (10, 1_000, 5_000):
        bench.window(0.3, running=running)
    assert bench.limit.value == math.inf


def test_a_push_back_leaves_seven_tenths_of_what_runs() -> None:
    bench = Bench()
    bench.limit.pushed_back(100)
    assert bench.limit.value == 70


def test_push_backs_of_one_second_are_one_sign() -> None:
    bench = Bench()
    for _ in range(50):
        bench.limit.pushed_back(100)
    assert bench.limit.value == 70
    bench.clock.advance(1.1)
    bench.limit.pushed_back(70)
    assert bench.limit.value == 49


def test_some_calls_may_always_run() -> None:
    bench = Bench()
    for _ in range(30):
        bench.limit.pushed_back(LEAST + 1)
        bench.clock.advance(2)
    assert bench.limit.value == LEAST


def test_where_few_run_their_number_is_not_the_trouble() -> None:
    bench = Bench()
    bench.limit.pushed_back(LEAST)
    assert bench.limit.value == math.inf


def test_it_grows_while_it_is_needed_and_nothing_speaks_against_it() -> None:
    bench = Bench()
    bench.limit.pushed_back(100)
    seen = []
    for _ in range(10):
        bench.window(0.3, running=int(bench.limit.value))
        seen.append(bench.limit.value)
    assert seen == sorted(seen)
    assert 70 < seen[0] <= 77
    assert seen[-1] > 150


def test_it_grows_without_any_stream_too() -> None:
    bench = Bench()
    bench.limit.pushed_back(100)
    for _ in range(10):
        bench.clock.advance(1.1)
        bench.limit.was_needed()
        bench.limit.began(int(bench.limit.value * 0.9))
    assert bench.limit.value > 150


def test_it_does_not_grow_while_it_is_not_needed_and_is_forgotten_after_a_while() -> None:
    bench = Bench()
    bench.limit.pushed_back(100)
    windows = 0
    while bench.limit.value < math.inf:
        assert bench.limit.value == 70
        bench.window(0.3, running=5)
        windows += 1
    assert FORGOTTEN_S / 1.2 <= windows <= FORGOTTEN_S


def test_first_tokens_that_stay_late_lower_it() -> None:
    bench = Bench()
    for _ in range(10):
        bench.window(0.3, running=50)
    for _ in range(4):
        bench.window(3.0, running=200)
    assert 100 <= bench.limit.value < 200


def test_one_late_burst_changes_nothing() -> None:
    bench = Bench()
    for _ in range(10):
        bench.window(0.02, running=50)
    bench.window(2.0, running=2_000)
    bench.window(0.02, running=50)
    assert bench.limit.value == math.inf


def test_what_is_late_by_milliseconds_only_is_not_late() -> None:
    bench = Bench()
    for _ in range(10):
        bench.window(0.01, running=50)
    for _ in range(10):
        bench.window(0.2, running=50)
    assert bench.limit.value == math.inf


def test_few_calls_say_nothing() -> None:
    bench = Bench()
    for seconds in (0.3, 9.0, 9.0, 9.0, 9.0, 9.0):
        bench.window(seconds, running=5, calls=5)
    assert bench.limit.value == math.inf


def test_a_lasting_change_is_got_used_to() -> None:
    bench = Bench()
    for _ in range(10):
        bench.window(0.3, running=50)
    for _ in range(200):
        bench.window(2.0, running=int(min(bench.limit.value, 50)))
    assert bench.limit.value >= 50


def test_switched_off_it_limits_nothing() -> None:
    bench = Bench()
    bench.limit.enabled = False
    bench.limit.pushed_back(100)
    assert bench.limit.value == math.inf
