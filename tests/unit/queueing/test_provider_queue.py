"""The queue in front of a provider: who may call now, who waits, who is refused, and that nothing is lost."""

import asyncio
import math
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.admission.memory import MemoryLimiter
from service.config import AdmissionSettings, ProviderSettings
from service.domain.clock import ManualClock
from service.domain.generation import Usage
from service.domain.limits import Demand, Limits, Scope
from service.domain.principal import Priority
from service.errors import Overloaded
from service.queueing.provider_queue import NoTurnError, ProviderQueue, Turn
from service.queueing.work import Work
from service.telemetry.metrics import Metrics


class Bench:
    """A queue over limits in memory, on a clock of the test's."""

    def __init__(self, *, limits: dict[str, int] | None = None, **admission: Any) -> None:
        self.clock = ManualClock()
        self.metrics = Metrics(CollectorRegistry())
        self.limiter = MemoryLimiter(clock=self.clock)
        self.free_in_s = 0.0
        self.vendor_leaves: int | None = None
        """Calls that the vendor says are left."""
        self.naps: list[tuple[float, asyncio.Future[None]]] = []
        self.queue = ProviderQueue(
            "p",
            settings=ProviderSettings.model_validate({"kind": "openai", "limits": limits or {}}),
            admission=AdmissionSettings(**admission),
            limiter=self.limiter,
            metrics=self.metrics,
            clock=self.clock,
            sleep=self.sleep,
        )

    def places(self, count: int) -> "Bench":
        """Let so many calls run at once, as if the provider had shown that it can bear no more."""
        self.queue._model("m").adaptive._limit = count
        return self

    def turn(
        self,
        name: str = "a",
        *,
        tokens: int = 100,
        patient: bool = True,
        priority: Priority = "interactive",
        until_s: float = 600.0,
        ticket: str = "",
        model: str = "m",
    ) -> "asyncio.Task[Turn | None]":
        work = Work(name, priority, 1.0, tokens, 0, ticket=lambda: ticket or name)
        until = self.clock.monotonic() + until_s

        async def ask() -> Turn | None:
            """Ask as the engine does."""
            try:
                turn = await self.queue.turn(work, model, self.free_in, until=until, patient=patient)
            except NoTurnError as late:
                raise await self.queue.refusal(work, model, late) from None
            if turn is not None and self.vendor_leaves is not None:
                self.vendor_leaves -= 1
            return turn

        return asyncio.create_task(ask())

    def free_in(self, _tokens: int, _keep: float) -> float:
        """Say what the vendor says."""
        return 30.0 if self.vendor_leaves == 0 else self.free_in_s

    async def at_once(self, name: str = "a", **more: Any) -> Turn:
        turn = await self.turn(name, patient=False, **more)
        assert turn is not None
        return turn

    async def sleep(self, seconds: float) -> None:
        """Sleep on the test's clock."""
        nap: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.naps.append((self.clock.monotonic() + seconds, nap))
        await nap

    async def pass_time(self, seconds: float) -> None:
        """Let time pass, and all that sleeps wake when it is due."""
        end = self.clock.monotonic() + seconds
        while True:
            self.naps = [(due, nap) for due, nap in self.naps if not nap.done()]
            due, nap = min(self.naps, key=lambda pair: pair[0], default=(math.inf, None))
            if nap is None or due > end:
                break
            self.clock.advance(max(0.0, due - self.clock.monotonic()))
            nap.set_result(None)
            await settle()
        self.clock.advance(max(0.0, end - self.clock.monotonic()))
        await settle()

    def waiting(self) -> float:
        return sum(
            self.metrics.registry.get_sample_value("llm_api_queue_waiting", {"provider": "p", "priority": priority})
            or 0.0
            for priority in ("interactive", "batch")
        )


async def settle() -> None:
    """Let everything happen that can happen without time passing."""
    for _ in range(30):
        await asyncio.sleep(0)


def names_of(tasks: dict[str, "asyncio.Task[Turn | None]"]) -> set[str]:
    return {name for name, task in tasks.items() if task.done()}


