"""The circuit breaker: when it opens, whom it lets through then, and what closes it."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from service.config import BreakerSettings
from service.domain.clock import ManualClock
from service.resilience.breaker import PROBE_S, REFUSALS, Breaker, Permit, State


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


def is_open(breaker: Breaker) -> bool:
    """Whether it keeps calls back for its rest; asked again, since the type checker takes a state for unchanging."""
    return breaker.state is State.OPEN


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


def cut(breaker: Breaker) -> None:
    """Let a stream begin well and break off."""
    permit = let_through(breaker)
    permit.succeeded()
    permit.failed("upstream_invalid_response")


def test_streams_that_broke_off_after_they_began_well_are_failures_in_a_row(clock: ManualClock) -> None:
    breaker = made(clock)
    for _ in range(5):
        assert not is_open(breaker)
        cut(breaker)
    assert is_open(breaker)


def test_stream_that_ended_well_ends_the_row_of_those_that_broke_off(clock: ManualClock) -> None:
    breaker = made(clock, calls_at_least=1_000)
    for _ in range(10):
        fail(breaker, 2)
        cut(breaker)
        let_through(breaker).succeeded()
        cut(breaker)
        let_through(breaker).succeeded()
    assert breaker.state is State.CLOSED


def test_success_since_a_stream_began_ends_the_row_whatever_becomes_of_that_stream(clock: ManualClock) -> None:
    breaker = made(clock)
    fail(breaker, 3)
    stream = let_through(breaker)
    stream.succeeded()
    let_through(breaker).succeeded()
    stream.failed("upstream_invalid_response")
    fail(breaker, 3)
    assert not is_open(breaker)
    fail(breaker, 1)
    assert is_open(breaker)


@pytest.mark.parametrize(("broken", "opens"), [(0.6, True), (0.5, True), (0.4, False)])
@pytest.mark.parametrize("lasts", [0, 40])
def test_streams_that_break_off_are_a_rate_of_all_streams(
    clock: ManualClock, broken: float, lasts: int, *, opens: bool
) -> None:
    breaker = made(clock, failures_in_a_row=1_000)
    running: list[Permit] = []
    owed = 0.0
    for _ in range(400):
        clock.advance(0.05)
        permit = breaker.admit()
        if permit is None:
            break
        permit.succeeded()
        running.append(permit)
        if len(running) > lasts:
            ended = running.pop(0)
            owed += broken
            if owed >= 0.999:
                owed -= 1
                ended.failed("upstream_invalid_response")
    assert (breaker.state is State.OPEN) == opens


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


def refuse(breaker: Breaker) -> None:
    let_through(breaker).refused("upstream_misconfigured")


def test_refusal_opens_at_once_and_for_long_what_has_never_worked(clock: ManualClock) -> None:
    breaker = made(clock)
    refuse(breaker)
    assert (breaker.state, breaker.wait_s, breaker.is_refusal) == (State.OPEN, 60, True)
    clock.advance(60)
    refuse(breaker)
    assert breaker.wait_s == 120


def test_single_refusals_take_what_works_away_from_nobody(clock: ManualClock) -> None:
    breaker = made(clock)
    for _ in range(10):
        let_through(breaker).succeeded()
        for _ in range(REFUSALS - 1):
            refuse(breaker)
    assert (breaker.state, breaker.wait_s) == (State.CLOSED, 0)


def test_refusals_in_a_row_open_what_has_worked_and_a_refused_probe_keeps_it_open(clock: ManualClock) -> None:
    breaker = made(clock)
    let_through(breaker).succeeded()
    for _ in range(REFUSALS):
        assert breaker.state is State.CLOSED
        refuse(breaker)
    assert (breaker.state, breaker.wait_s, breaker.is_refusal) == (State.OPEN, 60, True)
    clock.advance(60)
    refuse(breaker)
    assert (breaker.state, breaker.wait_s) == (State.OPEN, 120)
    clock.advance(120)
    let_through(breaker).succeeded()
    assert (breaker.state, breaker.is_refusal) == (State.CLOSED, False)


def test_refused_probe_ends_an_outage_where_calls_have_succeeded(clock: ManualClock) -> None:
    breaker = made(clock)
    let_through(breaker).succeeded()
    fail(breaker)
    assert (breaker.state, breaker.is_refusal) == (State.OPEN, False)
    clock.advance(2)
    refuse(breaker)
    assert breaker.state is State.CLOSED
    for _ in range(REFUSALS - 2):
        refuse(breaker)
    assert not is_open(breaker)
    refuse(breaker)
    assert is_open(breaker)


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


@pytest.mark.parametrize("took_s", [PROBE_S + 2, 3.5 * PROBE_S])
def test_probe_closes_it_though_it_takes_longer_than_others_have_to_wait(clock: ManualClock, took_s: float) -> None:
    breaker = made(clock)
    fail(breaker)
    clock.advance(2)
    first, began_at = let_through(breaker), clock.monotonic()
    later: list[Permit] = []
    while clock.monotonic() < began_at + took_s:
        clock.advance(0.1)
        if (permit := breaker.admit()) is not None:
            later.append(permit)
    assert len(later) == took_s // PROBE_S
    for overtaken in later[:-1]:
        overtaken.failed("upstream_timeout")
    assert not is_open(breaker), "of failures the newest alone counts"
    first.succeeded()
    assert (breaker.state, breaker.wait_s) == (State.CLOSED, 0)
    later[-1].failed("upstream_timeout")
    fail(breaker, 4)
    assert breaker.state is State.CLOSED, "what began before it closed says nothing about now"


def test_success_of_a_probe_from_before_it_opened_again_is_passed_over(clock: ManualClock) -> None:
    breaker = made(clock)
    fail(breaker)
    clock.advance(2)
    first = let_through(breaker)
    clock.advance(PROBE_S)
    let_through(breaker).failed("upstream_unavailable")
    first.succeeded()
    assert breaker.state is State.OPEN


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
