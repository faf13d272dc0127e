"""Who is next, without any waiting: the fair queue alone."""

import math

import pytest

from service.domain.principal import Priority
from service.queueing.fair import FairQueue, Flow, virtual_tokens


class Bench:
    """A queue of numbered requests."""

    def __init__(self) -> None:
        self.queue: FairQueue[int] = FairQueue()
        self._number = 0

    def flow(self, name: str, priority: Priority = "interactive", weight: float = 1.0) -> Flow[int]:
        return self.queue.flow(name, priority, weight)

    def ask(
        self,
        name: str,
        *,
        cost: float = 100.0,
        priority: Priority = "interactive",
        weight: float = 1.0,
        kind: str = "k",
    ) -> int:
        self._number += 1
        self.queue.add(self.flow(name, priority, weight), self._number, cost, kind)
        return self._number

    def serve(self) -> str:
        """Serve the next request, and say whose it was."""
        flow, waiter = self.queue.in_order()[0]
        cost = flow.waiting[waiter].cost
        self.queue.remove(flow, waiter)
        self.queue.settle(flow, self.queue.served(flow, cost), cost)
        return flow.principal

    def serve_many(self, count: int) -> dict[str, int]:
        served: dict[str, int] = {}
        for _ in range(count):
            name = self.serve()
            served[name] = served.get(name, 0) + 1
        return served


def test_two_that_are_backlogged_take_turns_however_many_each_has() -> None:
    bench = Bench()
    for _ in range(100):
        bench.ask("many")
    for _ in range(10):
        bench.ask("few")
    assert bench.serve_many(20) == {"many": 10, "few": 10}


def test_costs_are_shared_and_not_requests() -> None:
    bench = Bench()
    for _ in range(100):
        bench.ask("long", cost=400)
        bench.ask("short", cost=100)
    served = bench.serve_many(50)
    assert served == {"long": 10, "short": 40}


def test_a_weight_is_a_share() -> None:
    bench = Bench()
    for _ in range(100):
        bench.ask("three", weight=3)
        bench.ask("one")
    assert bench.serve_many(40) == {"three": 30, "one": 10}


def test_who_was_idle_does_not_save_up() -> None:
    bench = Bench()
    for _ in range(100):
        bench.ask("busy")
    bench.serve_many(50)
    for _ in range(50):
        bench.ask("back")
    assert bench.serve_many(20) == {"busy": 10, "back": 10}


def test_who_comes_while_others_were_served_without_waiting_does_not_save_up_either() -> None:
    bench = Bench()
    busy = bench.flow("busy")
    busy.running = 5
    for _ in range(10):
        bench.queue.served(busy, 100)
        bench.queue.settle(busy, 100, 100)
    late = bench.flow("late")
    assert late.counter == 900  # what the busy one had before its last turn


def test_batch_goes_after_all_that_is_interactive() -> None:
    bench = Bench()
    for _ in range(3):
        bench.ask("batch", priority="batch")
    bench.ask("one")
    bench.ask("two", cost=10_000)
    assert [bench.serve() for _ in range(5)] == ["one", "two", "batch", "batch", "batch"]


def test_a_principal_has_a_counter_in_each_class() -> None:
    bench = Bench()
    bench.ask("both", priority="batch", cost=1_000)
    bench.serve()
    assert bench.flow("both").counter == 0


def test_what_was_estimated_wrongly_is_corrected() -> None:
    bench = Bench()
    for _ in range(100):
        bench.ask("modest")
        bench.ask("wordy")
    flow = bench.flow("wordy")
    bench.serve_many(2)
    bench.queue.settle(flow, 100, 1_000)
    assert bench.serve_many(9) == {"modest": 9}


def test_a_newcomer_is_next_however_much_is_estimated_of_the_others() -> None:
    bench = Bench()
    flood = bench.flow("flood")
    for _ in range(50):
        bench.queue.served(flood, 512)
        flood.running += 1
    for _ in range(20):
        bench.ask("flood", cost=512)
    new = bench.ask("new", cost=512)
    for _ in range(50):
        bench.queue.settle(flood, 512, 10)
        flood.running -= 1
    assert bench.queue.in_order()[0][1] == new