async def test_a_turn_comes_at_once_where_nothing_is_limited() -> None:
    bench = Bench()
    turns = [await bench.at_once() for _ in range(1_000)]
    assert bench.queue.running == 1_000
    for turn in turns:
        turn.end(None)
    assert bench.queue.running == 0


async def test_who_is_not_patient_is_told_that_it_would_wait() -> None:
    bench = Bench().places(1)
    await bench.at_once()
    assert await bench.turn(patient=False) is None
    assert bench.waiting() == 0


async def test_who_waits_is_served_when_a_place_is_free() -> None:
    bench = Bench().places(1)
    first = await bench.at_once()
    second = bench.turn()
    await settle()
    assert not second.done()
    assert bench.waiting() == 1
    first.end(Usage(10, 10))
    turn = await second
    assert turn is not None
    assert bench.waiting() == 0
    assert bench.queue.running == 1


async def test_what_one_model_cannot_bear_limits_no_other() -> None:
    bench = Bench()
    turns = [await bench.at_once() for _ in range(100)]
    turns[0].pushed_back()
    assert bench.metrics.registry.get_sample_value("llm_api_provider_concurrency_limit", {"provider": "p"}) == 70
    assert await bench.turn(patient=False) is None
    assert await bench.turn(patient=False, model="another") is not None


async def test_models_that_callers_make_up_do_not_fill_the_memory() -> None:
    bench = Bench()
    for number in range(1_000):
        (await bench.at_once(model=f"made-up-{number}")).end(None)
    assert len(bench.queue._models) <= 256


async def test_ending_a_turn_twice_changes_nothing() -> None:
    bench = Bench()
    turn = await bench.at_once()
    turn.end(None)
    turn.end(None)
    turn.give_back()
    assert bench.queue.running == 0


async def test_another_principal_goes_before_a_backlog() -> None:
    bench = Bench().places(1)
    running = await bench.at_once("flood")
    flood = [bench.turn("flood") for _ in range(20)]
    await settle()
    late = bench.turn("late")
    await settle()
    running.end(None)
    await settle()
    assert late.done()
    assert not any(task.done() for task in flood)
    for task in (*flood, late):
        task.cancel()


async def test_a_backlog_leaves_room_for_those_who_have_none() -> None:
    bench = Bench().places(40)
    running = [await bench.at_once("flood") for _ in range(40)]
    flood = [bench.turn("flood") for _ in range(50)]
    await settle()
    for turn in running[:10]:
        turn.end(None)
    await settle()
    assert sum(task.done() for task in flood) == 10 - 2  # a twentieth of forty stays free
    assert await bench.turn("light", patient=False) is not None
    for task in flood:
        task.cancel()


async def test_interactive_goes_before_batch() -> None:
    bench = Bench().places(1)
    running = await bench.at_once()
    night = bench.turn("night", priority="batch")
    await settle()
    day = bench.turn("day")
    await settle()
    running.end(None)
    turn = await day
    assert turn is not None
    assert not night.done()
    turn.end(None)
    assert await night is not None


async def test_who_would_wait_too_long_is_refused_at_once() -> None:
    bench = Bench(limits={"requests_per_minute": 60, "request_burst": 1}, queue_wait_s=3)
    await bench.at_once()
    waiting = [bench.turn() for _ in range(3)]
    await settle()
    assert not any(task.done() for task in waiting)
    with pytest.raises(Overloaded) as caught:
        await bench.turn()
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s >= 1
    assert "'p'" in caught.value.message
    for task in waiting:
        task.cancel()


async def test_who_has_less_time_than_it_would_wait_is_refused_at_once() -> None:
    bench = Bench(limits={"requests_per_minute": 60, "request_burst": 1})
    await bench.at_once()
    with pytest.raises(Overloaded):
        await bench.turn(until_s=0.5)
    patient = bench.turn(until_s=5)
    await settle()
    assert not patient.done()
    await bench.pass_time(1.0)
    assert await patient is not None


