"""Taking over a changed configuration: whole or not at all, and said once."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from service import reloading
from service.config import Settings
from service.config.reload import SettingsSource
from service.domain.clock import SystemClock
from service.reloading import SettingsReload
from service.telemetry.metrics import Metrics
from tests.support.fake_app import until
from tests.support.files import write

BASE: dict[str, Any] = {
    "providers": {"openai": {"kind": "openai", "keys": ["sk-upstream-0123456789"]}},
    "models": {"gpt-4o": {"routes": [{"provider": "openai"}]}},
    "auth": {"keys": {"alice": "alice-key-0123456789"}},
}
OTHER_MODELS: dict[str, Any] = {"models": {"gpt-5": {"routes": [{"provider": "openai"}]}}}


class Part:
    """Goes by settings, as any part of a process."""

    def __init__(self, order: list[str] | None = None, name: str = "part") -> None:
        self.settings: list[Settings] = []
        self.fails: Exception | None = None
        self._order = order if order is not None else []
        self._name = name

    async def prepare(self, settings: Settings) -> Callable[[], None]:
        if self.fails is not None:
            raise self.fails
        self._order.append(f"prepare {self._name}")

        def commit() -> None:
            self._order.append(f"commit {self._name}")
            self.settings.append(settings)

        return commit


class Bench:
    """One process and its file."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "config.yaml"
        self._written = 0
        self.write()
        self.source = SettingsSource({}, {"LLM_API_CONFIG": str(self.file)})
        self.part = Part()
        self.metrics = Metrics(CollectorRegistry())
        self.reload = self.reloading(self.part)

    def reloading(self, *parts: Part) -> SettingsReload:
        return SettingsReload(source=self.source, running=self.source.load(), parts=parts, metrics=self.metrics)

    def write(self, text: str | None = None, **sections: Any) -> None:
        """Write the file long enough ago to be whole."""
        self._written += 1
        self._put(yaml.safe_dump({**BASE, **sections}) if text is None else text, age_s=100 - self._written)

    def begin_to_write(self, text: str) -> None:
        """Leave the file as it is in the middle of being written."""
        self._put(text, age_s=0)

    def _put(self, text: str, age_s: float) -> None:
        write(self.file, text, SystemClock(), age_s=age_s)

    def value(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"llm_api_config_{name}")

    @property
    def figures(self) -> list[float | None]:
        """How many changes failed, and whether the file as it stands is in use."""
        return [self.value("reload_failures_total"), self.value("last_reload_successful")]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(autouse=True)
def _told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "service.reloading")


async def test_a_file_that_did_not_change_is_not_read(bench: Bench) -> None:
    await bench.reload.check()
    assert bench.part.settings == []
    assert bench.figures == [0, 1]


