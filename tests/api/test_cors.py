"""Pages of other origins: nothing by default, exact origins where they are set."""

import pytest

from tests.support.fake_app import FakeApp, fake_app, keyed_auth

ORIGIN = "https://app.example"
OTHERS = ["https://app.example.evil", "http://app.example", "https://app.example:8443", "https://APP.example", "null"]


async def preflight(api: FakeApp, origin: str) -> tuple[int, dict[str, str]]:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    response = await api.client.options("/generate", headers=headers)
    return response.status_code, dict(response.headers)


def cors_headers(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("access-control-")}


async def test_by_default_no_other_page_may_read_an_answer() -> None:
    async with fake_app() as api:
        response = await api.client.post("/generate", json={"prompt": "x"}, headers={"origin": ORIGIN})
        assert cors_headers(dict(response.headers)) == {}
        status, headers = await preflight(api, ORIGIN)
        assert (status, cors_headers(headers)) == (405, {})


async def test_an_allowed_origin_may_read_the_answer_and_our_headers() -> None:
    async with fake_app(cors={"origins": [ORIGIN]}) as api:
        response = await api.client.post("/generate", json={"prompt": "x"}, headers={"origin": ORIGIN})
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "Origin" in response.headers["vary"]
        exposed = set(response.headers["access-control-expose-headers"].split(", "))
        assert exposed >= {"X-Request-ID", "Retry-After", "RateLimit", "RateLimit-Policy", "Server-Timing"}
        assert "access-control-allow-credentials" not in response.headers


async def test_an_allowed_origin_may_ask_with_a_key() -> None:
    async with fake_app(cors={"origins": [ORIGIN]}, auth=keyed_auth()) as api:
        status, headers = await preflight(api, ORIGIN)
        assert status == 200
        assert headers["access-control-allow-origin"] == ORIGIN
        assert "POST" in headers["access-control-allow-methods"]
        assert "authorization" in headers["access-control-allow-headers"]
        assert headers["x-request-id"]


async def test_an_allowed_origin_may_read_why_it_was_refused() -> None:
    async with fake_app(cors={"origins": [ORIGIN]}, auth=keyed_auth(), server={"max_body_bytes": 1_024}) as api:
        for response in (
            await api.client.post("/generate", json={"prompt": "x"}, headers={"origin": ORIGIN}),
            await api.client.post("/generate", content=b" " * 1_025, headers={"origin": ORIGIN}),
            await api.client.get("/nothing", headers={"origin": ORIGIN}),
        ):
            assert response.status_code in {401, 413, 404}
            assert response.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize("origin", OTHERS)
async def test_any_other_origin_is_not_allowed(origin: str) -> None:
    async with fake_app(cors={"origins": [ORIGIN]}) as api:
        response = await api.client.post("/generate", json={"prompt": "x"}, headers={"origin": origin})
        assert "access-control-allow-origin" not in response.headers
        status, headers = await preflight(api, origin)
        assert status == 400
        assert "access-control-allow-origin" not in headers


async def test_credentials_are_allowed_where_the_setting_says_so() -> None:
    async with fake_app(cors={"origins": [ORIGIN], "credentials": True}) as api:
        response = await api.client.get("/health", headers={"origin": ORIGIN})
        assert response.headers["access-control-allow-credentials"] == "true"
        assert response.headers["access-control-allow-origin"] == ORIGIN
