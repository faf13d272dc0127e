"""How a process stops without breaking its word: what changes when, from the signal to the end."""

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import IntEnum
from types import TracebackType

from typing_extensions import override

from service.config import DrainSettings
from service.errors import Draining

logger = logging.getLogger(__name__)

SPARE_S = 2.0
"""Seconds that are kept back where somebody else sets an end to all this."""
CLEAN_UP_S = 5.0
"""Seconds after the deadline in which what was cut short writes its last event and closes its upstream call."""


class Stage(IntEnum):
    """How far a stop has come. Each stage is reached once, in this order."""

    SERVING = 0
    NOTICED = 1
    """The signal has come: connections are not kept, new ones still served while endpoints notice."""
    REFUSING = 2
    """New work is refused; what runs goes on."""
    CUTTING = 3
    """The time is up: what still runs ends with an error that says so."""
    DRAINED = 4
    """Nothing runs any more, or we gave up waiting."""


def longest_run_s(settings: DrainSettings) -> float:
    """Return the most seconds that :meth:`Drain.run` takes."""
    return (settings.delay_s or 0.0) + settings.timeout_s + CLEAN_UP_S


class Drain:
    """Counts what runs, and leads it through the stages once :meth:`run` is called.

    Not safe for threads: all of it happens in one event loop.
    """

    def __init__(self, settings: DrainSettings) -> None:
        self.settings = settings
        self.stage = Stage.SERVING
        self._work = _Work()
        self._listeners: dict[Stage, set[Callable[[], object]]] = {stage: set() for stage in Stage}

    @property
    def ready(self) -> bool:
        """Whether ``/ready`` may say yes, as far as the stop is concerned."""
        match self.settings.readiness:
            case "immediate":
                return self.stage < Stage.NOTICED
            case "after_delay":
                return self.stage < Stage.REFUSING
            case "never":
                return True

    @property
    def running(self) -> int:
        """How many pieces of work run."""
        return self._work.running

    def work(self) -> AbstractContextManager[None]:
        """Count a piece of work, which a stop waits for."""
        return self._work

    @contextmanager
    def told(self, stage: Stage, listener: Callable[[], object]) -> Iterator[None]:
        """Call ``listener`` when the stage is reached within the block; at once if it has been."""
        self.tell(stage, listener)
        try:
            yield
        finally:
            self.untell(stage, listener)

    def tell(self, stage: Stage, listener: Callable[[], object]) -> None:
        """Call ``listener`` when the stage is reached, until :meth:`untell`; at once if it has been."""
        if self.stage >= stage:
            listener()
        else:
            self._listeners[stage].add(listener)

    def untell(self, stage: Stage, listener: Callable[[], object]) -> None:
        """Forget a listener that is known, or was called."""
        self._listeners[stage].discard(listener)

    def error(self) -> Draining:
        """Make what work is refused or cut short with."""
        return Draining("this process is stopping: send the request again, it will reach another", retry_after_s=1.0)

    async def run(self, *, delay_s: float | None = None, within_s: float = math.inf) -> None:
        """Go through all stages; return when the process may end. Called twice, it does nothing.

        ``delay_s`` replaces the setting, for a stop that no endpoint has to notice. ``within_s`` is all the time there
        is, if that is less than the settings take: then both times shrink, so that what is cut short can still say so.
        """
        if self.stage is not Stage.SERVING:
            return
        left_s = max(0.0, within_s - CLEAN_UP_S - SPARE_S)
        delay_s = min((self.settings.delay_s or 0.0) if delay_s is None else delay_s, left_s / 2)
        timeout_s = min(self.settings.timeout_s, left_s - delay_s)
        logger.info("draining", extra={"running": self.running, "delay_s": delay_s, "timeout_s": timeout_s})
        self._reach(Stage.NOTICED)
        if delay_s:
            await asyncio.sleep(delay_s)
        self._reach(Stage.REFUSING)
        if not await self.idle_within(timeout_s):
            logger.warning("drain deadline: what still runs is cut short", extra={"running": self.running})
            self._reach(Stage.CUTTING)
            if not await self.idle_within(CLEAN_UP_S):
                logger.error("gave up waiting for what still runs", extra={"running": self.running})
        self._reach(Stage.DRAINED)
        logger.info("drained")

    async def idle_within(self, seconds: float) -> bool:
        """Wait until nothing runs; say whether that came in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._work.idle.wait()
        except TimeoutError:
            return False
        return True

    def _reach(self, stage: Stage) -> None:
        self.stage = stage
        for listener in tuple(self._listeners[stage]):
            try:
                listener()
            except Exception:  # whoever is told must not keep the others from it, nor the process from its end
                logger.exception("a listener to the drain failed by a defect", extra={"stage": stage.name.lower()})


class _Work(AbstractContextManager[None]):
    """One object for all pieces of work: entering it costs each request a quarter of what a generator would."""

    def __init__(self) -> None:
        self.running = 0
        self.idle = asyncio.Event()
        self.idle.set()

    @override
    def __enter__(self) -> None:
        self.running += 1
        if self.running == 1:
            self.idle.clear()

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.running -= 1
        if not self.running:
            self.idle.set()