async def test_the_limits_of_the_fleet_give_turns_as_they_come_back() -> None:
    bench = Bench(limits={"requests_per_minute": 600, "request_burst": 2}, queue_wait_s=60)
    await bench.at_once()
    await bench.at_once()
    waiting = [bench.turn() for _ in range(10)]
    await settle()
    done = []
    for _ in range(12):
        await bench.pass_time(0.1)
        done.append(sum(task.done() for task in waiting))
    assert done == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10]


async def test_a_burst_that_is_left_out_is_a_little_less_than_a_minutes_worth() -> None:
    bench = Bench(limits={"requests_per_minute": 100})
    for _ in range(95):
        await bench.at_once()
    assert await bench.turn(patient=False) is None


async def test_tokens_are_settled_on_what_was_used() -> None:
    bench = Bench(limits={"tokens_per_minute": 1_000, "token_burst": 1_000})
    turn = await bench.at_once(tokens=900)
    assert await bench.turn(tokens=200, patient=False) is None
    turn.end(Usage(50, 50))
    assert await bench.turn(tokens=900, patient=False) is not None


@pytest.mark.parametrize(("billed", "passes"), [(True, False), (False, True)])
async def test_a_failed_call_takes_what_was_estimated_only_if_it_may_be_billed(*, billed: bool, passes: bool) -> None:
    bench = Bench(limits={"tokens_per_minute": 1_000, "token_burst": 1_000})
    (await bench.at_once(tokens=900)).end(None, billed=billed)
    assert (await bench.turn(tokens=200, patient=False) is not None) is passes


async def test_what_is_larger_than_the_providers_bucket_waits_for_all_of_it() -> None:
    bench = Bench(limits={"tokens_per_minute": 1_000, "token_burst": 1_000})
    assert await bench.turn(tokens=50_000, patient=False) is not None
    assert await bench.turn(tokens=1, patient=False) is None


async def test_a_turn_that_is_given_back_has_taken_nothing() -> None:
    bench = Bench(limits={"requests_per_minute": 60, "request_burst": 1, "tokens_per_minute": 100, "concurrency": 1})
    for _ in range(5):
        (await bench.at_once(tokens=95)).give_back()
    assert await bench.turn(tokens=95, patient=False) is not None


async def test_who_leaves_while_waiting_takes_nothing() -> None:
    bench = Bench().places(1)
    running = await bench.at_once()
    gone, stays = bench.turn("gone"), bench.turn("stays")
    await settle()
    gone.cancel()
    await settle()
    running.end(None)
    assert await stays is not None
    assert bench.queue.running == 1
    assert bench.waiting() == 0


async def test_who_leaves_in_the_moment_of_its_turn_gives_it_back() -> None:
    bench = Bench().places(1)
    running = await bench.at_once()
    gone = bench.turn("gone")
    await settle()
    for turns_of_the_loop in range(10):
        running.end(None)
        for _ in range(turns_of_the_loop):
            await asyncio.sleep(0)
        gone.cancel()
        results = await asyncio.gather(gone, return_exceptions=True)
        await settle()
        if isinstance(results[0], Turn):
            results[0].end(None)
        assert bench.queue.running == 0
        running = await bench.at_once()
        gone = bench.turn("gone")
        await settle()
    gone.cancel()


async def test_a_wait_that_was_foretold_too_short_ends_in_a_refusal() -> None:
    bench = Bench(queue_wait_s=5).places(1)
    running = await bench.at_once()
    waiting = bench.turn()
    await settle()
    await bench.pass_time(4.9)
    assert not waiting.done()
    await bench.pass_time(0.2)
    with pytest.raises(Overloaded):
        await waiting
    running.end(None)
    await settle()
    assert bench.queue.running == 0


