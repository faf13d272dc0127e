"""Hedging: a second attempt at a stream whose first content is late; the later of the two is given up."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from service.config import HedgingSettings
from service.domain.clock import Clock
from service.engine.attempt import Attempt, Lose
from service.engine.catalogue import ModelEntry
from service.resilience.budget import Budget

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

RESERVE = 10.0
"""Hedges that quieter times may leave for a moment of trouble."""
FIRST_CONTENTS = 200
"""Of how many streams the times to the first content are remembered for each model."""
FIRST_CONTENTS_AT_LEAST = 20
"""Fewer say nothing about a 95th percentile."""


class Hedgeable(Protocol[T_co]):
    """One request's attempts, of which two may run at once."""

    cut_short: list[tuple[Attempt, float]]
    """Attempts that were cancelled while they ran, and after how many seconds."""
    took_s: float
    """How long the attempt took that brought something."""

    async def first_that_can(self) -> tuple[T_co, Attempt]:
        """Make attempts until one brings something."""
        ...

    def has_another(self) -> bool:
        """Whether a second attempt may run beside the one that does."""
        ...

    async def another(self) -> tuple[T_co, Attempt] | None:
        """Make one more; None if there is none to make, or it fails."""
        ...


class Hedging:
    """Decides when to hedge, and does it."""

    def __init__(self, settings: HedgingSettings, *, clock: Clock, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._settings = settings
        self._clock = clock
        self._sleep = sleep
        self._budget = self._new_budget()
        self._first_contents: dict[str, deque[float]] = {}

    def apply(self, settings: HedgingSettings) -> None:
        """Go by other settings from now on."""
        if settings != self._settings:
            self._settings = settings
            self._budget = self._new_budget()

    async def first_that_can(self, run: Hedgeable[T], entry: ModelEntry, lose: Lose[T]) -> tuple[T, Attempt]:
        """Return what the first of a request's attempts brings, of two at once if it is late."""
        if not self._settings.enabled:
            return await run.first_that_can()
        self._budget.earn()
        delay_s = self._delay_s(entry)
        if delay_s is None:
            answer = await run.first_that_can()
        else:
            answer = await self._hedged(run, entry, lose, delay_s)
        self._took(entry, run.took_s)
        return answer

    def _new_budget(self) -> Budget:
        return Budget(ratio=self._settings.budget_ratio, per_s=0.0, reserve=RESERVE, initial=0.0, clock=self._clock)

    def _took(self, entry: ModelEntry, seconds: float) -> None:
        """Remember how long a first content took, or how long it was waited for in vain."""
        self._first_contents.setdefault(entry.name, deque(maxlen=FIRST_CONTENTS)).append(seconds)

    def _delay_s(self, entry: ModelEntry) -> float | None:
        """Return after how long a first content is late; None while nobody can say."""
        if self._settings.delay_s is not None:
            return self._settings.delay_s
        known = sorted(self._first_contents.get(entry.name, ()))
        return known[len(known) * 95 // 100] if len(known) >= FIRST_CONTENTS_AT_LEAST else None

    async def _hedged(self, run: Hedgeable[T], entry: ModelEntry, lose: Lose[T], delay_s: float) -> tuple[T, Attempt]:
        """Make attempts as usual, and one more beside them if they are late; give up whichever loses."""
        usual = asyncio.create_task(run.first_that_can())
        timer = asyncio.ensure_future(self._sleep(delay_s))
        tasks: list[asyncio.Task[tuple[T, Attempt] | None]] = [usual]
        answer: tuple[T, Attempt] | None = None
        try:
            await asyncio.wait((usual, timer), return_when=asyncio.FIRST_COMPLETED)
            if not usual.done() and run.has_another() and self._budget.spend():
                tasks.append(asyncio.create_task(run.another()))
            answer = await _first_answer(tasks)
        finally:
            for task in (timer, *tasks):
                task.cancel()
            try:
                await asyncio.gather(timer, *tasks, return_exceptions=True)
            except asyncio.CancelledError:
                if answer is not None:  # nobody is left to take it
                    await lose(answer[1], answer[0])
                raise
            finally:
                for late in _answers(tasks):
                    if late is not answer:
                        await lose(late[1], late[0])
            if answer is not None:
                for attempt, waited_s in run.cut_short:
                    self._took(entry, waited_s)
                    await lose(attempt, None)
        return usual.result() if answer is None else answer


async def _first_answer(tasks: "list[asyncio.Task[tuple[T, Attempt] | None]]") -> tuple[T, Attempt] | None:
    """Wait for one of them to bring something; None if none does."""
    pending = set(tasks)
    while pending:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if answers := _answers(tasks):
            return answers[0]
    return None


def _answers(tasks: "list[asyncio.Task[tuple[T, Attempt] | None]]") -> list[tuple[T, Attempt]]:
    good = (task for task in tasks if task.done() and not task.cancelled() and task.exception() is None)
    return [answer for task in good if (answer := task.result()) is not None]
