"""What people look at, all of it served from here."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.fake_app import FakeApp, fake_app, keyed_auth

ELSEWHERE = re.compile(r"""(?:src|href|url|from|import)\s*[=(:]?\s*["']?(?:https?:)?//""", re.IGNORECASE)
REFERENCE = re.compile(r"""(?:src|href)=["']([^"'#]+)["']""")


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
    async with fake_app() as running:
        yield running


@pytest.mark.parametrize("path", ["/docs", "/"])
async def test_a_page_and_all_that_it_needs_come_from_here(api: FakeApp, path: str) -> None:
    page = await api.client.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert not ELSEWHERE.search(page.text)
    references = [reference for reference in REFERENCE.findall(page.text) if not reference.startswith("data:")]
    assert references
    for reference in references:
        asset = await api.client.get(reference)
        assert asset.status_code == 200, reference
        assert asset.content


async def test_the_documents_read_the_schema_that_is_served_here(api: FakeApp) -> None:
    assert "/openapi.json" in (await api.client.get("/docs")).text
    document = (await api.client.get("/openapi.json")).json()
    assert document["info"]["title"] == "llm-api"
    assert {"/generate", "/chat", "/stream", "/generate/async", "/v1/chat/completions"} <= document["paths"].keys()


async def test_the_playground_may_load_nothing_from_elsewhere(api: FakeApp) -> None:
    page = await api.client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["script-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "<script>" not in page.text
    assert "onclick=" not in page.text


@pytest.mark.parametrize(
    ("profile", "setting", "status"),
    [
        ("development", None, 200),
        ("development", False, 404),
        ("production", None, 404),
        ("production", True, 200),
    ],
)
async def test_the_playground_is_on_in_development_and_a_setting_in_production(
    profile: str,
    setting: bool | None,  # noqa: FBT001 - a setting
    status: int,
) -> None:
    async with fake_app(profile=profile, server={"playground": setting}, auth=keyed_auth()) as api:
        response = await api.client.get("/")
        assert response.status_code == status
        if status == 404:
            assert response.headers["content-type"] == "application/problem+json"
        assert (await api.client.get("/docs")).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/docs/assets/nothing.js",
        "/docs/assets/..%2f..%2f__init__.py",
        "/docs/assets/%2e%2e/__init__.py",
        "/playground/../api/ws.py",
        "/playground/%2e%2e/app.py",
    ],
)
async def test_nothing_beside_the_assets_is_served(api: FakeApp, path: str) -> None:
    response = await api.client.get(path)
    assert response.status_code == 404
    assert response.json()["code"] == "not_found"


async def test_the_playgrounds_files_name_no_other_origin() -> None:
    folder = Path(__file__).parents[2] / "service" / "playground"
    files = [file for file in folder.rglob("*") if file.suffix in {".html", ".css", ".js"}]
    assert files
    for file in files:
        assert not ELSEWHERE.search(file.read_text("utf-8")), file.name


async def test_no_page_may_be_framed_and_nothing_but_its_parts_is_served(api: FakeApp) -> None:
    for path in ("/", "/docs", "/playground/main.js"):
        headers = (await api.client.get(path)).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff", path
    for path in ("/playground/index.html", "/playground/__init__.py", "/playground/", "/redoc"):
        assert (await api.client.get(path)).status_code == 404, path
