"""Single faults, each with one job and the moment chosen: who was taken for dead comes back, SIGTERM, cancels."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple, TypeVar

from tests.jobs.candidate import Candidate
from tests.jobs.faults import Scene, scene
from tests.jobs.history import TERMINAL, History, broken

T = TypeVar("T")

JOB = "it"
OTHER = "other"
DRAIN_S = 2.0
"""What candidates are told to give a running job after SIGTERM."""
AT_ONCE_S = 5.0
"""After the drain's end: an idle worker has to hear of the job."""
RERUN_S = 45.0
CANCEL_S = 2.0
PATIENCE_S = 90.0
SHORT = ("--ttft-ms", "1500", "--gap-ms", "20")
LONG = ("--ttft-ms", "1000", "--gap-ms", "4500")
"""A job of ten tokens takes 42 s: longer than any lease here."""


class Finding(NamedTuple):
    """What came of a case."""

    case: str
    kept: bool
    told: str


async def all_cases(candidate: Candidate) -> list[Finding]:
    """Run all, side by side; each has a store and a provider of its own."""
    return list(await asyncio.gather(*(_found(name, case, candidate) for name, case in CASES.items())))


async def _found(name: str, case: Callable[[Candidate], Awaitable[tuple[bool, str]]], candidate: Candidate) -> Finding:
    try:
        return Finding(name, *await case(candidate))
    except TimeoutError:
        return Finding(name, kept=False, told=f"not within {PATIENCE_S:.0f} s")


async def back_after_the_end(candidate: Candidate) -> tuple[bool, str]:
    """A worker is frozen, its job is done by another, it goes on: the result stays."""
    async with scene(candidate, workers=1, concurrency=1, pace=SHORT) as at:
        frozen_at = await _freeze_at_work(at)
        await at.workers.start()
        rerun_s = await _calls(at, 2) - frozen_at
        await _ended(at)
        return await _thawed(at, frozen_at, 6.0, f"re-run after {rerun_s:.1f} s; ")


async def back_before_the_end(candidate: Candidate) -> tuple[bool, str]:
    """The same, but the other is still at work: one of the two results is the result."""
    async with scene(candidate, workers=1, concurrency=1, pace=SHORT) as at:
        frozen_at = await _freeze_at_work(at)
        await at.change(ttft_ms=8_000)
        await at.workers.start()
        await _calls(at, 2)
        return await _thawed(at, frozen_at, 14.0)


async def back_after_a_cancel(candidate: Candidate) -> tuple[bool, str]:
    """The same, but the job is cancelled while the worker is frozen."""
    async with scene(candidate, workers=1, concurrency=1, pace=SHORT) as at:
        frozen_at = await _freeze_at_work(at)
        await at.workers.start()
        await asyncio.sleep(5.0)  # for it to be up
        if await _cancel(at):
            return await _thawed(at, frozen_at, 8.0, cancelled_at=time.monotonic())
        _, told = await _thawed(at, frozen_at, 8.0)
        return False, f"not acknowledged, then {told}"


async def sigterm(candidate: Candidate) -> tuple[bool, str]:
    """A worker is told to end in the midst of a long job; an idle one is there."""
    async with scene(candidate, workers=1, concurrency=1, pace=LONG) as at:
        await at.queue.submit(JOB)
        await _calls(at, 1)
        first = at.workers.running[0]
        await at.workers.start()
        await _do_another(at)
        first.send_signal(signal.SIGTERM)
        told_at = time.monotonic()
        back_s = await _calls(at, 2) - told_at
        kept = back_s <= DRAIN_S + AT_ONCE_S
        return kept, f"re-run {back_s:.1f} s after SIGTERM, of which {DRAIN_S:g} s to drain"


async def longer_than_the_lease(candidate: Candidate) -> tuple[bool, str]:
    """Nothing happens but a job of 42 s."""
    async with scene(candidate, workers=2, concurrency=1, pace=LONG) as at:
        await at.queue.submit(JOB)
        state = await _ended(at)
        calls = len((await at.calls())[JOB])
        return calls == 1 and state == "complete", f"{state}, calls: {calls}"


