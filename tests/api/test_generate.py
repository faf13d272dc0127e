"""``POST /generate``: what it takes, what it gives, and what each failure looks like to the caller."""

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
from typing_extensions import override

from service.admission.memory import MemoryLimiter
from service.api.deps import get_generation
from service.domain.clock import SystemClock
from service.domain.generation import GenerationRequest, Message, Usage
from service.engine.admission import Admission
from service.engine.catalogue import ModelCatalogue
from service.engine.generation import GenerationService
from service.errors import (
    ServiceError,
    UpstreamError,
    UpstreamInvalid,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.providers.fake import FakeProvider, Script
from tests.support.attempts import attempts_over
from tests.support.fake_app import FakeApp, fake_app
from tests.support.ledger import unwritten_ledger

PROBLEM = "application/problem+json"
REQUEST_ID = re.compile(r"req_[0-9a-f]{22}")


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
    async with fake_app() as running:
        yield running


async def post(api: FakeApp, content: bytes) -> httpx.Response:
    return await api.client.post("/generate", content=content, headers={"content-type": "application/json"})


def fields_of(response: httpx.Response) -> set[str]:
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == PROBLEM
    problem = response.json()
    assert (problem["status"], problem["code"], problem["retryable"]) == (422, "invalid_request", False)
    assert problem["request_id"] == response.headers["x-request-id"]
    assert all(fault["field"] in problem["detail"] for fault in problem["errors"])
    return {fault["field"] for fault in problem["errors"]}


async def test_the_answer_has_all_fields(api: FakeApp) -> None:
    api.provider.script = Script(pieces=("Par", "is"), usage=Usage(input_tokens=7, output_tokens=2))
    response = await api.client.post("/generate", json={"prompt": "Capital of France?", "model": "gpt-4o"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "text": "Paris",
        "model": "upstream-4o",
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "finish_reason": "stop",
        "request_id": response.headers["x-request-id"],
    }


async def test_the_provider_is_asked_for_the_defaults_of_the_contract(api: FakeApp) -> None:
    assert (await api.client.post("/generate", json={"prompt": "Hi"})).status_code == 200
    assert api.provider.calls[0].request == GenerationRequest(
        model="gpt-4o-mini", messages=(Message.of_text("user", "Hi"),), max_tokens=512, temperature=0.7
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", "x"),
        ("prompt", "x" * 4_000),
        ("prompt", "😀" * 4_000),
        ("max_tokens", 1),
        ("max_tokens", 4_096),
        ("temperature", 0),
        ("temperature", 2),
        ("temperature", 1.5),
        ("model", "team/anything"),
    ],
)
async def test_the_limits_themselves_are_within(api: FakeApp, field: str, value: object) -> None:
    response = await api.client.post("/generate", json={"prompt": "Hi", field: value})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 4_001}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["x"]}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 4_097}, "max_tokens"),
        ({"prompt": "x", "max_tokens": "5"}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 10**400}, "max_tokens"),
        ({"prompt": "x", "temperature": -0.01}, "temperature"),
        ({"prompt": "x", "temperature": 2.01}, "temperature"),
        ({"prompt": "x", "temperature": "warm"}, "temperature"),
        ({"prompt": "x", "model": ""}, "model"),
        ({"prompt": "x", "model": None}, "model"),
        ({"prompt": "x", "modell": "gpt-4o"}, "modell"),
        ({"prompt": "x", "stream": True}, "stream"),
    ],
)
async def test_a_wrong_field_is_named(api: FakeApp, body: dict[str, Any], field: str) -> None:
    assert fields_of(await api.client.post("/generate", json=body)) == {field}
    assert api.provider.calls == []


async def test_every_wrong_field_is_named_at_once(api: FakeApp) -> None:
    body = {"max_tokens": 0, "temperature": 3, "model": "", "promt": "x"}
    response = await api.client.post("/generate", json=body)
    assert fields_of(response) == {"prompt", "max_tokens", "temperature", "model", "promt"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"prompt"',
        b"7",
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"prompt": "x"} trailing',
        b"[" * 100_000,
        b'{"prompt": ' + b"[" * 1_000 + b"]" * 1_000 + b"}",
        b'{"prompt": ' + b'{"a": ' * 1_000 + b"1" + b"}" * 1_001,
    ],
)
async def test_a_body_that_is_no_json_object_is_a_422(api: FakeApp, content: bytes) -> None:
    assert fields_of(await post(api, content)) <= {"body", "prompt"}
    assert api.provider.calls == []


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
async def test_a_number_that_is_none_is_a_422(api: FakeApp, number: bytes) -> None:
    assert fields_of(await post(api, b'{"prompt": "x", "temperature": ' + number + b"}")) <= {"temperature", "body"}
    assert api.provider.calls == []


