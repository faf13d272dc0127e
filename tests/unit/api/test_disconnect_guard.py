"""Noticing that the client has left: the work is cancelled, and nothing else is mistaken for it."""

import asyncio

import pytest
from starlette.types import Message, Receive

from service.api.disconnect import ClientDisconnected, cancelled_on_disconnect
from service.config import DrainSettings
from service.engine.drain import Drain, Stage
from service.errors import Draining
from tests.support.fake_app import DEADLINE_S, until


def receiving(*messages: str, then: asyncio.Event | None = None) -> Receive:
    """Give messages of those types, the last one once the event is set."""
    left = list(messages)

    async def receive() -> Message:
        if len(left) == 1 and then is not None:
            await then.wait()
        if not left:
            await asyncio.Event().wait()
        return {"type": left.pop(0)}

    return receive


async def test_work_is_cancelled_when_the_client_leaves() -> None:
    leave = asyncio.Event()
    cancelled = False
    with pytest.raises(ClientDisconnected):  # noqa: PT012 - the block is what is looked at
        async with (
            asyncio.timeout(DEADLINE_S),
            cancelled_on_disconnect({}, receiving("http.disconnect", then=leave), Drain(DrainSettings())),
        ):
            leave.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled = True
                raise
    assert cancelled


async def test_a_client_that_has_left_already_is_noticed_at_the_first_await() -> None:
    with pytest.raises(ClientDisconnected):
        async with (
            asyncio.timeout(DEADLINE_S),
            cancelled_on_disconnect({}, receiving("http.disconnect"), Drain(DrainSettings())),
        ):
            await asyncio.Event().wait()


async def test_the_end_of_the_body_is_no_disconnect() -> None:
    receive = receiving("http.request", "http.request", "http.disconnect", then=asyncio.Event())
    async with cancelled_on_disconnect({}, receive, Drain(DrainSettings())):
        for _ in range(5):
            await asyncio.sleep(0)


async def test_work_that_ends_stops_the_listening() -> None:
    async with cancelled_on_disconnect({}, receiving(), Drain(DrainSettings())):
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 2
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


async def test_who_is_told_to_listen_no_more_is_not_cancelled() -> None:
    leave = asyncio.Event()
    async with cancelled_on_disconnect(
        {}, receiving("http.disconnect", then=leave), Drain(DrainSettings())
    ) as stop_listening:
        stop_listening()
        leave.set()
        for _ in range(5):
            await asyncio.sleep(0)


async def test_a_failure_of_the_work_is_its_own() -> None:
    with pytest.raises(ZeroDivisionError):
        async with cancelled_on_disconnect({}, receiving(), Drain(DrainSettings())):
            raise ZeroDivisionError


async def test_a_timeout_of_the_work_is_not_taken_for_a_disconnect() -> None:
    with pytest.raises(TimeoutError):
        async with cancelled_on_disconnect({}, receiving(), Drain(DrainSettings())):
            raise TimeoutError


async def test_a_cancellation_from_outside_stays_one() -> None:
    entered = asyncio.Event()

    async def work() -> None:
        async with cancelled_on_disconnect({}, receiving(), Drain(DrainSettings())):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_drain_that_has_no_more_time_cancels_the_work_and_says_so() -> None:
    drain = Drain(DrainSettings(delay_s=0, timeout_s=0.001))

    async def work() -> None:
        with drain.work():
            async with cancelled_on_disconnect({}, receiving(), drain):
                await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE_S):
        await drain.run()
    with pytest.raises(Draining):
        await task
    assert drain.stage is Stage.DRAINED
