"""The short way to the routes that generate: which they are, and that nobody can tell it from the framework's."""

import re
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api import chat, generate
from service.api.anthropic.routes import router as anthropic_router
from service.api.deps import AllResources, Context, Generation, TimedContext
from service.api.direct import direct_routes
from service.api.openai.routes import router as openai_router
from tests.support.fake_app import FakeApp, fake_app

BODIES = {
    "/generate": b'{"model": "gpt-4o", "prompt": "Hi"}',
    "/chat": b'{"messages": [{"role": "user", "content": "Hi"}]}',
    "/v1/chat/completions": b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}',
    "/v1/messages": b'{"model": "gpt-4o", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}',
}


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
    async with fake_app() as running:
        yield running


def test_all_routes_that_generate_take_it() -> None:
    routers = (generate.router, chat.router, openai_router, anthropic_router)
    assert {route.path for router in routers for route in direct_routes(router)} == {*BODIES, "/v1/embeddings"}


def test_a_route_that_asks_for_more_does_not() -> None:
    router = APIRouter()

    async def wants(
        request: Request, resources: AllResources, generation: Generation, context: TimedContext, page: int
    ) -> Response:
        raise NotImplementedError(request, resources, generation, context, page)

    async def another(request: Request, resources: AllResources, generation: Generation, context: Context) -> Response:
        raise NotImplementedError(request, resources, generation, context)

    router.post("/wants")(wants)
    router.post("/another")(another)
    assert direct_routes(router) == []


def seen(response: httpx.Response) -> tuple[int, dict[str, str], bytes]:
    """What a caller sees, but for what differs from call to call."""
    headers = {name: value for name, value in response.headers.items() if name != "server-timing"}
    # The provider numbers its answers, and an answer has the second of its making.
    return response.status_code, headers, re.sub(rb'(fake-|"created":)\d+', rb"\1", response.content)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("body", ["good", "broken", "unknown model", "empty", "stream"])
async def test_an_answer_is_the_same_either_way(api: FakeApp, path: str, body: str) -> None:
    good = BODIES[path]
    content = {
        "good": good,
        "broken": b"{",
        "unknown model": b'{"model": "nobody", ' + good[1:].replace(b'"model": "gpt-4o", ', b""),
        "empty": b"{}",
        "stream": good[:-1] + b', "stream": true}',
    }[body]
    given = {"content-type": "application/json", "x-request-id": "the-same"}
    direct = await api.client.post(path, content=content, headers=given)
    api.app.dependency_overrides[object] = object
    routed = await api.client.post(path, content=content, headers=given)
    assert seen(direct) == seen(routed)
    assert (direct.status_code == 200) is (body == "good" or (body == "stream" and path != "/generate"))


async def test_other_methods_are_refused_by_the_framework(api: FakeApp) -> None:
    response = await api.client.get("/generate")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


async def test_the_route_is_counted_by_its_name(api: FakeApp) -> None:
    await api.client.post("/generate", content=BODIES["/generate"], headers={"content-type": "application/json"})
    counted = api.resources.metrics.registry.get_sample_value(
        "llm_api_http_requests_total", {"route": "/generate", "method": "POST", "code": "200"}
    )
    assert counted == 1