async def test_a_turn_that_comes_after_its_time_is_not_used() -> None:
    bench = Bench(limits={"requests_per_minute": 6, "request_burst": 1}, queue_wait_s=60)
    await bench.at_once()
    waiting = bench.turn(until_s=11)
    await settle()
    bench.clock.advance(11)  # while this process did nothing at all
    await bench.pass_time(0.01)
    with pytest.raises(Overloaded):
        await waiting
    assert bench.queue.running == 1
    assert await bench.turn("b", patient=False) is not None  # the request that was in time for it


async def test_a_full_queue_turns_out_the_last_of_whoever_has_the_most() -> None:
    bench = Bench(queue_max=10).places(1)
    await bench.at_once("flood")
    flood = [bench.turn("flood") for _ in range(10)]
    await settle()
    late = bench.turn("late")
    await settle()
    with pytest.raises(Overloaded):
        await flood[-1]
    assert not late.done()
    assert not any(task.done() for task in flood[:-1])
    with pytest.raises(Overloaded):
        await bench.turn("flood")
    for task in (*flood[:-1], late):
        task.cancel()


async def test_batch_makes_place_for_interactive_and_never_the_other_way_round() -> None:
    bench = Bench(queue_max=2).places(1)
    await bench.at_once()
    night, day = bench.turn("night", priority="batch"), bench.turn("day")
    await settle()
    more = bench.turn("more")
    await settle()
    with pytest.raises(Overloaded):
        await night
    with pytest.raises(Overloaded):
        await bench.turn("late night", priority="batch")
    for task in (day, more):
        assert not task.done()
        task.cancel()


async def test_who_comes_again_when_told_is_let_in_before_new_ones() -> None:
    bench = Bench(limits={"requests_per_minute": 600, "request_burst": 1}, queue_wait_s=2)
    await bench.at_once()

    refused: dict[str, float] = {}
    tasks: dict[str, asyncio.Task[Turn | None]] = {}
    for number in range(60):
        ticket = f"t{number}"
        task = tasks[ticket] = bench.turn(ticket=ticket)
        await settle()
        if task.done() and isinstance(error := task.exception(), Overloaded):
            refused[ticket] = bench.clock.monotonic() + (error.retry_after_s or math.nan)
            del tasks[ticket]
    assert len(refused) >= 30
    assert len(set(refused.values())) == len(refused)

    again: dict[str, asyncio.Task[Turn | None]] = {}
    fresh_refused = 0
    for step in range(150):
        due = [ticket for ticket, at in refused.items() if ticket not in again and at <= bench.clock.monotonic()]
        again.update({ticket: bench.turn(ticket=ticket) for ticket in due})
        for number in range(3):
            tasks[f"f{step}-{number}"] = task = bench.turn(ticket=f"f{step}-{number}")
            await settle()
            fresh_refused += task.done() and task.exception() is not None
        await bench.pass_time(0.1)
    assert len(again) == len(refused)
    assert [ticket for ticket, task in again.items() if not task.done() or task.exception() is not None] == []
    assert fresh_refused > 100
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def test_who_does_not_obey_puts_off_nobody_else() -> None:
    bench = Bench(limits={"requests_per_minute": 600, "request_burst": 1}, queue_wait_s=2)
    await bench.at_once()
    waiting = [bench.turn("flood", ticket=f"t{number}") for number in range(300)]
    await settle()
    refusals = [error for task in waiting if task.done() and isinstance(error := task.exception(), Overloaded)]
    assert max(error.retry_after_s or 0 for error in refusals) > 20
    others = [bench.turn("other", ticket=f"o{number}") for number in range(60)]
    await settle()
    refused = [error for task in others if task.done() and isinstance(error := task.exception(), Overloaded)]
    assert refused
    assert (refused[0].retry_after_s or 99) < 5
    for task in (*waiting, *others):
        task.cancel()
    await asyncio.gather(*waiting, *others, return_exceptions=True)


async def test_what_the_vendor_says_is_left_is_waited_for() -> None:
    bench = Bench()
    bench.free_in_s = 0.02
    waiting = bench.turn()
    await settle()
    assert not waiting.done()
    bench.free_in_s = 0.0
    await bench.pass_time(0.02)
    assert waiting.done()


