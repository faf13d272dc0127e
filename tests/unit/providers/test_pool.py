"""The pool of providers: replaced at once, closed when the last call on them is over."""

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import FunctionType
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from service.config import ProviderSettings, Settings
from service.domain.clock import Deadline, ManualClock
from service.domain.generation import EmbeddingRequest, GenerationRequest, Message
from service.errors import (
    InvalidRequest,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.providers.base import Provider, ProviderKey
from service.providers.build import open_provider
from service.providers.fake import FakeProvider, Script
from service.providers.keys import KeyRing
from service.providers.pool import ProviderPool
from service.telemetry.metrics import Metrics
from tests.support.fake_app import soon

DEADLINE = Deadline(1e9)
KEY_REFUSED = UpstreamMisconfigured("refused", upstream_status=401, refused="key")
REQUEST = GenerationRequest(model="m", messages=(Message.of_text("user", "Hi"),))


def settings(**providers: str) -> dict[str, ProviderSettings]:
    """Make settings of providers by name, each with one key."""
    return {name: ProviderSettings.model_validate({"kind": "openai", "keys": [key]}) for name, key in providers.items()}


class Factory:
    """Opens fakes, and remembers them by the key that they were opened with."""

    def __init__(self) -> None:
        self.fakes: dict[str, FakeProvider] = {}
        self.closed: list[str] = []
        self.is_closed = asyncio.Event()

    @asynccontextmanager
    async def open(self, name: str, given: ProviderSettings) -> AsyncIterator[Provider]:
        key = given.keys[0].get_secret_value()
        if key == "broken":
            raise ValueError(key)
        self.fakes[key] = FakeProvider(name)
        try:
            yield self.fakes[key]
        finally:
            self.closed.append(key)
            self.is_closed.set()


class Observed:
    def __init__(self) -> None:
        self.calls: list[tuple[str, UpstreamError | None, float]] = []

    def __call__(self, name: str, error: UpstreamError | None, began_at: float) -> None:
        self.calls.append((name, error, began_at))


@pytest.fixture
def factory() -> Factory:
    return Factory()


@asynccontextmanager
async def opened(factory: Factory, clock: ManualClock | None = None, **providers: str) -> AsyncIterator[ProviderPool]:
    async with ProviderPool(factory.open, clock or ManualClock()).opened(settings(**providers)) as pool:
        yield pool


async def replace(pool: ProviderPool, **providers: str) -> None:
    given = Settings.model_construct(providers=settings(**providers))
    (await pool.prepare(given))()


async def complete(provider: Provider, deadline: Deadline = DEADLINE) -> Any:
    return await provider.complete(REQUEST, upstream_model="m", deadline=deadline)


async def read(provider: Provider, deadline: Deadline = DEADLINE) -> None:
    async with provider.stream(REQUEST, upstream_model="m", deadline=deadline) as chunks:
        async for _ in chunks:
            pass


async def embed(provider: Provider, deadline: Deadline = DEADLINE) -> None:
    await provider.embed(EmbeddingRequest("m", {"input": "x"}), upstream_model="m", deadline=deadline)


async def test_calls_go_to_what_stands_behind_the_name_by_then(factory: Factory) -> None:
    async with opened(factory, a="one") as pool:
        provider = pool["a"]
        await complete(provider)
        await replace(pool, a="two")
        await complete(provider)
        await complete(pool["a"])
        assert provider.name == "a"
        assert provider.keys is factory.fakes["two"].keys
        assert [len(fake.calls) for fake in factory.fakes.values()] == [1, 2]


async def test_stream_that_is_not_opened_is_over_and_holds_no_provider_open(factory: Factory) -> None:
    async with opened(factory, a="one") as pool:
        factory.fakes["one"].script = Script(before=UpstreamUnavailable("down"))
        with pytest.raises(UpstreamUnavailable):
            await read(pool["a"])
        await replace(pool, a="two")
        await asyncio.wait_for(factory.is_closed.wait(), 5)


async def test_open_stream_keeps_neither_generators_nor_its_prompt(factory: Factory) -> None:
    async with opened(factory, a="one") as pool:
        stream = pool["a"].stream(REQUEST, upstream_model="m", deadline=DEADLINE)
        await stream.__aenter__()
        held = gc.get_referents(stream)
        assert not any(isinstance(one, AsyncGenerator | FunctionType) for one in held)
        await stream.__aexit__(None, None, None)


async def test_what_did_not_change_is_not_opened_again(factory: Factory) -> None:
    async with opened(factory, a="one", b="two") as pool:
        await replace(pool, a="one", b="three")
        assert list(factory.fakes) == ["one", "two", "three"]
        given = settings(a="one", b="three")
        limited = {name: one.model_copy(update={"limits": "changed"}) for name, one in given.items()}
        (await pool.prepare(Settings.model_construct(providers=limited)))()
        assert list(factory.fakes) == ["one", "two", "three"]


async def test_a_running_call_keeps_its_provider_open_and_the_last_closes_it(factory: Factory) -> None:
    async with opened(factory, a="one") as pool:
        factory.fakes["one"].script = Script(pieces=["x"], stepped=True)
        plain = asyncio.create_task(complete(pool["a"]))
        await factory.fakes["one"].call(0)
        async with pool["a"].stream(REQUEST, upstream_model="m", deadline=DEADLINE) as chunks:
            await replace(pool, a="two")
            await complete(pool["a"])
            factory.fakes["one"].calls[1].step(2)
            assert [chunk.text async for chunk in chunks] == ["x", ""]
        assert factory.closed == []
        factory.fakes["one"].calls[0].step(1)
        await plain
        await soon(factory.is_closed)
        assert factory.closed == ["one"]
    assert factory.closed == ["one", "two"]


async def test_an_idle_one_that_is_replaced_is_closed_at_once(factory: Factory) -> None:
    async with opened(factory, a="one") as pool:
        await replace(pool, a="two")
        await soon(factory.is_closed)
        assert factory.closed == ["one"]


async def test_one_that_is_taken_out_fails_for_who_still_holds_it_and_may_come_back(factory: Factory) -> None:
    async with opened(factory, a="one", b="two") as pool:
        held = pool["a"]
        await replace(pool, b="two")
        assert list(pool) == ["b"]
        assert "a" not in pool.unobserved
        with pytest.raises(UpstreamUnavailable, match="taken out of the configuration"):
            await complete(held)
        await replace(pool, a="three", b="two")
        await complete(held)
        assert len(factory.fakes["three"].calls) == 1


class Counted:
    """The pool with real rings of keys, and what is told of them."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.metrics = Metrics(CollectorRegistry())

    @asynccontextmanager
    async def opened(self, **providers: str) -> AsyncIterator[ProviderPool]:
        def opener(name: str, given: ProviderSettings) -> AbstractAsyncContextManager[Provider]:
            return open_provider(name, given, clock=self._clock, metrics=self.metrics)

        pool = ProviderPool(opener, self._clock, on_gone=self.metrics.forget_provider)
        async with pool.opened(settings(**providers)):
            yield pool

    def dead(self, name: str = "a") -> float | None:
        return self.metrics.registry.get_sample_value("llm_api_provider_keys_dead", {"provider": name})


def refuse(provider: Provider) -> ProviderKey:
    """Let a call find the provider's key refused."""
    key = provider.keys.take("m")
    assert key is not None
    assert isinstance(provider.keys, KeyRing)
    provider.keys.note(key, "m", KEY_REFUSED)
    return key


async def test_dead_keys_are_told_of_until_others_are_in_their_place() -> None:
    counted = Counted(ManualClock())
    async with counted.opened(a="one") as pool:
        assert counted.dead() == 0
        old = pool["a"].keys
        key = refuse(pool["a"])
        commit = await pool.prepare(Settings.model_construct(providers=settings(a="two")))
        assert counted.dead() == 1, "what is only prepared is not in force"
        commit()
        assert counted.dead() == 0
        assert isinstance(old, KeyRing)
        old.note(key, "m", KEY_REFUSED)
        assert counted.dead() == 0, "a call that ends with the old key says nothing of the new one"
        refuse(pool["a"])
        assert counted.dead() == 1


async def test_nothing_is_told_of_a_provider_that_was_taken_out() -> None:
    counted = Counted(ManualClock())
    async with counted.opened(a="one", b="two") as pool:
        counted.metrics.probe_age.labels("a").set(3)
        counted.metrics.provider_remaining_ratio.labels("a", "requests").set(0.1)
        keys = pool["a"].keys
        key = refuse(pool["a"])
        await replace(pool, b="two")
        assert isinstance(keys, KeyRing)
        keys.accepted(key)
        samples = [
            sample
            for family in counted.metrics.registry.collect()
            for sample in family.samples
            if sample.labels.get("provider") == "a"
        ]
        assert samples == []
        assert counted.dead("b") == 0


async def test_where_processes_share_metrics_all_is_said_to_be_well_of_what_was_taken_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = Counted(ManualClock())
    async with counted.opened(a="one", b="two") as pool:
        counted.metrics.provider_remaining_ratio.labels("a", "requests").set(0.1)
        refuse(pool["a"])
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "unused")
        await replace(pool, b="two")
        value = counted.metrics.registry.get_sample_value
        assert counted.dead() == 0
        assert value("llm_api_provider_remaining_ratio", {"provider": "a", "resource": "requests"}) == 1


