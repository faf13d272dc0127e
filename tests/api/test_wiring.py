"""The composition root: what is opened for which settings, and closed in reverse order, also when opening fails."""

import json
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import prometheus_client
import pytest
from prometheus_client import CollectorRegistry

from service import wiring
from service.admission.fallback import FallbackLimiter
from service.admission.memory import MemoryLimiter
from service.api.deps import get_generation
from service.config import Settings
from service.config.reload import SettingsSource
from service.domain.clock import SystemClock
from service.providers.fake import FakeProvider
from service.storage.tickets import MemoryTicketStore, RedisTicketStore
from service.telemetry import server as metrics_server
from service.telemetry.metrics import Metrics
from service.telemetry.server import MetricsPortInUse, open_metrics_server
from service.wiring import open_embedded, open_resources
from tests.support.fake_app import fake_app, fake_settings
from tests.support.files import write

ORDER = ["store", "model", "simulator", "metrics", "provider local", "provider simulated", "redis"]


class Broken(Exception):  # noqa: N818 - raised by tests alone
    """What a part that does not open raises."""


class Log:
    """Stand-ins for everything that the wiring opens; they note their opening and closing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.broken: str | None = None
        parts = {
            "open_embedded_store": ("store", "unix:///store.sock"),
            "open_local_model": ("model", "http://127.0.0.1:1/v1"),
            "open_simulator": ("simulator", "http://127.0.0.1:2"),
            "open_metrics_server": ("metrics", None),
            "open_redis": ("redis", object()),
        }
        for function, (name, value) in parts.items():
            monkeypatch.setattr(wiring, function, self._part(name, value))
        monkeypatch.setattr(wiring, "open_provider", self._provider)
        monkeypatch.setattr(wiring, "embedded_store_available", lambda: True)

    def _part(self, name: str, value: object) -> Any:
        def opener(*_: object, **__: object) -> AbstractAsyncContextManager[object]:
            return self._open(name, value)

        return opener

    def _provider(self, name: str, *_: object, **__: object) -> AbstractAsyncContextManager[object]:
        return self._open(f"provider {name}", FakeProvider(name))

    @asynccontextmanager
    async def _open(self, name: str, value: object) -> AsyncIterator[object]:
        if name == self.broken:
            raise Broken(name)
        self.opened.append(name)
        try:
            yield value
        finally:
            self.closed.append(name)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    return Log(monkeypatch)


def settings(**sections: Any) -> Settings:
    providers = {"local": {"kind": "local"}, "simulated": {"kind": "simulator"}}
    models = {"m": {"routes": [{"provider": "local"}]}}
    given = {"providers": providers, "models": models, "readiness": {"mode": "off"}, "auth": {"enabled": False}}
    return Settings.model_validate({**given, **sections})


async def test_everything_is_closed_in_reverse_order(log: Log) -> None:
    async with open_resources(settings()) as resources:
        assert log.opened == ORDER
        assert log.closed == []
        assert isinstance(resources.tickets, RedisTicketStore)
    assert log.closed == ORDER[::-1]


@pytest.mark.parametrize("broken", ORDER)
async def test_what_was_opened_is_closed_when_opening_fails_half_way(log: Log, broken: str) -> None:
    log.broken = broken
    with pytest.raises(Broken, match=broken):
        async with open_resources(settings()):
            pytest.fail("opened without a part")
    assert log.opened == ORDER[: ORDER.index(broken)]
    assert log.closed == log.opened[::-1]


async def test_what_was_opened_is_closed_when_assembling_fails(log: Log) -> None:
    auth = {"enabled": True, "keys_file": "/nowhere/keys"}
    with pytest.raises(FileNotFoundError):
        async with open_resources(settings(auth=auth)):
            pytest.fail("opened without the file of keys")
    assert log.closed == ORDER[::-1]


async def test_what_was_opened_is_closed_when_serving_fails(log: Log) -> None:
    with pytest.raises(Broken):
        async with open_resources(settings()):
            raise Broken
    assert log.closed == ORDER[::-1]


async def test_children_are_started_only_where_no_address_is_given(log: Log) -> None:
    async with open_embedded(settings()) as started:
        assert log.opened == ["store", "model", "simulator"]
        assert {name: str(provider.base_url) for name, provider in started.providers.items()} == {
            "local": "http://127.0.0.1:1/v1",
            "simulated": "http://127.0.0.1:2/",
        }
        assert started.redis.url is not None
        assert started.redis.url.get_secret_value() == "unix:///store.sock"
    log.opened.clear()
    async with open_embedded(started):
        assert log.opened == []


@pytest.mark.parametrize(
    "sections",
    [
        {"embedded": {"store": False}},
        {"profile": "production"},
        {"redis": {"url": "redis://127.0.0.1:1"}},
    ],
)
async def test_the_embedded_store_is_for_development_without_a_redis(log: Log, sections: dict[str, Any]) -> None:
    async with open_resources(settings(**sections)) as resources:
        assert "store" not in log.opened
        assert ("redis" in log.opened) is ("redis" in sections)
        assert isinstance(resources.tickets, RedisTicketStore if "redis" in sections else MemoryTicketStore)


async def test_without_the_embedded_store_tickets_are_kept_in_memory(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "embedded_store_available", lambda: False)
    async with open_resources(settings()) as resources:
        assert isinstance(resources.tickets, MemoryTicketStore)


async def test_admission_follows_the_file_with_and_without_a_store(log: Log, tmp_path: Path) -> None:
    for redis in ({}, {"redis": {"url": "unix:///nowhere.sock"}}):
        path = tmp_path / "config.yaml"
        given = {"providers": {"openai": {"kind": "openai", "keys": ["sk-upstream-0123456789"]}}, **redis}
        given |= {"models": {"m": {"routes": [{"provider": "openai"}]}}, "readiness": {"mode": "off"}}
        write(path, json.dumps(given), SystemClock(), age_s=20)
        source = SettingsSource({}, {"LLM_API_CONFIG": str(path), "LLM_API_EMBEDDED__STORE": "false"})
        running = source.load()
        given["admission"] = {"shadow": True, "replicas": 7}
        write(path, json.dumps(given), SystemClock(), age_s=10)
        async with open_resources(running, source=source) as resources:
            assert resources.admission.shadow
            limiter = resources.admission._limiter
            assert isinstance(limiter, FallbackLimiter if redis else MemoryLimiter)
            assert getattr(limiter, "_replicas", 7) == 7


async def test_each_process_has_a_registry_of_its_own(log: Log) -> None:
    async with open_resources(settings()) as one, open_resources(settings()) as other:
        assert one.metrics.registry is not other.metrics.registry
        assert one.metrics.registry.get_sample_value("python_info", None) is None


# The port of the metrics


@pytest.fixture
def metrics_port(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ports that were opened for metrics."""
    ports: list[int] = []

    def start(*arguments: Any, **options: Any) -> Any:
        started = prometheus_client.start_http_server(*arguments, **options)
        ports.append(started[0].server_port)
        return started

    monkeypatch.setattr(metrics_server, "start_http_server", start)
    return ports