def test_who_was_told_to_come_goes_before_all_others_of_its_class() -> None:
    bench = Bench()
    night = bench.flow("night", "batch")
    bench.queue.add_expected(night, 98, "k")
    for _ in range(3):
        bench.ask("day")
        bench.ask("dusk", priority="batch")
    bench.queue.add_expected(bench.flow("day"), 99, "k")
    assert [waiter for _, waiter in bench.queue.in_order()][:2] == [99, 1]
    assert [waiter for _, waiter in bench.queue.in_order()][2:] == [98, 2]
    assert bench.queue.ahead(bench.flow("new")) == 1
    assert len(bench.queue) == 8
    assert bench.queue.remove(night, 98)
    assert not bench.queue.is_expected(98)


def test_requests_of_each_kind_have_a_next_one() -> None:
    bench = Bench()
    first = bench.ask("a", kind="limited")
    bench.ask("a", kind="limited")
    other = bench.ask("a", kind="free")
    assert [waiter for _, waiter in bench.queue.in_order()] == [first, other]
    assert bench.queue.ahead(bench.flow("a"), "free") == 1
    assert bench.queue.ahead(bench.flow("a")) == 3
    assert bench.queue.ahead(bench.flow("b"), "another") == 0
    bench.queue.remove(bench.flow("a"), other)
    assert [waiter for _, waiter in bench.queue.in_order()] == [first]
    assert bench.queue.ahead(bench.flow("a"), "free") == 0


def test_who_is_held_is_not_forgotten() -> None:
    bench = Bench()
    held = bench.flow("held")
    held.pins += 1
    for number in range(1_000):
        bench.flow(f"name-{number}")
    assert bench.flow("held") is held


def test_a_weight_that_changes_while_a_call_runs_leaves_the_counter_right() -> None:
    bench = Bench()
    charge = bench.queue.served(bench.flow("a", weight=1), 100)
    flow = bench.flow("a", weight=10)
    flow.running = 1
    bench.queue.settle(flow, charge, 100)
    assert flow.counter == 10


def test_how_many_go_before_a_new_request_is_foretold() -> None:
    bench = Bench()
    for _ in range(100):
        bench.ask("many")
    assert bench.queue.ahead(bench.flow("many")) == 100
    assert bench.queue.ahead(bench.flow("new")) == 0
    assert bench.queue.ahead(bench.flow("late", "batch")) == 100
    for _ in range(3):
        bench.ask("new")
    assert bench.queue.ahead(bench.flow("new")) == 3 + 3
    bench.ask("late", priority="batch")
    assert bench.queue.ahead(bench.flow("other")) == 0


@pytest.mark.parametrize("others", [{}, {"a": 3}, {"a": 5, "b": 2}])
def test_foretelling_agrees_with_what_happens(others: dict[str, int]) -> None:
    bench = Bench()
    for name, count in others.items():
        for _ in range(count):
            bench.ask(name)
    bench.serve_many(sum(others.values()) // 3)
    bench.ask("me")
    bench.ask("me")
    foretold = bench.queue.ahead(bench.flow("me"))
    number = bench.ask("me")
    before = 0
    while bench.queue.in_order()[0][1] != number:
        bench.serve()
        before += 1
    assert abs(before - foretold) <= len(others)


def test_a_share_is_that_of_the_weights_of_those_who_wait() -> None:
    bench = Bench()
    assert bench.queue.share(bench.flow("alone")) == 1
    bench.ask("one")
    bench.ask("two", weight=2)
    assert bench.queue.share(bench.flow("one")) == 1 / 3
    assert bench.queue.share(bench.flow("new")) == 1 / 4


def test_who_has_the_most_by_weight_is_the_fullest_and_batch_before_all() -> None:
    bench = Bench()
    assert bench.queue.fullest() is None
    for _ in range(10):
        bench.ask("heavy", weight=10)
    for _ in range(5):
        bench.ask("light")
    assert bench.queue.fullest() is bench.flow("light")
    bench.ask("night", priority="batch")
    assert bench.queue.fullest() is bench.flow("night", "batch")


def test_what_left_is_not_counted() -> None:
    bench = Bench()
    number = bench.ask("a")
    flow = bench.flow("a")
    assert bench.queue.remove(flow, number)
    assert not bench.queue.remove(flow, number)
    assert len(bench.queue) == 0
    assert math.isclose(flow.wanted, 0)


def test_idle_principals_are_forgotten() -> None:
    bench = Bench()
    bench.ask("stays")
    for number in range(2_000):
        bench.flow(f"name-{number}")
    assert len(bench.queue._flows) <= 257
    assert bench.serve() == "stays"


def test_an_output_token_costs_twice_an_input_token() -> None:
    assert virtual_tokens(10, 5) == 20