@pytest.mark.parametrize("model", ["gpt-5", "GPT-4o", "gpt-4o ", "team", "gpt-*", "x\ny"])
async def test_an_unknown_model_is_a_422_that_lists_the_allowed_names(api: FakeApp, model: str) -> None:
    response = await api.client.post("/generate", json={"prompt": "x", "model": model})
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "model_not_found")
    assert [fault["field"] for fault in problem["errors"]] == ["model"]
    for allowed in ("gpt-4o-mini", "gpt-4o", "two-routes", "team/*"):
        assert allowed in problem["detail"]
    assert api.provider.calls == []


async def test_a_model_for_vectors_alone_does_not_chat(api: FakeApp) -> None:
    response = await api.client.post("/generate", json={"prompt": "x", "model": "vectors"})
    assert (response.status_code, response.json()["code"]) == (422, "model_not_found")
    assert "does not do chat" in response.json()["detail"]


@pytest.mark.parametrize(
    ("error", "status", "code", "retryable", "retry_after"),
    [
        (UpstreamRejected("the context is too long"), 400, "upstream_rejected", False, None),
        (UpstreamThrottled("slower", retry_after_s=0.2), 503, "upstream_throttled", True, "1"),
        (UpstreamThrottled("slower", retry_after_s=7.0), 503, "upstream_throttled", True, "7"),
        (UpstreamThrottled("slower", retry_after_s=7.1), 503, "upstream_throttled", True, "8"),
        (UpstreamThrottled("slower"), 503, "upstream_throttled", True, None),
        (UpstreamUnavailable("gone"), 502, "upstream_unavailable", True, None),
        (UpstreamUnavailable("back soon", retry_after_s=30), 502, "upstream_unavailable", True, "30"),
        (UpstreamInvalid("no finish reason"), 502, "upstream_invalid_response", True, None),
        (UpstreamMisconfigured("the key is refused"), 502, "upstream_misconfigured", False, None),
        (UpstreamTimeout("too late"), 504, "upstream_timeout", True, None),
        (UpstreamError("odd"), 502, "upstream_error", False, None),
    ],
)
async def test_each_trouble_of_the_provider_has_a_status_a_code_and_its_delay(  # noqa: PLR0917 - the table's columns
    api: FakeApp,
    error: ServiceError,
    status: int,
    code: str,
    retryable: bool,  # noqa: FBT001 - a column of the table
    retry_after: str | None,
) -> None:
    api.provider.script = Script(before=error)
    response = await api.client.post("/generate", json={"prompt": "x"})
    problem = response.json()
    assert (response.status_code, response.headers["content-type"]) == (status, PROBLEM)
    assert response.headers.get("retry-after") == retry_after
    assert problem == {
        "type": f"https://github.com/llm-api/llm-api/blob/main/docs/errors.md#{code}",
        "title": error.title,
        "status": status,
        "detail": error.message,
        "code": code,
        "retryable": retryable,
        **({} if error.retry_after_s is None else {"retry_after_s": error.retry_after_s}),
        "request_id": response.headers["x-request-id"],
    }
    assert api.value("llm_api_upstream_requests_total", provider="fake", model="gpt-4o-mini", outcome=code) == 1


async def test_an_answer_without_a_finish_reason_is_no_success(api: FakeApp) -> None:
    api.provider.script = Script(finish_reason=None)
    response = await api.client.post("/generate", json={"prompt": "x"})
    assert (response.status_code, response.json()["code"]) == (502, "upstream_invalid_response")


async def test_the_second_route_answers_when_the_first_cannot(api: FakeApp) -> None:
    api.provider.script = Script(before=UpstreamUnavailable("gone"))
    response = await api.client.post("/generate", json={"prompt": "x", "model": "two-routes"})
    assert response.status_code == 200
    assert response.json()["model"] == "spare"


async def test_a_rejected_request_does_not_go_to_the_second_route(api: FakeApp) -> None:
    api.provider.script = Script(before=UpstreamRejected("too long"))
    response = await api.client.post("/generate", json={"prompt": "x", "model": "two-routes"})
    assert response.status_code == 400
    assert api.backup.calls == []


