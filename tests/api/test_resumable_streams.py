"""Resumable streams as callers see them: ids, continuing, ending, and whose they are."""

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from service.api.schemas import prompt_request
from service.api.sse import TextFraming
from service.auth.authenticator import KeyAuthenticator
from service.domain.principal import RequestContext
from service.errors import UpstreamTimeout
from service.providers.fake import Script
from tests.support.fake_app import ALICE, BOB, FakeApp, bearer, fake_app, keyed_auth, until

HELLO = [{"role": "user", "content": "Hello"}]
CONTEXT = RequestContext("request-1")
RESUMABLE = {"X-LLM-Resumable": "true"}
SURFACES: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/stream", {"params": {"prompt": "Hello", "model": "gpt-4o"}}),
    ("POST", "/chat", {"json": {"messages": HELLO, "model": "gpt-4o", "stream": True}}),
    ("POST", "/v1/chat/completions", {"json": {"model": "gpt-4o", "messages": HELLO, "stream": True}}),
    ("POST", "/v1/messages", {"json": {"model": "gpt-4o", "messages": HELLO, "max_tokens": 9, "stream": True}}),
]
ANY_SURFACE = pytest.mark.parametrize(("method", "path", "request_"), SURFACES, ids=[path for _, path, _ in SURFACES])


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
    async with fake_app() as running:
        yield running


@pytest.fixture
async def keyed() -> AsyncIterator[FakeApp]:
    async with fake_app(auth=keyed_auth()) as running:
        yield running


async def begin(api: FakeApp, **headers: str) -> tuple[str, bytes]:
    """Stream a whole answer; give its id and its bytes."""
    params = {"prompt": "Hello", "model": "gpt-4o", "resumable": "true"}
    response = await api.client.get("/stream", params=params, headers=headers)
    assert response.status_code == 200
    return response.headers["x-stream-id"], response.content


def events_of(body: bytes) -> list[bytes]:
    return re.findall(rb"(?s).+?\n\n", body)


def ids_of(body: bytes) -> list[str]:
    return [line.decode() for line in re.findall(rb"(?m)^id: (.*)$", body)]


def _without_marks(body: bytes) -> bytes:
    """Leave out what names one answer of two that are otherwise alike."""
    return re.sub(rb'"(created|id)":[^,}]*', b"", body)


@ANY_SURFACE
async def test_each_event_has_an_id_and_is_otherwise_what_it_was(
    api: FakeApp, method: str, path: str, request_: dict[str, Any]
) -> None:
    plain = await api.client.request(method, path, **request_, headers={"X-Request-ID": "same"})
    resumable = await api.client.request(method, path, **request_, headers={"X-Request-ID": "same", **RESUMABLE})
    assert "x-stream-id" not in plain.headers
    stream_id = resumable.headers["x-stream-id"]
    count = len(events_of(plain.content))
    assert ids_of(resumable.content) == [f"{stream_id}:{number}" for number in range(1, count + 1)]
    without_ids = re.sub(rb"(?m)^id: .*\n", b"", resumable.content)
    assert _without_marks(without_ids) == _without_marks(plain.content)


@ANY_SURFACE
async def test_the_rest_is_the_same_bytes_on_the_route_itself_and_on_the_streams(
    api: FakeApp, method: str, path: str, request_: dict[str, Any]
) -> None:
    whole = await api.client.request(method, path, **request_, headers=RESUMABLE)
    stream_id = whole.headers["x-stream-id"]
    events = events_of(whole.content)
    for after in range(len(events) + 1):
        rest = b"".join(events[after:])
        last = {"Last-Event-ID": f"{stream_id}:{after}"}
        answers = [
            await api.client.request(method, path, **request_, headers=last),
            await api.client.get(f"/streams/{stream_id}", params={"after": after}),
            await api.client.get(f"/streams/{stream_id}", headers=last),
        ]
        for answer in answers:
            assert answer.content == rest
            assert answer.status_code == (200 if rest else 204)
            if rest:
                assert answer.headers["x-stream-id"] == stream_id
                assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert len(api.provider.calls) == 1


async def test_the_header_counts_more_than_the_query_as_a_browser_sends_both(api: FakeApp) -> None:
    stream_id, body = await begin(api)
    answer = await api.client.get(
        f"/streams/{stream_id}", params={"after": 1}, headers={"Last-Event-ID": f"{stream_id}:3"}
    )
    assert answer.content == b"".join(events_of(body)[3:])


@ANY_SURFACE
async def test_a_stream_that_is_not_known_is_404_and_asks_no_model(
    api: FakeApp, method: str, path: str, request_: dict[str, Any]
) -> None:
    answer = await api.client.request(method, path, **request_, headers={"Last-Event-ID": "str_unknown:3"})
    assert answer.status_code == 404
    assert "stream_not_found" in answer.text
    assert api.provider.calls == []


