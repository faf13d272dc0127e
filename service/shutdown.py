"""What the signals to stop do: the drain, and then what the server does at them by itself."""

import asyncio
import logging
import math
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

from service.config import DrainSettings
from service.engine.drain import CLEAN_UP_S, Drain, Stage, longest_run_s
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

SIGQUIT = getattr(signal, "SIGQUIT", signal.SIGINT)
"""What gunicorn tells its workers for a quick stop; uvicorn's worker notes it and goes on. Not every system has it."""

BACKSTOP_S = 10
"""Seconds for which uvicorn's own stop waits, which begins when the drain is over: nothing runs any more then, but for
what did not even end when it was cut short."""

Handler = Callable[[int, FrameType | None], object]


def longest_stop_s(settings: DrainSettings) -> float:
    """Return the most seconds from the signal to where the pools close, but for what the server waits itself."""
    return longest_run_s(settings) + CLEAN_UP_S


@asynccontextmanager
async def drained_at_the_end(drain: Drain, metrics: Metrics) -> AsyncIterator[None]:
    """Within the block, the signals that stop this process begin the drain; the server hears of them afterwards.

    That needs uvicorn, alone or as gunicorn's worker, which installs its handler before the application starts. Under
    any other server the signals are left alone.
    """

    def tell_unready() -> None:
        if not drain.ready:
            metrics.ready.set(0)

    with drain.told(Stage.NOTICED, tell_unready), drain.told(Stage.REFUSING, tell_unready), _signals_taken(drain):
        yield
        # A server that lost its patience cancels what runs and does not wait for it: that would meet closed pools.
        await drain.idle_within(CLEAN_UP_S)


@contextmanager
def _signals_taken(drain: Drain) -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM) if threading.current_thread() is threading.main_thread() else None
    if not callable(handler):
        yield  # nobody handles it: a test, or a program that is embedded in another one
        return
    if not hasattr(getattr(handler, "__self__", None), "should_exit"):
        logger.warning("this server stops by itself at SIGTERM: nothing is drained, and drain.* has no effect")
        yield
        return
    config = getattr(getattr(handler, "__self__", None), "config", None)
    patience_s = _supervisors_patience_s(config)
    if patience_s < longest_run_s(drain.settings):
        logger.warning(
            "gunicorn kills a worker %g s after SIGTERM, and a drain may take %g s: what runs is cut short, with an "
            "error, before that; set --graceful-timeout, or a shorter drain.timeout_s",
            patience_s,
            longest_run_s(drain.settings),
        )
    if config is not None and config.timeout_graceful_shutdown is None:
        # Left alone uvicorn waits for ever for a client that does not take its last event.
        config.timeout_graceful_shutdown = BACKSTOP_S
    stop = _Stop(drain, handler, within_s=patience_s)
    taken = {signal.SIGTERM, signal.SIGINT}
    if callable(signal.getsignal(SIGQUIT)):  # left alone, it ends a process and dumps its memory
        taken.add(SIGQUIT)
    before = {number: signal.signal(number, stop.on_signal) for number in taken}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
        stop.forget()


def _supervisors_patience_s(config: Any) -> float:
    """Return how long gunicorn lets a worker live after SIGTERM, if it is gunicorn that runs us."""
    worker = getattr(getattr(config, "callback_notify", None), "__self__", None)
    patience_s = getattr(getattr(worker, "cfg", None), "graceful_timeout", None)
    return math.inf if patience_s is None else float(patience_s)


class _Stop:
    """Puts the drain between a signal and the server's handler of it."""

    def __init__(self, drain: Drain, server: Handler, *, within_s: float) -> None:
        self._drain = drain
        self._within_s = within_s
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._interrupts = 0

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal. It comes between any two instructions of the loop's thread, so the loop does the rest."""
        del frame
        self._loop.call_soon_threadsafe(self._begin, number)

    def forget(self) -> None:
        """Drain no further: the server has ended, whatever the reason."""
        if self._task is not None:
            self._task.cancel()

    def _begin(self, number: int) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._run(number), name="drain")
        if number != signal.SIGINT:
            return
        self._interrupts += 1
        # The first may be one half of a Ctrl-C of which the other came as SIGTERM from our supervisor. At the second
        # somebody loses patience, and uvicorn forces its end at the second one that it hears of.
        if self._interrupts > 1 or self._task.done():
            self._server(number, None)
            self._server(number, None)

    async def _run(self, number: int) -> None:
        try:
            # Only SIGTERM comes with endpoints that have to notice.
            await self._drain.run(delay_s=None if number == signal.SIGTERM else 0.0, within_s=self._within_s)
        except Exception:  # the outer edge of the task: a defect must not make the process immortal
            logger.exception("the drain failed by a defect")
        self._server(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM, None)