async def test_the_last_routes_failure_is_the_one_that_is_told(api: FakeApp) -> None:
    api.provider.script = Script(before=UpstreamUnavailable("gone"))
    api.backup.script = Script(before=UpstreamThrottled("slower", retry_after_s=9))
    response = await api.client.post("/generate", json={"prompt": "x", "model": "two-routes"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "9")


@pytest.mark.parametrize("request_id", ["a", "A.b_c-9", "x" * 64])
async def test_a_harmless_request_id_is_taken(api: FakeApp, request_id: str) -> None:
    response = await api.client.post("/generate", json={"prompt": "x"}, headers={"x-request-id": request_id})
    assert response.headers.get_list("x-request-id") == [request_id]
    assert response.json()["request_id"] == request_id


@pytest.mark.parametrize("request_id", ["", "x" * 65, "a b", "a\r\nSet-Cookie: x", "a\n", "ä", "a;b", "../x"])
async def test_a_request_id_that_could_forge_is_replaced(api: FakeApp, request_id: str) -> None:
    headers = {b"x-request-id": request_id.encode("latin-1")}
    response = await api.client.post("/generate", json={"prompt": "x"}, headers=headers)
    (made,) = response.headers.get_list("x-request-id")
    assert REQUEST_ID.fullmatch(made)
    assert "set-cookie" not in response.headers


async def test_every_request_gets_an_id_of_its_own(api: FakeApp) -> None:
    ids = {(await api.client.post("/generate", json={"prompt": "x"})).headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


async def test_an_unknown_path_is_a_problem(api: FakeApp) -> None:
    response = await api.client.get("/nothing")
    assert (response.status_code, response.headers["content-type"]) == (404, PROBLEM)
    assert response.json()["code"] == "not_found"
    assert response.json()["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("GET", "/generate", "POST"), ("PUT", "/chat", "POST"), ("POST", "/stream", "GET")]
)
async def test_a_wrong_method_is_a_problem_that_names_the_right_one(
    api: FakeApp, method: str, path: str, allowed: str
) -> None:
    response = await api.client.request(method, path)
    assert (response.status_code, response.headers["content-type"]) == (405, PROBLEM)
    assert response.json()["code"] == "method_not_allowed"
    assert response.headers["allow"] == allowed


class Defective(FakeProvider):
    """Breaks in a way that no code expects."""

    @override
    async def complete(self, *_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("secret detail")


async def test_a_defect_is_a_500_with_an_id_and_a_counter_and_no_detail(
    api: FakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    api.app.dependency_overrides[get_generation] = lambda: generation_over(Defective(), api)
    response = await api.client.post("/generate", json={"prompt": "x"})
    problem = response.json()
    assert (response.status_code, response.headers["content-type"], problem["code"]) == (500, PROBLEM, "internal_error")
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["request_id"] in problem["detail"]
    assert "secret detail" not in response.text
    assert api.value("llm_api_unhandled_errors_total", place="http") == 1
    assert api.value("llm_api_http_requests_total", route="/generate", method="POST", code="500") == 1
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.__dict__["request_id"] == problem["request_id"]


def generation_over(provider: FakeProvider, api: FakeApp) -> GenerationService:
    return GenerationService(
        catalogue=ModelCatalogue(api.resources.settings.models),
        attempts=attempts_over(
            {"fake": provider, "backup": provider}, metrics=api.resources.metrics, clock=SystemClock()
        ),
        admission=Admission(limiter=MemoryLimiter(clock=SystemClock()), shadow=False, metrics=api.resources.metrics),
        ledger=unwritten_ledger(),
        metrics=api.resources.metrics,
    )


async def test_another_provider_is_injected_through_fastapis_dependencies(api: FakeApp) -> None:
    other = FakeProvider(script=Script(pieces=("from elsewhere",)))
    api.app.dependency_overrides[get_generation] = lambda: generation_over(other, api)
    response = await api.client.post("/generate", json={"prompt": "x"})
    assert response.json()["text"] == "from elsewhere"
    assert (len(other.calls), api.provider.calls) == (1, [])


async def test_any_text_arrives_as_the_model_wrote_it(api: FakeApp) -> None:
    text = '\r\n\u2028\x00[DONE]😀\ufeff"\\'
    api.provider.script = Script(pieces=(text,))
    response = await api.client.post("/generate", json={"prompt": text})
    assert orjson.loads(response.content)["text"] == text
    request = api.provider.calls[0].request
    assert isinstance(request, GenerationRequest)
    assert request.messages[0].text == text