async def test_where_the_vendor_lets_nobody_in_soon_there_is_no_waiting() -> None:
    bench = Bench(queue_wait_s=5)
    bench.free_in_s = 30.0
    with pytest.raises(Overloaded) as caught:
        await bench.turn()
    assert (caught.value.retry_after_s or 0) >= 25


async def test_what_the_vendor_leaves_is_given_to_no_more_than_it_is_for() -> None:
    bench = Bench(queue_wait_s=60)
    bench.vendor_leaves = 0
    waiting = [bench.turn(f"principal-{number % 4}") for number in range(20)]
    await settle()
    bench.vendor_leaves = 3
    await bench.pass_time(30)
    assert sum(task.done() for task in waiting) == 3
    for task in waiting:
        task.cancel()


async def test_who_waits_for_one_model_keeps_nobody_from_another() -> None:
    bench = Bench().places(1)
    running = await bench.at_once()
    stuck = [bench.turn() for _ in range(5)]
    await settle()
    assert await bench.turn(model="another", patient=False) is not None
    bench.queue._model("third").adaptive._limit = 1
    third = await bench.at_once(model="third")
    waiting = bench.turn(model="third")
    await settle()
    third.end(None)
    assert await waiting is not None
    assert not any(task.done() for task in stuck)
    running.end(None)
    await settle()
    assert [task.done() for task in stuck] == [True, False, False, False, False]
    for task in stuck:
        task.cancel()


async def test_a_principal_is_not_forgotten_between_asking_and_waiting() -> None:
    bench = Bench().places(1)
    running = await bench.at_once()
    bench.queue._fair.flow("slow", "interactive", 1.0).booked_until = math.inf  # so that the store is asked
    waiting = bench.turn("slow")
    await asyncio.sleep(0)
    for number in range(600):
        bench.queue._fair.flow(f"name-{number}", "interactive", 1.0)
    await settle()
    running.end(None)
    assert await asyncio.wait_for(waiting, 5) is not None


async def test_where_places_are_short_those_who_are_refused_do_not_come_back_together() -> None:
    bench = Bench(limits={"concurrency": 2}, queue_wait_s=2)
    for _ in range(20):
        turn = await bench.at_once()
        bench.clock.advance(1)
        turn.end(None)
    await bench.at_once()
    await bench.at_once()
    tasks = [bench.turn(ticket=f"t{number}") for number in range(50)]
    await settle()
    refusals = [
        error.retry_after_s for task in tasks if task.done() and isinstance(error := task.exception(), Overloaded)
    ]
    assert len(refusals) > 30
    assert len(set(refusals)) == len(refusals)
    for task in tasks:
        task.cancel()


async def test_who_leaves_makes_room_for_the_next_at_once() -> None:
    bench = Bench(limits={"tokens_per_minute": 600, "token_burst": 1_000}, queue_wait_s=600)
    await bench.at_once(tokens=900)
    large, small = bench.turn(tokens=900), bench.turn(tokens=10)
    await settle()
    assert not small.done()
    large.cancel()
    assert await asyncio.wait_for(small, 5) is not None


async def test_an_attempt_at_once_that_is_cancelled_wakes_those_who_wait() -> None:
    bench = Bench().places(1)
    gate = asyncio.Event()
    reserve = bench.limiter.reserve

    async def slow(*args: Any, **more: Any) -> Any:
        await gate.wait()
        return await reserve(*args, **more)

    bench.queue.apply(
        ProviderSettings.model_validate({"kind": "openai", "limits": {"concurrency": 9}}),
        AdmissionSettings(),
    )
    bench.limiter.reserve = slow  # type: ignore[method-assign]
    first = bench.turn("a")
    await settle()
    second = bench.turn("b")
    await settle()
    gate.set()
    first.cancel()
    assert await asyncio.wait_for(second, 5) is not None