@pytest.mark.parametrize(
    "value",
    ["x", "str_a:", ":3", "str_a:-1", "str_a:3.0", "str_a:٣", f"str_a:{10**15}", "1" * 99, "str_a:" + "0" * 4_400],
)
async def test_what_is_no_event_id_names_the_header(api: FakeApp, value: str) -> None:
    answer = await api.client.get("/stream", params={"prompt": "x"}, headers={b"Last-Event-ID": value.encode()})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "Last-Event-ID"
    assert api.provider.calls == []


async def test_an_empty_last_event_id_is_none(api: FakeApp) -> None:
    answer = await api.client.get("/stream", params={"prompt": "x"}, headers={"Last-Event-ID": ""})
    assert answer.status_code == 200


async def test_the_id_in_the_header_must_be_the_paths(api: FakeApp) -> None:
    stream_id, _ = await begin(api)
    answer = await api.client.get(f"/streams/{stream_id}", headers={"Last-Event-ID": "str_other:1"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "Last-Event-ID"


@pytest.mark.parametrize("value", ["maybe", "", "TRUE!"])
async def test_another_word_than_true_or_false_names_the_header(api: FakeApp, value: str) -> None:
    answer = await api.client.get("/stream", params={"prompt": "x"}, headers={"X-LLM-Resumable": value})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "X-LLM-Resumable"


@pytest.mark.parametrize("value", ["false", "0", "False"])
async def test_it_can_be_declined(api: FakeApp, value: str) -> None:
    answer = await api.client.get("/stream", params={"prompt": "x"}, headers={"X-LLM-Resumable": value})
    assert "x-stream-id" not in answer.headers


async def test_a_failure_before_the_content_is_a_status(api: FakeApp) -> None:
    api.provider.script = Script(pieces=(UpstreamTimeout("too late"),))
    answer = await api.client.get("/stream", params={"prompt": "x", "resumable": "true"})
    assert answer.status_code == 504
    assert answer.json()["code"] == "upstream_timeout"


async def test_a_failure_in_the_stream_is_its_last_event_for_whoever_reads_it(api: FakeApp) -> None:
    api.provider.script = Script(pieces=("Hello", UpstreamTimeout("too late")))
    stream_id, body = await begin(api)
    assert b"event: error\n" in events_of(body)[-1]
    assert b'"code":"upstream_timeout"' in events_of(body)[-1]
    assert b'"resume"' not in body
    again = await api.client.get(f"/streams/{stream_id}")
    assert again.content == body


@pytest.mark.parametrize(
    ("pieces", "outcome"), [(("Hello",), "complete"), (("Hello", UpstreamTimeout("late")), "error")]
)
async def test_its_connections_count_as_what_they_told(
    api: FakeApp, pieces: tuple[str | UpstreamTimeout, ...], outcome: str
) -> None:
    api.provider.script = Script(pieces=pieces)
    stream_id, _ = await begin(api)
    await api.client.get(f"/streams/{stream_id}")
    assert api.ends("sse") == {outcome: 2}
    assert api.value("llm_api_time_to_first_token_seconds_count", transport="sse") == 1


@pytest.mark.parametrize(("method", "path", "request_"), SURFACES[1:], ids=[path for _, path, _ in SURFACES[1:]])
async def test_a_continuation_is_a_stream_whatever_the_body_says(
    api: FakeApp, method: str, path: str, request_: dict[str, Any]
) -> None:
    whole = await api.client.request(method, path, **request_, headers=RESUMABLE)
    plain = {**request_["json"], "stream": False}
    last = {"Last-Event-ID": f"{whole.headers['x-stream-id']}:1"}
    rest = await api.client.request(method, path, json=plain, headers=last)
    assert rest.content == b"".join(events_of(whole.content)[1:])
    assert len(api.provider.calls) == 1


async def test_a_ticket_that_nobody_looked_at_opens_nothing(keyed: FakeApp) -> None:
    params = {"prompt": "Hello", "model": "gpt-4o", "resumable": "true", "ticket": "made-up"}
    first = await keyed.client.get("/stream", params=params, headers=bearer(ALICE))
    stream_id = first.headers["x-stream-id"]
    refused = await keyed.client.get(f"/streams/{stream_id}", params={"ticket": "made-up"})
    assert refused.status_code == 401


async def test_someone_elses_stream_looks_like_one_that_never_was(keyed: FakeApp) -> None:
    stream_id, _ = await begin(keyed, **bearer(ALICE))
    refusals = []
    for name in (stream_id, "str_" + "x" * 24):
        for method in ("GET", "DELETE"):
            refused = await keyed.client.request(method, f"/streams/{name}", headers=bearer(BOB))
            assert refused.status_code == 404
            problem = refused.json()
            refusals.append({**problem, "request_id": "", "detail": problem["detail"].replace(name, "")})
    assert all(refusal == refusals[0] for refusal in refusals)
    assert (await keyed.client.get(f"/streams/{stream_id}", headers=bearer(ALICE))).status_code == 200


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_key_is_needed(keyed: FakeApp, method: str) -> None:
    stream_id, _ = await begin(keyed, **bearer(ALICE))
    assert (await keyed.client.request(method, f"/streams/{stream_id}")).status_code == 401


async def test_ending_a_stream_closes_the_upstream_and_tells_whoever_reads_it(api: FakeApp) -> None:
    api.provider.script = Script(stepped=True)
    owned = await api.resources.streams.start(
        api.resources.generation.stream(prompt_request("Hello", "gpt-4o", 9, 0.0), CONTEXT),
        TextFraming(request_id=CONTEXT.request_id, model="gpt-4o"),
        CONTEXT,
    )
    call = await api.provider.call()
    call.step()
    await until(call.waiting.is_set)
    assert (await api.client.delete(f"/streams/{owned.id}")).status_code == 204
    await until(call.closed.is_set)
    body = (await api.client.get(f"/streams/{owned.id}")).content
    assert b'"code":"cancelled"' in events_of(body)[-1]
    assert (await api.client.delete(f"/streams/{owned.id}")).status_code == 204


# Browsers


async def ticket_of(api: FakeApp, key: str = ALICE) -> str:
    ticket: str = (await api.client.post("/tickets", headers=bearer(key))).json()["ticket"]
    return ticket


async def test_the_ticket_that_began_a_stream_continues_that_stream_only(keyed: FakeApp) -> None:
    ticket = await ticket_of(keyed)
    params = {"prompt": "Hello", "model": "gpt-4o", "resumable": "true", "ticket": ticket}
    first = await keyed.client.get("/stream", params=params)
    assert first.status_code == 200
    stream_id = first.headers["x-stream-id"]
    again = await keyed.client.get("/stream", params=params, headers={"Last-Event-ID": f"{stream_id}:1"})
    assert again.content == b"".join(events_of(first.content)[1:])
    direct = await keyed.client.get(f"/streams/{stream_id}", params={"ticket": ticket})
    assert direct.content == first.content
    other, _ = await begin(keyed, **bearer(ALICE))
    refusals: list[httpx.Response] = [
        await keyed.client.get("/stream", params=params),
        await keyed.client.get("/stream", params=params, headers={"Last-Event-ID": f"{other}:1"}),
        await keyed.client.get("/stream", params=params, headers={"Last-Event-ID": "str_unknown:1"}),
        await keyed.client.get(f"/streams/{other}", params={"ticket": ticket}),
        await keyed.client.get(f"/streams/{stream_id}", params={"ticket": ticket + "x"}),
        await keyed.client.get("/stream", params=params, headers={"Last-Event-ID": stream_id}),
    ]
    assert [refusal.status_code for refusal in refusals] == [401] * len(refusals)
    assert len(keyed.provider.calls) == 2


async def test_the_ticket_continues_nothing_once_its_key_was_replaced(keyed: FakeApp) -> None:
    ticket = await ticket_of(keyed)
    params = {"prompt": "Hello", "model": "gpt-4o", "resumable": "true", "ticket": ticket}
    stream_id = (await keyed.client.get("/stream", params=params)).headers["x-stream-id"]
    replaced = keyed_auth()
    replaced["keys"]["alice"] = {**replaced["keys"]["alice"], "key": "another-key-of-alice-0123456789"}
    settings = keyed.resources.settings
    prepared = settings.model_copy(update={"auth": type(settings.auth).model_validate(replaced)})
    authenticator = keyed.resources.authenticator
    assert isinstance(authenticator, KeyAuthenticator)
    (await authenticator.prepare(prepared))()
    refused = await keyed.client.get(f"/streams/{stream_id}", params={"ticket": ticket})
    assert refused.status_code == 401


async def test_the_ticket_is_no_credential_for_ending_or_asking(keyed: FakeApp) -> None:
    ticket = await ticket_of(keyed)
    params = {"prompt": "Hello", "model": "gpt-4o", "resumable": "true", "ticket": ticket}
    stream_id = (await keyed.client.get("/stream", params=params)).headers["x-stream-id"]
    refused = await keyed.client.delete(f"/streams/{stream_id}", params={"ticket": ticket})
    assert refused.status_code == 401


async def test_a_browser_knows_the_id_before_the_first_event(api: FakeApp) -> None:
    params = {"prompt": "Hello", "resumable": "true"}
    answer = await api.client.get("/stream", params=params, headers={"Sec-Fetch-Mode": "cors"})
    stream_id = answer.headers["x-stream-id"]
    first, *rest = events_of(answer.content)
    assert first == f"retry: 250\nid: {stream_id}:0\n\n".encode()
    assert (await api.client.get(f"/streams/{stream_id}")).content == b"".join(rest)
