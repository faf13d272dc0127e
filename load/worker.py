"""What one locust worker does in a run: its share of the schedule, or its users' turns, and notes of each request."""

import math
import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import astuple
from typing import Any, Final

import gevent
from gevent.pool import Group

from load.arrivals import Arrival, share
from load.callers import Ask, Callers
from load.measures import Gaps, Record
from load.prompts import prompt
from load.scenario import Scenario

_LEAD_S: Final = 0.5
"""From the plan's arrival to the schedule's zero: the first requests are not late for want of time to prepare."""


class Worker:
    """One run's share. Every request begun leaves one record, those that never ended included."""

    def __init__(
        self,
        scenario: Scenario,
        callers: Callers,
        *,
        index: int,
        workers: int,
        told: Callable[[Record, list[float]], None],
    ) -> None:
        self.scenario = scenario
        self._callers = callers
        self._index, self._workers = index, workers
        self._told = told
        self._routes = [route for route, weight in scenario.mix.items() if weight]
        self._weights = [scenario.mix[route] for route in self._routes]
        self._zero_s = time.perf_counter() + _LEAD_S
        self._numbers = index
        self._records: list[tuple[Any, ...]] = []
        self._gaps: defaultdict[str, Gaps] = defaultdict(Gaps)
        self._gaps_at: defaultdict[int, Gaps] = defaultdict(Gaps)

    def follow_schedule(self) -> None:
        """Send this worker's arrivals when they are due, whatever became of those before; return when all ended."""
        flights = Group()
        for arrival in share(self.scenario.schedule(), self._index, self._workers):
            wait_s = self._zero_s + arrival.at_s - time.perf_counter()
            if wait_s > 0:
                gevent.sleep(wait_s)
            flights.spawn(self.fly, arrival, self._next())
        # Every flight ends by its own timeout.
        flights.join()

    def take_turns(self) -> None:
        """Ask, wait for the answer, ask again, until the run is over."""
        while (at_s := self.now_s()) < self.scenario.duration_s:
            if at_s < 0:
                gevent.sleep(-at_s)
                continue
            self.fly(Arrival(at_s), self._next())

    def now_s(self) -> float:
        """Return the seconds since the schedule's zero."""
        return time.perf_counter() - self._zero_s

    def fly(self, arrival: Arrival, number: int) -> None:
        """Make one request and note what came of it."""
        sent_s = self.now_s()
        draw = random.Random(number)  # noqa: S311 - the same mix and sizes in each run
        route = draw.choices(self._routes, self._weights)[0]
        record = Record(route, arrival.at_s, sent_s)
        ask = self._ask(arrival, number, draw)
        record.outcome = self._callers.ask(route, ask)
        ended_s = ask.ended_s if ask.ended_s is not None else time.perf_counter()
        record.end_s = ended_s - self._zero_s
        record.output_tokens = ask.output_tokens
        self._note(record, [at_s - self._zero_s for at_s in ask.times])

    def report(self) -> dict[str, Any]:
        """Return what was noted since the last report, and forget it."""
        packed = {
            "records": self._records,
            "gaps": [(route, gaps.packed()) for route, gaps in self._gaps.items()],
            "gaps_at": [(second, gaps.packed()) for second, gaps in self._gaps_at.items()],
        }
        self._records = []
        self._gaps, self._gaps_at = defaultdict(Gaps), defaultdict(Gaps)
        return packed

    def _ask(self, arrival: Arrival, number: int, draw: random.Random) -> Ask:
        scenario = self.scenario
        wanted, length = scenario.input_tokens, scenario.output_tokens
        inputs = arrival.input_tokens or _drawn(wanted.median, wanted.spread, wanted.max, draw)
        outputs = arrival.output_tokens or _drawn(length.median, length.spread, length.max, draw)
        return Ask(
            model=scenario.model.replace("{output_tokens}", str(outputs)),
            prompt=prompt(inputs, number, arrival.prefix),
            max_tokens=min(outputs, 4_096),
            until_s=self._zero_s + arrival.at_s + scenario.timeout_s,
            finish_reasons=scenario.finish_reasons,
        )

    def _note(self, record: Record, times: list[float]) -> None:
        gaps = record.observe(times, self.scenario.stall_s)
        for gap_s, at_s in zip(gaps, times[1:], strict=True):
            self._gaps[record.route].add(gap_s)
            self._gaps_at[int(at_s)].add(gap_s)
        self._records.append(astuple(record))
        self._told(record, gaps)

    def _next(self) -> int:
        number = self._numbers
        self._numbers += self._workers
        return number


def _drawn(median: int, spread: float, most: int, draw: random.Random) -> int:
    return max(min(round(draw.lognormvariate(math.log(median), spread)) if spread else median, most), 1)