async def cancel_of_what_runs(candidate: Candidate) -> tuple[bool, str]:
    """A cancel stops the call to the provider."""
    async with scene(candidate, workers=2, concurrency=1, pace=LONG) as at:
        await at.queue.submit(JOB)
        await _calls(at, 1)
        await asyncio.sleep(2.0)  # in the midst of its answer
        asked_at = time.monotonic()
        acknowledged = await _cancel(at)
        answered_s = time.monotonic() - asked_at
        ledger = await _until(at.ledger, lambda ledger: not ledger[JOB][0]["open"])
        stopped_s = ledger[JOB][0]["closed_monotonic_s"] - asked_at
        state = (await at.look(JOB)).state
        kept = acknowledged and stopped_s <= CANCEL_S and answered_s <= CANCEL_S and state == "cancelled"
        word = "acknowledged" if acknowledged else "not acknowledged"
        return kept, f"{word} after {answered_s:.1f} s, call ended after {stopped_s:.1f} s, then {state}"


async def cancel_without_workers(candidate: Candidate) -> tuple[bool, str]:
    """A cancel holds although no worker lives to hear of it."""
    async with scene(candidate, workers=0, concurrency=1, pace=SHORT) as at:
        await at.queue.submit(JOB)
        acknowledged = await _cancel(at)
        await at.workers.start()
        state = await _ended(at)
        calls = len((await at.calls()).get(JOB, []))
        word = "acknowledged" if acknowledged else "not acknowledged"
        return acknowledged and state == "cancelled" and not calls, f"{word}, then {state}, calls: {calls}"


CASES = {
    "frozen, back after the job's end": back_after_the_end,
    "frozen, back during the re-run": back_before_the_end,
    "frozen, back after a cancel": back_after_a_cancel,
    "SIGTERM": sigterm,
    "job of 42 s": longer_than_the_lease,
    "cancel of a running job": cancel_of_what_runs,
    "cancel with no worker alive": cancel_without_workers,
}


async def _freeze_at_work(at: Scene) -> float:
    """Submit, and stop the one worker while the provider is at work for it; return when."""
    await at.queue.submit(JOB)
    await _calls(at, 1)
    at.workers.signal(at.workers.running[0], signal.SIGSTOP)
    return time.monotonic()


async def _thawed(
    at: Scene, frozen_at: float, for_s: float, told: str = "", *, cancelled_at: float | None = None
) -> tuple[bool, str]:
    """Let the frozen one go on, look for a while, and judge all that was seen."""
    history = History(accepted={JOB: frozen_at}, kills=[frozen_at], seen=[await at.look(JOB)])
    at.workers.signal(at.workers.running[0], signal.SIGCONT)
    if cancelled_at is not None:
        history.cancelled[JOB] = cancelled_at
    until = time.monotonic() + for_s
    while time.monotonic() < until:
        await asyncio.sleep(0.1)
        with suppress(RuntimeError):
            history.seen.append(await at.look(JOB))
    history.final[JOB] = await at.look(JOB)
    history.calls = await at.calls()
    found = [text.partition(":")[0] for text in broken(history, rerun_within_s=RERUN_S)]
    return not found, f"{told}{', '.join(found) or history.final[JOB].state}"


async def _do_another(at: Scene) -> None:
    """Let whoever is idle do a job, which shows that it is up; how long that takes is the machine's matter."""
    await at.change(ttft_ms=0, gap_ms=0)
    await at.queue.submit(OTHER)
    await _until(lambda: at.look(OTHER), lambda seen: seen.state in TERMINAL)
    await at.change(ttft_ms=float(LONG[1]), gap_ms=float(LONG[3]))


async def _calls(at: Scene, count: int) -> float:
    """Wait until the provider was called so often; return when it was."""
    calls = await _until(at.calls, lambda calls: len(calls.get(JOB, [])) >= count)
    return sorted(calls[JOB])[count - 1]


async def _cancel(at: Scene) -> bool:
    try:
        return await at.queue.cancel(JOB)
    except RuntimeError:
        return False


async def _ended(at: Scene) -> str:
    return (await _until(lambda: at.look(JOB), lambda seen: seen.state in TERMINAL)).state


async def _until(look: Callable[[], Awaitable[T]], fits: Callable[[T], bool]) -> T:
    async with asyncio.timeout(PATIENCE_S):
        while not fits(found := await look()):  # noqa: ASYNC110 - other processes have no event
            await asyncio.sleep(0.1)
    return found