async def test_the_limit_grows_for_a_backlog_and_is_told_until_it_is_forgotten() -> None:
    bench = Bench(queue_wait_s=1_000)

    def told() -> float | None:
        return bench.metrics.registry.get_sample_value("llm_api_provider_concurrency_limit", {"provider": "p"})

    turns = [await bench.at_once() for _ in range(100)]
    turns[0].pushed_back()
    assert told() == 70
    waiting = [bench.turn() for _ in range(400)]
    await settle()
    for _ in range(50):
        turns.pop().end(None)
    for _ in range(10):
        await bench.pass_time(1.1)
        turns.pop().end(None)
    assert 100 < (told() or 0.0) < math.inf
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for turn in turns:
        turn.end(None)
    bench.clock.advance(61)
    (await bench.at_once("b")).end(None)
    assert told() == math.inf


async def test_those_who_were_told_to_come_fill_no_more_than_the_queue() -> None:
    bench = Bench(queue_max=3, queue_wait_s=600).places(1)
    await bench.at_once()
    flow = bench.queue._fair.flow("a", "interactive", 1.0)
    flow.booked_until = math.inf
    for number in range(5):
        await bench.limiter.promise("p/interactive/a", f"t{number}", work_s=0, at_least_s=0)
    tasks = [bench.turn(ticket=f"t{number}") for number in range(5)]
    await settle()
    assert [task.done() for task in tasks] == [False, False, False, True, True]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_changed_limits_hold_from_now_on_for_those_who_wait_too() -> None:
    bench = Bench(limits={"requests_per_minute": 6, "request_burst": 1}, queue_wait_s=60)
    await bench.at_once()
    waiting = bench.turn()
    await settle()
    assert not waiting.done()
    bench.queue.apply(ProviderSettings.model_validate({"kind": "openai"}), AdmissionSettings())
    assert await asyncio.wait_for(waiting, 5) is not None


async def test_a_defect_fails_those_who_wait_and_not_those_who_come_later(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench().places(1)
    running = await bench.at_once()

    def broken(_tokens: int, _keep: float) -> float:
        if bench.waiting():
            raise ZeroDivisionError
        return 0.0

    work = Work("a", "interactive", 1.0, 1, 1, ticket=lambda: "t")
    waiting = asyncio.create_task(bench.queue.turn(work, "m", broken, until=bench.clock.monotonic() + 9, patient=True))
    await settle()
    running.end(None)
    with pytest.raises(ZeroDivisionError):
        await waiting
    assert await bench.turn(patient=False) is not None
    assert "defect" in caplog.text


async def test_limits_of_the_fleet_are_shared_by_its_queues() -> None:
    bench = Bench(limits={"concurrency": 3})
    scope = Scope("provider", "p", Limits(concurrency=3))
    elsewhere = [await bench.limiter.reserve((scope,), Demand()) for _ in range(2)]
    first = await bench.at_once()
    waiting = bench.turn()
    await settle()
    assert not waiting.done()
    bench.limiter.settle(elsewhere[0], Demand())
    await bench.pass_time(0.02)
    assert waiting.done()
    first.end(None)


async def test_nothing_is_lost_whoever_leaves_when() -> None:
    bench = Bench(limits={"requests_per_minute": 6_000, "request_burst": 50, "concurrency": 20}, queue_wait_s=600)
    got: list[Turn] = []

    async def ask(number: int) -> None:
        turn = await bench.turn(f"principal-{number % 5}", until_s=500)
        if turn is not None:
            got.append(turn)

    tasks = [asyncio.create_task(ask(number)) for number in range(300)]
    for step in range(200):
        await bench.pass_time(0.05)
        if step % 3 == 0 and (left := [task for task in tasks if not task.done()]):
            left[step % len(left)].cancel()
        while got:
            got.pop().end(Usage(1, 1))
    await asyncio.gather(*tasks, return_exceptions=True)
    await settle()
    while got:
        got.pop().end(None)
    assert bench.queue.running == 0
    assert bench.waiting() == 0
    scope = Scope("provider", "p", Limits(concurrency=20))
    held = [await bench.limiter.reserve((scope,), Demand()) for _ in range(20)]
    assert len(held) == 20
