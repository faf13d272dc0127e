"""The stages of a stop, and what is counted and told in them."""

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.config import DrainSettings
from service.engine import drain as module
from service.engine.drain import Drain, Stage, longest_run_s

LONG_S = 3_600.0


def make_drain(**settings: Any) -> Drain:
    return Drain(DrainSettings.model_validate({"delay_s": 0, **settings}))


def record_stages(drain: Drain, seen: list[Stage]) -> list[Any]:
    """Note each stage as it is reached; return what has to be kept for that."""
    listeners = []
    for stage in Stage:
        if stage is not Stage.SERVING:
            listener = drain.told(stage, lambda stage=stage: seen.append(stage))  # type: ignore[misc] # mypy cannot infer it
            listener.__enter__()
            listeners.append(listener)
    return listeners


async def test_with_nothing_running_nothing_is_cut() -> None:
    drain = make_drain()
    seen: list[Stage] = []
    _kept = record_stages(drain, seen)
    await drain.run()
    assert seen == [Stage.NOTICED, Stage.REFUSING, Stage.DRAINED]
    assert drain.stage is Stage.DRAINED


async def test_it_is_over_when_the_last_piece_of_work_is() -> None:
    drain = make_drain(timeout_s=LONG_S)
    with drain.work():
        with drain.work():
            run = asyncio.create_task(drain.run())
            await asyncio.sleep(0)
            assert (drain.stage, drain.running) == (Stage.REFUSING, 2)
        await asyncio.sleep(0)
        assert (drain.stage, drain.running) == (Stage.REFUSING, 1)
    await run
    assert (drain.stage, drain.running) == (Stage.DRAINED, 0)


async def test_work_that_ends_only_when_it_is_cut_is_cut() -> None:
    drain = make_drain(timeout_s=0.001)
    cut = asyncio.Event()

    async def work() -> None:
        with drain.work(), drain.told(Stage.CUTTING, cut.set):
            await cut.wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    seen: list[Stage] = []
    _kept = record_stages(drain, seen)
    await drain.run()
    assert seen == [Stage.NOTICED, Stage.REFUSING, Stage.CUTTING, Stage.DRAINED]
    await task


async def test_work_that_never_ends_does_not_hold_the_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "CLEAN_UP_S", 0.001)
    drain = make_drain(timeout_s=0.001)
    with drain.work():
        await drain.run()
        assert drain.stage is Stage.DRAINED
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        "gave up waiting for what still runs"
    ]


async def test_new_work_is_served_during_the_delay() -> None:
    drain = make_drain(delay_s=LONG_S)
    run = asyncio.create_task(drain.run())
    await asyncio.sleep(0)
    assert drain.stage is Stage.NOTICED
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)


async def test_a_delay_that_is_given_replaces_the_one_that_is_set() -> None:
    drain = make_drain(delay_s=LONG_S)
    await asyncio.wait_for(drain.run(delay_s=0), 5)
    assert drain.stage is Stage.DRAINED


async def test_a_second_run_does_nothing() -> None:
    drain = make_drain(timeout_s=LONG_S)
    with drain.work():
        run = asyncio.create_task(drain.run())
        await asyncio.sleep(0)
        await drain.run()
        assert drain.stage is Stage.REFUSING
    await run


@pytest.mark.parametrize(
    ("readiness", "ready"),
    [
        ("immediate", [True, False, False, False, False]),
        ("after_delay", [True, True, False, False, False]),
        ("never", [True, True, True, True, True]),
    ],
)
async def test_readiness_ends_when_the_setting_says(readiness: str, ready: list[bool]) -> None:
    drain = make_drain(readiness=readiness)
    found = []
    for stage in Stage:
        drain.stage = stage
        found.append(drain.ready)
    assert found == ready


async def test_who_comes_late_is_told_at_once_and_who_has_left_is_not() -> None:
    drain = make_drain()
    told: list[str] = []
    with drain.told(Stage.NOTICED, lambda: told.append("left")):
        pass
    await drain.run()
    with drain.told(Stage.REFUSING, lambda: told.append("late")):
        assert told == ["late"]
    assert told == ["late"]


async def test_a_listener_that_fails_keeps_neither_the_others_nor_the_end(caplog: pytest.LogCaptureFixture) -> None:
    drain = make_drain()
    told: list[str] = []

    def broken() -> None:
        raise ZeroDivisionError

    with drain.told(Stage.NOTICED, broken), drain.told(Stage.NOTICED, lambda: told.append("other")):
        await drain.run()
    assert (told, drain.stage) == (["other"], Stage.DRAINED)
    assert "a listener to the drain failed by a defect" in caplog.text


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_work_that_fails_is_over(error: type[BaseException]) -> None:
    drain = make_drain()
    with pytest.raises(error), drain.work():
        raise error
    assert drain.running == 0
    assert await drain.idle_within(0)


@given(st.lists(st.booleans()))
def test_it_is_idle_exactly_when_nothing_runs(steps: list[bool]) -> None:
    async def check() -> None:
        drain = make_drain()
        running = []
        for begins in steps:
            if begins:
                running.append(drain.work())
                running[-1].__enter__()
            elif running:
                running.pop().__exit__(None, None, None)
            assert drain.running == len(running)
            assert drain._work.idle.is_set() == (not running)

    asyncio.run(check())


async def test_the_error_says_that_another_process_takes_it() -> None:
    error = make_drain().error()
    assert (error.code, error.status, error.retryable, error.retry_after_s) == ("draining", 503, True, 1.0)


def test_the_longest_run_is_the_sum_of_its_waits() -> None:
    assert longest_run_s(DrainSettings(delay_s=10, timeout_s=180)) == 10 + 180 + module.CLEAN_UP_S
    assert longest_run_s(DrainSettings(timeout_s=1)) == 1 + module.CLEAN_UP_S