async def test_a_change_is_taken_over_and_named(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.write(**OTHER_MODELS)
    await bench.reload.check()
    (settings,) = bench.part.settings
    assert list(settings.models) == ["gpt-5"]
    (message,) = caplog.messages
    assert message.startswith("the configuration has changed and is taken over: models.gpt-4o.")
    assert "models.gpt-5.routes" in message


async def test_what_means_the_same_is_no_change(bench: Bench) -> None:
    bench.write(text=f"# a comment\n{yaml.safe_dump(BASE)}")
    await bench.reload.check()
    assert bench.part.settings == []


async def test_every_part_is_prepared_before_any_takes_over(bench: Bench) -> None:
    order: list[str] = []
    reload = bench.reloading(Part(order, "one"), Part(order, "two"))
    bench.write(**OTHER_MODELS)
    await reload.check()
    assert order == ["prepare one", "prepare two", "commit one", "commit two"]


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("not a key")])
async def test_what_one_part_cannot_take_over_none_does(
    bench: Bench, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = Part(), Part()
    other.fails = error
    reload = bench.reloading(one, other)
    bench.write(**OTHER_MODELS)
    await reload.check()
    assert one.settings == []
    assert bench.figures == [1, 0]
    assert str(error) in caplog.text
    other.fails = None
    await reload.check(again=True)
    assert len(one.settings) == len(other.settings) == 1
    assert bench.figures == [1, 1]


async def test_a_wrong_file_is_passed_over_whole_with_everything_that_is_wrong(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.write(**OTHER_MODELS, server={"port": "eighty"}, readiness={"interval_s": -1})
    await bench.reload.check()
    assert bench.part.settings == []
    assert bench.figures == [1, 0]
    assert "server.port" in caplog.text
    assert "readiness.interval_s" in caplog.text


async def test_the_same_mistake_is_told_and_counted_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.write(text="server: {port: eighty}")
    await bench.reload.check()
    for _ in range(3):
        await bench.reload.check(again=True)
    assert bench.figures == [1, 0]
    assert caplog.text.count("server.port") == 1
    bench.write(text="server: {port: ninety}")
    await bench.reload.check()
    assert bench.figures == [2, 0]


async def test_a_repair_is_told_by_the_gauge(bench: Bench) -> None:
    bench.write(text="{")
    await bench.reload.check()
    bench.write()
    await bench.reload.check()
    assert bench.part.settings == []
    assert bench.figures == [1, 1]


async def test_no_secret_of_a_wrong_file_is_told(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.write(auth={"keys": {"alice": "short-secret"}})
    await bench.reload.check()
    assert bench.figures == [1, 0]
    assert "short-secret" not in caplog.text


async def test_what_needs_a_restart_is_named_and_the_rest_is_taken_over(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.write(**OTHER_MODELS, server={"port": 8001}, drain={"timeout_s": 7})
    await bench.reload.check()
    assert len(bench.part.settings) == 1
    assert "these settings need a restart: drain.timeout_s, server.port" in caplog.text
    assert bench.figures == [0, 1]


@pytest.mark.parametrize(
    "sections",
    [
        {"admission": {"shadow": True}},
        {"resilience": {"attempts_max": 2}},
        {"readiness": {"mode": "strict"}},
    ],
    ids=lambda sections: next(iter(sections)),
)
async def test_what_is_taken_over_is_no_change_afterwards(bench: Bench, sections: dict[str, Any]) -> None:
    bench.write(**sections)
    await bench.reload.check()
    bench.write(text=f"# the same\n{yaml.safe_dump({**BASE, **sections})}")
    await bench.reload.check()
    assert len(bench.part.settings) == 1


async def test_another_profile_is_refused_with_all_that_came_with_it(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.write(**OTHER_MODELS, profile="production")
    await bench.reload.check()
    assert bench.part.settings == []
    assert bench.figures == [1, 0]
    assert "profile (LLM_API_PROFILE): got 'production'; takes 'development'" in caplog.text


async def test_what_an_editor_leaves_behind_on_its_way_takes_nothing_over(bench: Bench) -> None:
    whole = yaml.safe_dump({**BASE, **OTHER_MODELS})
    for length in range(0, len(whole), 20):
        bench.begin_to_write(whole[:length])
        await bench.reload.check()
        assert bench.part.settings == []
    bench.begin_to_write(whole)
    await bench.reload.check()
    await bench.reload.check()
    assert [list(settings.models) for settings in bench.part.settings] == [["gpt-5"]]
    assert bench.figures == [0, 1]


async def test_a_file_that_stays_empty_is_refused(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.begin_to_write("")
    await bench.reload.check()
    await bench.reload.check()
    assert bench.part.settings == []
    assert bench.figures == [1, 0]
    assert "in which no setting stands" in caplog.text


@pytest.mark.parametrize("found", ["server: {port: eighty}", yaml.safe_dump({**BASE, **OTHER_MODELS})])
async def test_what_was_read_while_somebody_wrote_is_neither_taken_nor_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    load = bench.source.load

    def loads_while_it_is_written() -> Settings:
        try:
            return load()
        finally:
            bench.begin_to_write("half of it")

    bench.write(text=found)
    with monkeypatch.context() as patched:
        patched.setattr(bench.source, "load", loads_while_it_is_written)
        await bench.reload.check()
        await bench.reload.check(again=True)
    assert bench.part.settings == []
    assert bench.figures == [0, 1]
    bench.write(**OTHER_MODELS)
    await bench.reload.check()
    assert len(bench.part.settings) == 1


async def test_an_embedded_store_needs_no_restart(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    running = bench.source.load()
    started = running.model_copy(update={"redis": running.redis.model_copy(update={"url": "unix:///store.sock"})})
    reload = SettingsReload(source=bench.source, running=started, parts=[bench.part], metrics=bench.metrics)
    bench.write(**OTHER_MODELS)
    await reload.check()
    assert len(bench.part.settings) == 1
    assert "restart" not in caplog.text


async def test_changes_follow_each_other(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.write(**OTHER_MODELS)
    await bench.reload.check()
    bench.write()
    await bench.reload.check()
    assert [list(settings.models) for settings in bench.part.settings] == [["gpt-5"], ["gpt-4o"]]


# While it runs


async def test_what_changed_before_the_process_began_is_taken_over_at_its_start(bench: Bench) -> None:
    # A worker that replaces another one has the settings that its parent read, perhaps long ago.
    bench.write(**OTHER_MODELS)
    async with bench.reload.running():
        assert len(bench.part.settings) == 1


async def test_while_it_runs_it_follows_the_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reloading, "CHECK_INTERVAL_S", 0.001)
    monkeypatch.setattr(reloading, "RETRY_INTERVAL_S", 0.005)
    async with bench.reload.running():
        bench.write(**OTHER_MODELS)
        await until(lambda: len(bench.part.settings) == 1)
        bench.part.fails = OSError("not there yet")
        bench.write()
        await until(lambda: bench.figures == [1, 0])
        bench.part.fails = None
        await until(lambda: bench.figures == [1, 1])
        assert len(bench.part.settings) == 2
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_defect_does_not_end_the_following(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reloading, "CHECK_INTERVAL_S", 0.001)
    async with bench.reload.running():
        bench.part.fails = ZeroDivisionError("defect")
        bench.write(**OTHER_MODELS)
        defects = ("llm_api_unhandled_errors_total", {"place": "config"})
        await until(lambda: bench.metrics.registry.get_sample_value(*defects) == 1)
        bench.part.fails = None
        bench.write()
        bench.write(models={"gpt-6": {"routes": [{"provider": "openai"}]}})
        await until(lambda: bool(bench.part.settings))


async def test_without_a_file_nothing_runs(bench: Bench) -> None:
    reload = SettingsReload(
        source=SettingsSource({}, {}), running=bench.source.load(), parts=[bench.part], metrics=bench.metrics
    )
    async with reload.running():
        assert asyncio.all_tasks() == {asyncio.current_task()}
