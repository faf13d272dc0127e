"""The vendors' surfaces in process: what reaches the provider, and every header, status and shape that comes back."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
import pytest
from asgi_lifespan import LifespanManager

from service.admission.memory import MemoryLimiter
from service.api.deps import get_generation
from service.app import create_app
from service.domain.clock import SystemClock
from service.domain.generation import Chunk, Dialect, EmbeddingRequest, GenerationRequest, WireBody
from service.engine.admission import Admission
from service.engine.catalogue import ModelCatalogue
from service.engine.generation import GenerationService
from service.errors import ServiceError, UpstreamRejected, UpstreamThrottled, UpstreamUnavailable
from service.providers.fake import FakeProvider, Script
from service.resources import Resources
from tests.conftest import CALLER_KEY
from tests.support.attempts import attempts_over
from tests.support.ledger import unwritten_ledger
from tests.support.live import settings_over

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
HELLO = [{"role": "user", "content": "Hello"}]
FOR_OPENAI = {"model": "gpt-4o", "messages": HELLO}
FOR_ANTHROPIC = {"model": "gpt-4o", "messages": HELLO, "max_tokens": 9}


@dataclass(frozen=True, slots=True)
class Api:
    client: httpx.AsyncClient
    provider: FakeProvider

    async def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(path, content=content, headers={"content-type": "application/json", **names})

    def wire(self) -> WireBody | None:
        """What the provider was asked last, as it came."""
        request = self.provider.calls[-1].request
        assert isinstance(request, GenerationRequest)
        return request.wire


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    auth = {"enabled": True, "keys": {"alice": {"key": CALLER_KEY, "models": ["gpt-*", "team/*"]}}}
    settings = settings_over("http://127.0.0.1:9", auth=auth)
    provider = FakeProvider()
    app = create_app(settings)
    async with LifespanManager(app) as manager:
        resources: Resources = manager._state["resources"]
        app.dependency_overrides[get_generation] = lambda: GenerationService(
            catalogue=ModelCatalogue(settings.models),
            attempts=attempts_over(
                {"openai": provider, "anthropic": provider}, metrics=resources.metrics, clock=SystemClock()
            ),
            admission=Admission(limiter=MemoryLimiter(clock=SystemClock()), shadow=False, metrics=resources.metrics),
            ledger=unwritten_ledger(),
            metrics=resources.metrics,
        )
        transport = httpx.ASGITransport(app=manager.app)
        headers = {"authorization": f"Bearer {CALLER_KEY}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            yield Api(client, provider)


async def test_every_field_of_the_body_reaches_a_provider_of_the_same_dialect(api: Api) -> None:
    body = {**FOR_OPENAI, "seed": 7, "vendor_field": {"deep": [None, 1.5]}}
    assert (await api.post(CHAT, body)).status_code == 200
    assert api.wire() == WireBody(Dialect.OPENAI, body)
    body = {**FOR_ANTHROPIC, "top_k": 3, "vendor_field": "ü"}
    assert (await api.post(MESSAGES, body)).status_code == 200
    assert api.wire() == WireBody(Dialect.ANTHROPIC, body)
    body = {"model": "gpt-4o", "input": ["a"], "vendor_field": 1}
    assert (await api.post("/v1/embeddings", body)).status_code == 200
    assert api.provider.calls[-1].request == EmbeddingRequest("gpt-4o", body)


async def test_an_openai_answer(api: Api) -> None:
    response = await api.post(CHAT, FOR_OPENAI, x_request_id="my-request")
    answer = response.json()
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"] == "my-request"
    assert (answer["id"], answer["object"], answer["model"]) == ("chatcmpl-my-request", "chat.completion", "gpt-4o")
    assert answer["choices"][0]["message"]["content"] == "Hello, world"
    assert answer["usage"]["total_tokens"] == 8


async def test_an_anthropic_answer(api: Api) -> None:
    response = await api.post(MESSAGES, FOR_ANTHROPIC, x_request_id="my-request")
    answer = response.json()
    assert response.headers["request-id"] == response.headers["x-request-id"] == "my-request"
    assert (answer["id"], answer["type"], answer["model"]) == ("msg_my-request", "message", "gpt-4o")
    assert answer["content"] == [{"type": "text", "text": "Hello, world"}]


async def test_an_openai_stream_passes_the_providers_bytes_and_ends_with_done(api: Api) -> None:
    raw = b'data: {"odd" : 1}\n\n'
    api.provider.script = Script(pieces=("Hi", Chunk(raw=raw, dialect=Dialect.OPENAI)))
    response = await api.post(CHAT, {**FOR_OPENAI, "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert raw in response.content
    assert response.content.endswith(b"data: [DONE]\n\n")
    assert response.content.count(b"[DONE]") == 1


async def test_an_anthropic_stream_is_made_from_another_dialects(api: Api) -> None:
    response = await api.post(MESSAGES, {**FOR_ANTHROPIC, "stream": True}, x_request_id="my-request")
    names = [line.removeprefix("event: ") for line in response.text.splitlines() if line.startswith("event: ")]
    assert response.headers["request-id"] == "my-request"
    assert names == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


@pytest.mark.parametrize(("path", "body"), [(CHAT, FOR_OPENAI), (MESSAGES, FOR_ANTHROPIC)])
async def test_a_failure_in_mid_stream_is_the_only_terminal_event(api: Api, path: str, body: dict[str, Any]) -> None:
    api.provider.script = Script(pieces=("Hi", UpstreamUnavailable("the provider went away")))
    response = await api.post(path, {**body, "stream": True})
    assert response.status_code == 200
    assert response.text.count("the provider went away") == 1
    assert "[DONE]" not in response.text
    assert "message_stop" not in response.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [(CHAT, FOR_OPENAI), (MESSAGES, FOR_ANTHROPIC)])
@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (UpstreamThrottled("slower", retry_after_s=2.2), 503, "3"),
        (UpstreamRejected("too long"), 400, None),
        (UpstreamUnavailable("gone"), 502, None),
    ],
)
async def test_a_failure_before_the_answer_is_a_status(  # noqa: PLR0917 - parameters of the test
    api: Api,
    path: str,
    body: dict[str, Any],
    error: ServiceError,
    status: int,
    retry_after: str | None,
    stream: bool,  # noqa: FBT001
) -> None:
    api.provider.script = Script(before=error)
    response = await api.post(path, {**body, "stream": stream})
    assert response.status_code == status
    assert response.headers.get("retry-after") == retry_after
    assert response.json()["error"]["message"] == error.message


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, FOR_OPENAI), (MESSAGES, FOR_ANTHROPIC), ("/v1/embeddings", {"input": "a"})]
)
async def test_a_model_of_someone_else_is_not_found_and_the_callers_own_are_listed(
    api: Api, path: str, body: dict[str, Any]
) -> None:
    response = await api.post(path, {**body, "model": "claude-3-haiku-20240307"})
    assert response.status_code == 404
    message = response.json()["error"]["message"]
    assert "gpt-4o-mini" in message
    assert message.count("claude") == 1
    assert api.provider.calls == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({**FOR_OPENAI, "messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({**FOR_OPENAI, "top_p": 2}, "top_p"),
        ({"messages": HELLO}, "model"),
        (b"[]", None),
        (b"{", None),
        (b"", None),
        (b'{"model":"gpt-4o","messages":[{"role":"user","content":"\\ud800"}]}', None),
        (b'{"model":"gpt-4o","messages":[{"role":"user","content":"x"}],"seed":NaN}', None),
        (b'{"model":"gpt-4o","messages":[{"role":"user","content":"x"}],"x":' + b"[" * 300 + b"]" * 300 + b"}", None),
    ],
)
async def test_a_body_that_cannot_be_right_is_a_400_in_the_vendors_shape(
    api: Api, body: object, param: str | None
) -> None:
    response = await api.post(CHAT, body)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert param in (None, error["param"])
    response = await api.post(MESSAGES, body)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    assert response.headers["request-id"]
    assert api.provider.calls == []


async def test_a_body_over_the_limit_is_a_413_in_the_vendors_shape(api: Api) -> None:
    body = b'{"model": "' + b"x" * 1_100_000 + b'"}'
    response = await api.post(MESSAGES, body)
    assert (response.status_code, response.json()["error"]["type"]) == (413, "request_too_large")
    response = await api.post(CHAT, body)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


async def test_either_vendors_way_to_send_a_key_is_taken_and_a_wrong_one_refused(api: Api) -> None:
    for headers in ({"authorization": f"Bearer {CALLER_KEY}"}, {"x-api-key": CALLER_KEY, "authorization": ""}):
        request = api.client.build_request("GET", "/v1/models", headers=headers)
        if not headers["authorization"]:
            del request.headers["authorization"]
        assert (await api.client.send(request)).status_code == 200
    response = await api.post(CHAT, FOR_OPENAI, authorization="Bearer wrong")
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"].startswith("Bearer")
    response = await api.post(MESSAGES, FOR_ANTHROPIC, authorization="Bearer wrong")
    assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")


async def test_models_are_those_of_the_caller_in_the_shape_of_its_vendor(api: Api) -> None:
    listed = (await api.client.get("/v1/models")).json()
    assert {model["id"] for model in listed["data"]} == {"gpt-4o", "gpt-4o-mini"}
    assert {model["object"] for model in listed["data"]} == {"model"}
    page = (await api.client.get("/v1/models?limit=1", headers={"anthropic-version": "2023-06-01"})).json()
    assert [model["type"] for model in page["data"]] == ["model"]
    assert page["has_more"] is True
    one = (await api.client.get("/v1/models/gpt-4o", headers={"anthropic-version": "2023-06-01"})).json()
    assert (one["id"], one["type"]) == ("gpt-4o", "model")
    assert (await api.client.get("/v1/models/gpt-4o")).json()["owned_by"] == "openai"
    assert (await api.client.get("/v1/models/no%2Fsuch")).status_code == 404


async def test_a_route_that_we_do_not_have_is_a_404_in_the_vendors_shape(api: Api) -> None:
    response = await api.post("/v1/responses", {})
    assert (response.status_code, response.json()["error"]["type"]) == (404, "invalid_request_error")
    response = await api.post("/v1/messages/count_tokens", {})
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")
    assert response.headers["request-id"]


async def test_openapi_documents_the_bodies_and_every_failure_in_the_vendors_shape(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for path in (CHAT, "/v1/embeddings", MESSAGES):
        operation = document["paths"][path]["post"]
        assert {"200", "400", "401", "404", "413", "429", "500", "502", "503", "504"} <= set(operation["responses"])
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert "model" in schema["properties"]
        names = [ref.split('"')[0] for ref in orjson.dumps(schema).decode().split("#/components/schemas/")[1:]]
        assert set(names) <= set(schemas)
