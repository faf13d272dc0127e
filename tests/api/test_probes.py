"""``/health`` and ``/ready``: what Kubernetes asks."""

from typing import Any

import pytest

from service import __version__
from service.api.middleware import RequestMiddleware
from service.errors import UpstreamMisconfigured, UpstreamUnavailable
from service.providers.fake import Script
from tests.support.fake_app import FakeApp, fake_app, keyed_auth, until

PROBING = {"mode": "key", "interval_s": 3_600}


async def ready(api: FakeApp) -> tuple[int, dict[str, Any]]:
    response = await api.client.get("/ready")
    return response.status_code, response.json()


async def test_health_says_that_the_process_runs_and_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_app(auth=keyed_auth()) as api:

        def touched(*_: object) -> None:
            raise AssertionError("a liveness probe must not touch anything")

        for thing in (api.resources.generation, api.resources.authenticator, api.resources.readiness):
            monkeypatch.setattr(type(thing), "__getattribute__", touched)
        response = await api.client.get("/health")
        monkeypatch.undo()
        assert response.status_code == 200
        assert response.json() == {"status": "ok", "version": __version__}
        assert api.provider.calls == []


async def test_health_is_ok_during_an_outage() -> None:
    async with fake_app(
        Script(before=UpstreamUnavailable("gone")),
        readiness={"mode": "strict", "interval_s": 3_600, "startup_grace_s": 0},
    ) as api:
        await until(lambda: api.resources.readiness.verdict.status == "unready")
        assert (await api.client.get("/health")).status_code == 200
        assert (await ready(api))[0] == 503


async def test_it_is_starting_and_then_ready() -> None:
    async with fake_app(Script(stepped=True), readiness=PROBING) as api:
        await until(lambda: api.resources.readiness.verdict.reason == "fake: not checked yet")
        body = {"ready": False, "status": "starting", "reason": "fake: not checked yet"}
        assert await ready(api) == (503, body)
        (await api.provider.call()).step(3)
        await until(lambda: api.resources.readiness.verdict.ready)
        assert await ready(api) == (200, {"ready": True, "status": "ready"})


async def test_a_refused_key_is_unready_with_its_reason() -> None:
    refused = UpstreamMisconfigured("the key is refused", upstream_status=401, refused="key")
    async with fake_app(Script(before=refused), readiness=PROBING) as api:
        await until(lambda: api.resources.readiness.verdict.status == "unready")
        reason = "fake: upstream_misconfigured: the key is refused"
        assert await ready(api) == (503, {"ready": False, "status": "unready", "reason": reason})


async def test_an_outage_is_ready_and_degraded_after_its_time() -> None:
    async with fake_app(Script(before=UpstreamUnavailable("gone")), readiness=PROBING) as api:
        reason = "fake: upstream_unavailable: gone"
        await until(lambda: api.resources.readiness.verdict.reason == reason)
        assert await ready(api) == (503, {"ready": False, "status": "starting", "reason": reason})
        api.clock.advance(20)
        await until(lambda: api.resources.readiness.verdict.ready)
        assert await ready(api) == (200, {"ready": True, "status": "degraded", "reason": reason})


async def test_an_answer_to_a_caller_heals() -> None:
    async with fake_app(readiness={"mode": "passive"}) as api:
        api.provider.script = Script(before=UpstreamMisconfigured("no", upstream_status=401, refused="key"))
        assert (await api.client.post("/generate", json={"prompt": "x"})).status_code == 502
        assert (await ready(api))[1]["status"] == "degraded"
        api.provider.script = Script()
        assert (await api.client.get("/stream", params={"prompt": "x"})).status_code == 200
        assert await ready(api) == (200, {"ready": True, "status": "ready"})


async def test_checks_are_no_traffic() -> None:
    async with fake_app(readiness=PROBING) as api:
        await until(lambda: api.resources.readiness.verdict.ready)
        assert api.value("llm_api_probe_tokens_total", provider="fake") == 8
        assert api.value("llm_api_provider_probes_total", provider="backup", outcome="ok") == 1
        for name in ("llm_api_tokens_total", "llm_api_upstream_requests_total"):
            (family,) = (
                family for family in api.resources.metrics.registry.collect() if name.startswith(f"{family.name}_")
            )
            assert not any(sample.value for sample in family.samples if sample.name == name)


@pytest.mark.parametrize("mode", ["off", "passive"])
async def test_without_probing_it_is_ready_at_once(mode: str) -> None:
    async with fake_app(readiness={"mode": mode}) as api:
        assert await ready(api) == (200, {"ready": True, "status": "ready"})
        assert api.provider.calls == []


async def test_a_storm_of_probes_stays_with_us() -> None:
    async with fake_app(readiness=PROBING) as api:
        await until(lambda: api.resources.readiness.verdict.ready)
        for _ in range(100):
            assert (await ready(api))[0] == 200
        assert len(api.provider.calls) == 1


# In front of everything


async def answer(api: FakeApp, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any, str | None]:
    response = await api.client.get(path, headers=headers or {})
    return response.status_code, response.json(), response.headers.get("content-type")


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_the_short_way_and_the_long_way_answer_alike(path: str) -> None:
    async with fake_app() as api:
        # A page of another site needs headers that only the long way has.
        assert await answer(api, path) == await answer(api, path, {"origin": "https://app.example"})


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_neither_routes_nor_the_log_nor_limits_see_a_probe(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "service")

    async def seen(*_: object) -> None:
        raise AssertionError("a probe went the long way")

    async with fake_app(auth=keyed_auth()) as api:
        caplog.clear()
        monkeypatch.setattr(RequestMiddleware, "__call__", seen)
        response = await api.client.get(path, headers={"x-request-id": "probe-1"})
        assert (response.status_code, response.headers["x-request-id"]) == (200, "probe-1")
        assert (await api.client.get(path)).headers["x-request-id"].startswith("req_")
        assert not [record for record in caplog.records if record.name.startswith("service")]
        assert api.value("llm_api_http_requests_total", route=path, method="GET", code="200") == 2


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_other_methods_go_the_long_way_and_are_refused(method: str) -> None:
    async with fake_app() as api:
        response = await api.client.request(method, "/ready")
        assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")


async def test_each_verdict_is_rendered_anew() -> None:
    async with fake_app(readiness={"mode": "passive"}) as api:
        for message in ("one", "two"):
            api.resources.readiness.note("fake", UpstreamUnavailable(message), 0)
            assert (await ready(api))[1]["reason"] == f"fake: upstream_unavailable: {message}"
            api.resources.readiness.note("fake", None, 0)
            assert await ready(api) == (200, {"ready": True, "status": "ready"})
