"""Signals, between a server and its application, in this very process."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.config import DrainSettings
from service.engine.drain import CLEAN_UP_S, Drain, Stage
from service.shutdown import drained_at_the_end, longest_stop_s
from service.telemetry.metrics import Metrics

TAKEN = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Server:
    """Handles signals as uvicorn's does."""

    def __init__(self) -> None:
        self.should_exit = False
        self.heard: list[int] = []
        self.told = asyncio.Event()

    def handle_exit(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.should_exit = True
        self.heard.append(number)
        self.told.set()


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """Give the signals back to whoever had them."""
    before = {number: signal.getsignal(number) for number in TAKEN}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@asynccontextmanager
async def running(server: Server, **settings: Any) -> AsyncIterator[tuple[Drain, Metrics]]:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    drain = Drain(DrainSettings.model_validate({"delay_s": 0, **settings}))
    metrics = Metrics(CollectorRegistry())
    metrics.ready.set(1)
    async with drained_at_the_end(drain, metrics):
        yield drain, metrics


async def turns() -> None:
    """Let what a signal began go on until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_server_hears_of_the_signal_when_the_drain_is_over() -> None:
    server = Server()
    async with running(server) as (drain, metrics):
        with drain.work():
            signal.raise_signal(signal.SIGTERM)
            await turns()
            assert (drain.stage, server.heard) == (Stage.REFUSING, [])
            assert metrics.registry.get_sample_value("llm_api_ready") == 0
            signal.raise_signal(signal.SIGTERM)
            await turns()
            assert server.heard == []
        await asyncio.wait_for(server.told.wait(), 5)
        assert (drain.stage, server.heard) == (Stage.DRAINED, [signal.SIGTERM])
        signal.raise_signal(signal.SIGTERM)
        await turns()
    assert server.heard == [signal.SIGTERM]


async def test_an_interrupt_does_not_wait_for_endpoints_and_sigterm_does() -> None:
    for number, stage in ((signal.SIGINT, Stage.REFUSING), (signal.SIGTERM, Stage.NOTICED)):
        async with running(Server(), delay_s=3_600) as (drain, _):
            with drain.work():
                signal.raise_signal(number)
                await turns()
                assert drain.stage is stage


async def test_at_a_second_interrupt_the_server_is_forced() -> None:
    server = Server()
    async with running(server) as (drain, _):
        with drain.work():
            signal.raise_signal(signal.SIGINT)
            await turns()
            assert server.heard == []
            signal.raise_signal(signal.SIGINT)
            await turns()
            assert server.heard == [signal.SIGINT, signal.SIGINT]


@pytest.mark.parametrize("order", [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
async def test_one_interrupt_that_comes_twice_by_way_of_a_supervisor_forces_nothing(
    order: tuple[signal.Signals, signal.Signals],
) -> None:
    server = Server()
    async with running(server) as (drain, _):
        with drain.work():
            for number in order:
                signal.raise_signal(number)
                await turns()
            assert server.heard == []
        await asyncio.wait_for(server.told.wait(), 5)
    assert server.heard == [order[0]]


async def test_gunicorns_quick_stop_is_one_where_something_handles_it() -> None:
    signal.signal(signal.SIGQUIT, lambda *_: None)
    server = Server()
    async with running(server, delay_s=3_600):
        signal.raise_signal(signal.SIGQUIT)
        await asyncio.wait_for(server.told.wait(), 5)
    assert server.heard == [signal.SIGTERM]


async def test_a_quit_that_nobody_handles_stays_what_it_is() -> None:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    async with running(Server()):
        assert signal.getsignal(signal.SIGQUIT) is signal.SIG_DFL


async def test_the_servers_handlers_are_back_at_the_end() -> None:
    server = Server()
    async with running(server):
        assert signal.getsignal(signal.SIGTERM) != server.handle_exit
    assert signal.getsignal(signal.SIGTERM) == server.handle_exit
    assert signal.getsignal(signal.SIGINT) == server.handle_exit


async def test_a_drain_with_a_defect_does_not_keep_the_server_from_stopping(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Drain, "run", broken)
    server = Server()
    async with running(server):
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(server.told.wait(), 5)
    assert "the drain failed by a defect" in caplog.text


async def test_a_server_that_ends_by_itself_takes_the_drain_with_it() -> None:
    server = Server()
    async with running(server, delay_s=3_600):
        signal.raise_signal(signal.SIGTERM)
        await turns()
    await turns()
    assert server.heard == []
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "drain"] == []


async def test_another_servers_handlers_are_left_alone_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def handler(*_: object) -> None: ...

    signal.signal(signal.SIGTERM, handler)
    drain = Drain(DrainSettings())
    async with drained_at_the_end(drain, Metrics(CollectorRegistry())):
        assert signal.getsignal(signal.SIGTERM) is handler
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "nothing is drained" in record.getMessage()


async def test_where_nobody_handles_signals_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    async with drained_at_the_end(Drain(DrainSettings()), Metrics(CollectorRegistry())):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert caplog.records == []


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    async def check() -> None:
        async with drained_at_the_end(Drain(DrainSettings()), Metrics(CollectorRegistry())):
            pass

    before = signal.getsignal(signal.SIGTERM)

    async def main() -> None:
        await asyncio.to_thread(lambda: asyncio.run(check()))

    asyncio.run(main())
    assert signal.getsignal(signal.SIGTERM) == before


async def test_what_a_server_cancelled_at_its_end_is_waited_for_before_the_pools_close() -> None:
    drain = Drain(DrainSettings())
    over = asyncio.Event()
    closing: list[bool] = []

    async def work() -> None:
        with drain.work():
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                over.set()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    async with drained_at_the_end(drain, Metrics(CollectorRegistry())):
        task.cancel()
    closing.append(over.is_set())
    assert closing == [True]
    await asyncio.gather(task, return_exceptions=True)


def test_the_longest_stop_leaves_time_for_what_was_cancelled() -> None:
    assert longest_stop_s(DrainSettings(delay_s=1, timeout_s=2)) == 1 + 2 + 2 * CLEAN_UP_S