async def test_metrics_are_served_on_a_port_of_their_own_until_the_end(metrics_port: list[int]) -> None:
    server = fake_settings(server={"metrics_port": 0}).server
    metrics = Metrics(CollectorRegistry())
    metrics.jobs_finished.labels("complete").inc(3)
    async with httpx.AsyncClient(trust_env=False) as client:
        async with open_metrics_server(server, metrics.registry):
            address = f"http://127.0.0.1:{metrics_port[0]}/metrics"
            response = await client.get(address)
            assert response.status_code == 200
            assert 'llm_api_jobs_finished_total{status="complete"} 3.0' in response.text
        with pytest.raises(httpx.ConnectError):
            await client.get(address)


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = fake_settings(server={"metrics_port": port}).server
        with pytest.raises(MetricsPortInUse, match=f"server.metrics_port: 127.0.0.1:{port} is in use"):
            async with open_metrics_server(server, CollectorRegistry()):
                pytest.fail("opened on a port that is taken")


async def test_the_process_itself_is_measured(metrics_port: list[int]) -> None:
    async with open_resources(fake_settings(server={"metrics_port": 0})) as resources:
        assert resources.metrics.registry.get_sample_value("process_start_time_seconds")
        assert len(metrics_port) == 1


# What a test puts in place of something


async def test_a_route_takes_what_the_application_was_told_to_put_in_its_place() -> None:
    async with fake_app() as api:

        class Other:
            def models(self, _: object) -> tuple[()]:
                return ()

        api.app.dependency_overrides[get_generation] = Other
        assert (await api.client.get("/v1/models")).json()["data"] == []