async def test_nothing_changes_where_one_cannot_be_opened(factory: Factory) -> None:
    async with opened(factory, a="one") as pool:
        with pytest.raises(ValueError, match="broken"):
            await replace(pool, a="two", b="broken")
        assert factory.closed == ["two"]
        assert list(pool) == ["a"]
        await complete(pool["a"])
        assert len(factory.fakes["one"].calls) == 1


async def test_the_end_closes_what_was_replaced_too_whatever_runs_on_it(factory: Factory) -> None:
    async with opened(factory, a="one") as pool:
        factory.fakes["one"].script = Script(stepped=True)
        task = asyncio.create_task(complete(pool["a"]))
        await soon((await factory.fakes["one"].call()).waiting)
        await replace(pool, a="two")
    assert sorted(factory.closed) == ["one", "two"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# Who watches


async def test_the_end_of_each_call_is_told_with_its_beginning(factory: Factory) -> None:
    clock = ManualClock()
    throttled = UpstreamThrottled("slower")
    async with opened(factory, clock, a="one") as pool:
        observed = Observed()
        pool.observe(observed)
        fake = factory.fakes["one"]
        await complete(pool["a"])
        clock.advance(1)
        fake.script = Script(before=throttled)
        with pytest.raises(UpstreamThrottled):
            await complete(pool["a"])
        fake.script = Script(pieces=["x", throttled])
        with pytest.raises(UpstreamThrottled):
            await read(pool["a"])
        fake.script = Script()
        await embed(pool["a"])
        assert observed.calls == [
            ("a", None, 1_000.0),
            ("a", throttled, 1_001.0),
            ("a", throttled, 1_001.0),
            ("a", None, 1_001.0),
        ]


async def test_refusal_of_one_key_of_several_is_not_told_and_of_the_last_one_is(factory: Factory) -> None:
    clock = ManualClock()
    async with opened(factory, clock, a="one") as pool:
        observed = Observed()
        pool.observe(observed)
        fake = factory.fakes["one"]
        fake.keys = KeyRing(provider="a", keys=[SecretStr("k1"), SecretStr("k2")], files=(), clock=clock)
        fake.refusals = {"k1": KEY_REFUSED, "k2": KEY_REFUSED}
        with pytest.raises(UpstreamMisconfigured):
            await complete(pool["a"])
        assert observed.calls == []
        with pytest.raises(UpstreamMisconfigured):
            await complete(pool["a"])
        assert observed.calls == [("a", KEY_REFUSED, 1_000.0)]


async def test_what_says_nothing_of_the_provider_is_not_told(factory: Factory) -> None:
    async with opened(factory, a="one") as pool:
        observed = Observed()
        pool.observe(observed)
        fake = factory.fakes["one"]
        fake.script = Script(before=InvalidRequest("cannot"))
        with pytest.raises(InvalidRequest):
            await complete(pool["a"])
        fake.script = Script(stepped=True)
        task = asyncio.create_task(complete(pool["a"]))
        await soon((await fake.call(1)).waiting)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        fake.script = Script()
        await complete(pool.unobserved["a"])
        assert observed.calls == []
        assert len(fake.calls) == 3


@pytest.mark.parametrize("ask", [complete, read])
@pytest.mark.parametrize(
    ("given_s", "took_s", "is_told"),
    [
        (2, 2, False),
        (500, 500, False),
        (599.9, 600, True),  # all of the provider's own time, but for what was over before the call
        (500, 30, True),  # until the first piece
        (2, 1, True),  # until the connection stands
    ],
)
async def test_timeout_is_told_unless_it_was_the_callers_own(
    factory: Factory, ask: Callable[..., Coroutine[Any, Any, None]], given_s: float, took_s: float, *, is_told: bool
) -> None:
    clock = ManualClock()
    late = UpstreamTimeout("late")
    async with opened(factory, clock, a="one") as pool:
        observed = Observed()
        pool.observe(observed)
        factory.fakes["one"].script = Script(pieces=[late], stepped=True)
        task = asyncio.create_task(ask(pool["a"], Deadline.after(given_s, clock)))
        call = await factory.fakes["one"].call()
        await soon(call.waiting)
        clock.advance(took_s)
        call.step()
        with pytest.raises(UpstreamTimeout):
            await task
    assert observed.calls == ([("a", late, 1_000.0)] if is_told else [])
