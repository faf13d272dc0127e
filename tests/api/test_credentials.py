"""Keys and tickets at the API: who gets in, who does not, and what each is told."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.fake_app import ALICE, BOB, FakeApp, bearer, fake_app, keyed_auth
from tests.support.files import write

PROTECTED: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/generate", {"json": {"prompt": "x", "model": "gpt-4o"}}),
    ("POST", "/chat", {"json": {"messages": [{"role": "user", "content": "x"}], "model": "gpt-4o"}}),
    ("GET", "/stream", {"params": {"prompt": "x", "model": "gpt-4o"}}),
    ("POST", "/generate/async", {"json": {"prompt": "x"}}),
    ("GET", "/generate/async/job_x", {}),
    ("DELETE", "/generate/async/job_x", {}),
    ("POST", "/tickets", {}),
]
protected = pytest.mark.parametrize(("method", "path", "request_"), PROTECTED)


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
    async with fake_app(auth=keyed_auth(ticket_ttl_s=30)) as running:
        yield running


def refused(response: httpx.Response) -> str:
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated"), response.text
    assert response.headers["www-authenticate"] == 'Bearer realm="llm-api"'
    detail: str = response.json()["detail"]
    assert ALICE not in response.text
    return detail


async def ticket_of(api: FakeApp, key: str = ALICE) -> str:
    response = await api.client.post("/tickets", headers=bearer(key))
    assert response.status_code == 201
    value: str = response.json()["ticket"]
    return value


@protected
async def test_without_a_key_nothing_is_done(api: FakeApp, method: str, path: str, request_: dict[str, Any]) -> None:
    detail = refused(await api.client.request(method, path, **request_))
    assert "Authorization: Bearer KEY" in detail
    assert api.provider.calls == []


@protected
@pytest.mark.parametrize(
    "headers",
    [
        bearer("wrong-key-0123456789"),
        bearer(""),
        bearer(ALICE[:-1]),
        bearer(ALICE + "x"),
        bearer(ALICE.upper()),
        {"authorization": f"Basic {ALICE}"},
        {"authorization": ALICE},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"x-api-key": "wrong-key-0123456789"},
        {"x-api-key": ""},
        {"api-key": ALICE},
        {"cookie": f"key={ALICE}"},
    ],
)
async def test_a_wrong_credential_is_refused(
    api: FakeApp, method: str, path: str, request_: dict[str, Any], headers: dict[str, str]
) -> None:
    refused(await api.client.request(method, path, headers=headers, **request_))
    assert api.provider.calls == []


@protected
@pytest.mark.parametrize("headers", [bearer(ALICE), {"authorization": f"bearer   {ALICE} "}, {"x-api-key": ALICE}])
async def test_a_right_key_is_let_in(
    api: FakeApp, method: str, path: str, request_: dict[str, Any], headers: dict[str, str]
) -> None:
    response = await api.client.request(method, path, headers=headers, **request_)
    assert response.status_code in {200, 201, 202, 404}


@protected
@pytest.mark.parametrize("name", ["api_key", "apikey", "API-Key", "key", "token", "access_token", "authorization"])
async def test_a_key_in_the_address_is_refused_with_the_remedy_even_beside_a_right_header(
    api: FakeApp, method: str, path: str, request_: dict[str, Any], name: str
) -> None:
    given = {**request_, "params": {**request_.get("params", {}), name: ALICE}}
    for headers in ({}, bearer(ALICE)):
        detail = refused(await api.client.request(method, path, headers=headers, **given))
        assert "POST /tickets" in detail
        assert "Authorization: Bearer KEY" in detail
    assert api.provider.calls == []


async def test_a_wrong_body_says_nothing_to_who_may_not_ask(api: FakeApp) -> None:
    refused(await api.client.post("/generate", content=b"{"))
    refused(await api.client.get("/stream", params={"prompt": ""}))


async def test_probes_and_documents_need_no_key(api: FakeApp) -> None:
    for path in ("/health", "/ready", "/docs", "/openapi.json", "/"):
        assert (await api.client.get(path)).status_code == 200


async def test_where_authentication_is_off_any_key_will_do() -> None:
    async with fake_app() as api:
        for headers in ({}, bearer("whatever"), {"x-api-key": "whatever"}):
            assert (await api.client.post("/generate", json={"prompt": "x"}, headers=headers)).status_code == 200
        assert (await api.client.post("/tickets")).status_code == 201


# Models of one's own


async def test_a_principal_is_told_of_its_own_models_alone(api: FakeApp) -> None:
    response = await api.client.post("/generate", json={"prompt": "x", "model": "gpt-4o-mini"}, headers=bearer(BOB))
    assert (response.status_code, response.json()["code"]) == (422, "model_not_found")
    assert response.json()["detail"].endswith("allowed: gpt-4o, team/*")
    for model in ("gpt-4o", "team/x"):
        body = {"prompt": "x", "model": model}
        assert (await api.client.post("/generate", json=body, headers=bearer(BOB))).status_code == 200


async def test_the_list_of_models_is_the_principals(api: FakeApp) -> None:
    listed = {}
    for key in (ALICE, BOB):
        answer = (await api.client.get("/v1/models", headers=bearer(key))).json()
        listed[key] = {model["id"] for model in answer["data"]}
    assert listed == {ALICE: {"gpt-4o", "gpt-4o-mini", "two-routes", "vectors", "team/*"}, BOB: {"gpt-4o", "team/*"}}


# Tickets


async def test_a_ticket_is_a_secret_that_no_cache_keeps(api: FakeApp) -> None:
    response = await api.client.post("/tickets", headers=bearer(ALICE))
    assert response.status_code == 201
    assert response.headers["cache-control"] == "no-store"
    assert response.json().keys() == {"ticket", "expires_in_s"}
    assert response.json()["expires_in_s"] == 30
    assert len(response.json()["ticket"]) == 32
    assert await ticket_of(api) != await ticket_of(api)


async def test_a_ticket_is_good_once(api: FakeApp) -> None:
    query = {"prompt": "x", "ticket": await ticket_of(api)}
    assert (await api.client.get("/stream", params=query)).content.endswith(b"data: [DONE]\n\n")
    assert "used" in refused(await api.client.get("/stream", params=query))
    assert len(api.provider.calls) == 1


@pytest.mark.parametrize(("seconds", "status"), [(29.9, 200), (30.0, 401), (31.0, 401)])
async def test_a_ticket_is_good_for_its_time(api: FakeApp, seconds: float, status: int) -> None:
    query = {"prompt": "x", "ticket": await ticket_of(api)}
    api.clock.advance(seconds)
    assert (await api.client.get("/stream", params=query)).status_code == status


@pytest.mark.parametrize("value", ["", "x", "x" * 257, ALICE])
async def test_a_made_up_ticket_is_refused(api: FakeApp, value: str) -> None:
    refused(await api.client.get("/stream", params={"prompt": "x", "ticket": value}))


async def test_a_ticket_stands_for_its_owner_and_no_more(api: FakeApp) -> None:
    query = {"prompt": "x", "model": "gpt-4o-mini", "ticket": await ticket_of(api, BOB)}
    response = await api.client.get("/stream", params=query)
    assert (response.status_code, response.json()["code"]) == (422, "model_not_found")


async def test_a_key_in_the_header_leaves_the_ticket_unused(api: FakeApp) -> None:
    query = {"prompt": "x", "ticket": await ticket_of(api)}
    assert (await api.client.get("/stream", params=query, headers=bearer(ALICE))).status_code == 200
    assert (await api.client.get("/stream", params=query)).status_code == 200


@pytest.mark.parametrize(("method", "path", "request_"), [route for route in PROTECTED if route[1] != "/stream"])
async def test_a_ticket_opens_streams_and_nothing_else(
    api: FakeApp, method: str, path: str, request_: dict[str, Any]
) -> None:
    refused(await api.client.request(method, path, params={"ticket": await ticket_of(api)}, **request_))


async def test_a_ticket_is_worth_nothing_once_its_key_was_replaced(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"alice:{ALICE}")
    async with fake_app(auth={"enabled": True, "keys_file": str(keys)}) as api:
        query = {"prompt": "x", "ticket": await ticket_of(api)}
        write(keys, f"alice:{BOB}", api.clock)
        api.clock.advance(1)
        assert "not known any more" in refused(await api.client.get("/stream", params=query))
        query["ticket"] = await ticket_of(api, BOB)
        assert (await api.client.get("/stream", params=query)).status_code == 200
