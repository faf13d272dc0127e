"""The circuit breaker: when it opens, whom it lets through then, and what closes it."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from service.config import BreakerSettings
from service.domain.clock import ManualClock
from service.resilience.breaker import PROBE_S, Breaker, Permit, State


def made(
    clock: ManualClock, random: Callable[[], float] = lambda: 0.0, seen: list[State] | None = None, **given: Any
) -> Breaker:
    def note(breaker: Breaker) -> None:
        if seen is not None:
            seen.append(breaker.state)

    return Breaker(BreakerSettings(**given), clock=clock, random=random, on_change=note)


def let_through(breaker: Breaker) -> Permit:
    permit = breaker.admit()
    assert permit is not None
    return permit


def fail(breaker: Breaker, times: int = 5) -> None:
    for _ in range(times):
        let_through(breaker).failed("upstream_unavailable")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_opens_after_failures_in_a_row(clock: ManualClock) -> None:
    seen: list[State] = []
    breaker = made(clock, seen=seen)
    fail(breaker, 4)
    assert breaker.state is State.CLOSED
    fail(breaker, 1)
    assert (breaker.state, breaker.cause, breaker.wait_s) == (State.OPEN, "upstream_unavailable", 2.0)
    assert breaker.admit() is None
    assert seen == [State.OPEN]


def test_success_between_failures_keeps_it_closed(clock: ManualClock) -> None:
    breaker = made(clock, calls_at_least=1_000)
    for _ in range(10):
        fail(breaker, 4)
        let_through(breaker).succeeded()
    assert breaker.state is State.CLOSED


def test_opens_at_a_rate_of_failures_that_are_not_in_a_row(clock: ManualClock) -> None:
    breaker = made(clock)
    for _ in range(10):
        assert breaker.state is State.CLOSED
        let_through(breaker).succeeded()
        fail(breaker, 1)
    assert breaker.state is State.OPEN


def test_failures_of_another_time_are_no_rate(clock: ManualClock) -> None:
    breaker = made(clock)
    for _ in range(40):
        let_through(breaker).succeeded()
        fail(breaker, 1)
        clock.advance(1.5)
    assert breaker.state is State.CLOSED


def test_stream_that_broke_off_after_it_began_well_counts(clock: ManualClock) -> None:
    breaker = made(clock)
    for _ in range(10):
        permit = let_through(breaker)
        permit.succeeded()
        permit.failed("upstream_unavailable")
    assert breaker.state is State.OPEN


def test_one_probe_closes_it(clock: ManualClock) -> None:
    seen: list[State] = []
    breaker = made(clock, seen=seen)
    fail(breaker)
    clock.advance(2)
    probe = let_through(breaker)
    assert breaker.admit() is None
    probe.succeeded()
    assert breaker.wait_s == 0
    fail(breaker, 4)
    assert seen == [State.OPEN, State.HALF_OPEN, State.CLOSED]


def test_each_failed_probe_doubles_the_rest_up_to_its_bound(clock: ManualClock) -> None:
    breaker = made(clock)
    fail(breaker)
    rests = []
    for _ in range(5):
        rests.append(breaker.wait_s)
        clock.advance(breaker.wait_s)
        let_through(breaker).failed("upstream_timeout")
    assert rests == [2, 4, 8, 8, 8]


def test_rest_begins_short_again_only_after_a_longer_peace(clock: ManualClock) -> None:
    breaker = made(clock)
    fail(breaker)
    clock.advance(2)
    let_through(breaker).succeeded()
    fail(breaker)
    assert breaker.wait_s == 4
    clock.advance(4)
    let_through(breaker).succeeded()
    clock.advance(17)
    fail(breaker)
    assert breaker.wait_s == 2


def test_fleet_does_not_probe_in_step(clock: ManualClock) -> None:
    early, late = made(clock, lambda: 0.999), made(clock, lambda: 0.0)
    fail(early)
    fail(late)
    assert 1.5 < early.wait_s < 1.51
    assert late.wait_s == 2


def test_refusal_opens_it_at_once_and_for_long(clock: ManualClock) -> None:
    breaker = made(clock)
    let_through(breaker).refused("upstream_misconfigured")
    assert (breaker.state, breaker.wait_s) == (State.OPEN, 60)
    clock.advance(60)
    let_through(breaker).refused("upstream_misconfigured")
    assert breaker.wait_s == 120


def test_probe_that_learnt_nothing_leaves_the_next_one_to_probe(clock: ManualClock) -> None:
    breaker = made(clock)
    fail(breaker)
    clock.advance(2)
    let_through(breaker).left()
    let_through(breaker).succeeded()
    assert breaker.state is State.CLOSED


def test_probe_that_does_not_come_back_keeps_others_only_for_a_time(clock: ManualClock) -> None:
    breaker = made(clock)
    fail(breaker)
    clock.advance(2)
    lost = let_through(breaker)
    assert breaker.wait_s == 2
    clock.advance(PROBE_S - 0.1)
    assert breaker.admit() is None
    clock.advance(0.1)
    second = let_through(breaker)
    lost.failed("upstream_timeout")
    assert breaker.state is State.HALF_OPEN
    second.succeeded()
    assert breaker.wait_s == 0


def test_calls_from_before_it_opened_say_nothing_about_now(clock: ManualClock) -> None:
    breaker = made(clock)
    old = [let_through(breaker) for _ in range(3)]
    fail(breaker)
    old[0].succeeded()
    old[1].failed("upstream_timeout")
    assert (breaker.state, breaker.wait_s) == (State.OPEN, 2)
    clock.advance(2)
    let_through(breaker).succeeded()
    old[2].refused("upstream_misconfigured")
    assert breaker.state is State.CLOSED


class Probes(RuleBasedStateMachine):
    """Whatever calls do, and however time passes, no two probes of one time are let through."""

    permits = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.breaker = made(self.clock, failures_in_a_row=2)
        self.probe_at: float | None = None

    @rule(target=permits)
    def call(self) -> Permit | None:
        was = self.breaker.state
        permit = self.breaker.admit()
        if permit is not None and was is not State.CLOSED:
            assert self.probe_at is None or self.clock.monotonic() - self.probe_at >= PROBE_S
            self.probe_at = self.clock.monotonic()
        return permit

    @rule(permit=consumes(permits), how=st.sampled_from(["succeeded", "failed", "refused", "left"]))
    def end(self, permit: Permit | None, how: str) -> None:
        if permit is None:
            return
        probing = self.breaker.state is State.HALF_OPEN
        wait_s = self.breaker.wait_s
        getattr(permit, how)(*(["x"] if how in {"failed", "refused"} else []))
        if probing and (self.breaker.state is not State.HALF_OPEN or self.breaker.wait_s < wait_s):
            self.probe_at = None  # this was the probe

    @rule(seconds=st.floats(0, 15))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def tells_when_it_lets_through(self) -> None:
        assert self.breaker.state is not State.CLOSED or self.breaker.wait_s == 0


TestProbes = Probes.TestCase
TestProbes.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
