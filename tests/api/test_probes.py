"""``/health`` and ``/ready``: what Kubernetes asks."""

from typing import Any

import pytest

from service import __version__
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
        Script(before=UpstreamUnavailable("gone")), readiness={"mode": "strict", "interval_s": 3_600}
    ) as api:
        await until(lambda: api.resources.readiness.verdict.status == "unready")
        assert (await api.client.get("/health")).status_code == 200
        assert (await ready(api))[0] == 503


async def test_it_is_starting_and_then_ready() -> None:
    async with fake_app(Script(stepped=True), readiness=PROBING) as api:
        assert await ready(api) == (503, {"ready": False, "status": "starting"})
        (await api.provider.call()).step(3)
        await until(lambda: api.resources.readiness.verdict.ready)
        assert await ready(api) == (200, {"ready": True, "status": "ready"})


async def test_a_refused_key_is_unready_with_its_reason() -> None:
    async with fake_app(Script(before=UpstreamMisconfigured("the key is refused")), readiness=PROBING) as api:
        await until(lambda: api.resources.readiness.verdict.status == "unready")
        reason = "upstream_misconfigured: the key is refused"
        assert await ready(api) == (503, {"ready": False, "status": "unready", "reason": reason})


async def test_an_outage_is_ready_and_degraded() -> None:
    async with fake_app(Script(before=UpstreamUnavailable("gone")), readiness=PROBING) as api:
        await until(lambda: api.resources.readiness.verdict.status == "degraded")
        reason = "upstream_unavailable: gone"
        assert await ready(api) == (200, {"ready": True, "status": "degraded", "reason": reason})


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
