"""Limits as callers see them: headers on every answer, refusals that say when to come back, in every surface's form."""

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.client import connect

from service.domain.generation import Usage
from service.errors import UpstreamUnavailable
from service.providers.fake import Script
from tests.support.fake_app import ALICE, BOB, DEADLINE_S, bearer, fake_app, fake_app_on_socket, keyed_auth

HELLO = {"prompt": "Hello", "max_tokens": 20}
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20}
ASKS = [
    ("/generate", HELLO),
    ("/chat", {"messages": CHAT["messages"], "max_tokens": 20}),
    ("/chat", {"messages": CHAT["messages"], "max_tokens": 20, "stream": True}),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/v1/messages", CHAT),
    ("/v1/messages", {**CHAT, "stream": True}),
    ("/v1/embeddings", {"model": "vectors", "input": "Hello"}),
]


def limited_auth(**limits: Any) -> dict[str, Any]:
    """Make the section in which only Alice has limits."""
    keys = keyed_auth()["keys"]
    return {"enabled": True, "keys": {**keys, "alice": {"key": ALICE, "limits": limits}}}


@pytest.mark.parametrize(("path", "body"), ASKS)
async def test_every_answer_says_what_is_left_right_after_it(path: str, body: dict[str, Any]) -> None:
    async with fake_app(auth=limited_auth(requests_per_minute=60, request_burst=2)) as api:
        for left in (1, 0):
            response = await api.client.post(path, json=body, headers=bearer(ALICE))
            assert response.status_code == 200
            assert response.headers["ratelimit-policy"] == '"key-requests";q=2;w=2'
            assert response.headers["ratelimit"] == f'"key-requests";r={left};t={2 - left}'
            assert ("x-ratelimit-remaining-requests" in response.headers) == path.startswith("/v1/")
        refused = await api.client.post(path, json=body, headers=bearer(ALICE))
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["ratelimit"] == '"key-requests";r=0;t=2'
        assert len(api.provider.calls) == 2


async def test_coming_back_after_retry_after_is_let_in() -> None:
    async with fake_app(auth=limited_auth(requests_per_minute=7, request_burst=1)) as api:
        for _ in range(5):
            assert (await api.client.post("/generate", json=HELLO, headers=bearer(ALICE))).status_code == 200
            refused = await api.client.post("/generate", json=HELLO, headers=bearer(ALICE))
            assert refused.json()["retry_after_s"] == 8.572
            api.clock.advance(int(refused.headers["retry-after"]) - 1)
            assert (await api.client.post("/generate", json=HELLO, headers=bearer(ALICE))).status_code == 429
            api.clock.advance(1)


async def test_refusal_names_limit_scope_and_what_to_do() -> None:
    auth = {**limited_auth(), "user_limits": {"tokens_per_minute": 60, "token_burst": 30}}
    async with fake_app(Script(usage=Usage(2, 20)), auth=auth) as api:
        body = {**HELLO, "messages": CHAT["messages"], "user_id": "carol"}
        del body["prompt"]
        assert (await api.client.post("/chat", json=body, headers=bearer(ALICE))).status_code == 200
        refused = await api.client.post("/chat", json=body, headers=bearer(ALICE))
        assert refused.headers["content-type"] == "application/problem+json"
        fields = refused.json()
        assert fields.pop("request_id") == refused.headers["x-request-id"]
        assert fields == {
            "type": "https://github.com/llm-api/llm-api/blob/main/docs/errors.md#rate_limited",
            "title": "Rate limit reached",
            "status": 429,
            "detail": "user 'alice/carol' may take 60 tokens a minute, and this request is estimated at 22: "
            "ask again in 14 s, or for fewer (max_tokens)",
            "code": "rate_limited",
            "retryable": True,
            "retry_after_s": 14,
        }
        other = await api.client.post("/chat", json={**body, "user_id": "dave"}, headers=bearer(ALICE))
        assert other.status_code == 200


async def test_vendors_clients_get_their_vendors_refusal() -> None:
    async with fake_app(auth=limited_auth(requests_per_minute=1)) as api:
        await api.client.post("/generate", json=HELLO, headers=bearer(ALICE))
        openai = await api.client.post("/v1/chat/completions", json=CHAT, headers=bearer(ALICE))
        anthropic = await api.client.post("/v1/messages", json=CHAT, headers={"x-api-key": ALICE})
    assert (openai.status_code, anthropic.status_code) == (429, 429)
    assert openai.json()["error"]["code"] == "rate_limit_exceeded"
    assert openai.headers["x-ratelimit-reset-requests"] == "1m0s"
    assert anthropic.json()["error"]["type"] == "rate_limit_error"
    assert anthropic.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert openai.headers["retry-after"] == anthropic.headers["retry-after"] == "60"


async def test_what_could_never_pass_is_no_429() -> None:
    async with fake_app(auth=limited_auth(tokens_per_minute=10)) as api:
        ours = await api.client.post("/generate", json=HELLO, headers=bearer(ALICE))
        openai = await api.client.post("/v1/chat/completions", json=CHAT, headers=bearer(ALICE))
    assert (ours.status_code, ours.json()["code"]) == (422, "beyond_limit")
    assert [fault["field"] for fault in ours.json()["errors"]] == ["max_tokens"]
    assert (openai.status_code, openai.json()["error"]["param"]) == (400, "max_tokens")
    assert "retry-after" not in ours.headers


async def test_embedding_that_could_never_pass_names_its_input() -> None:
    body = {"model": "vectors", "input": "word " * 20}
    async with fake_app(auth=limited_auth(tokens_per_minute=10)) as api:
        refused = await api.client.post("/v1/embeddings", json=body, headers=bearer(ALICE))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")
    assert "max_tokens" not in refused.text


async def test_others_are_not_told_of_limits_they_do_not_have() -> None:
    async with fake_app(auth=limited_auth(requests_per_minute=1)) as api:
        for _ in range(3):
            response = await api.client.post("/generate", json={**HELLO, "model": "gpt-4o"}, headers=bearer(BOB))
            assert response.status_code == 200
            assert not [name for name in response.headers if "ratelimit" in name]
        wrong = await api.client.post("/generate", json=HELLO, headers=bearer("nobodys-key-0123456789"))
        assert not [name for name in wrong.headers if "ratelimit" in name]


@pytest.mark.parametrize("path", ["/v1/models", "/generate/async/job_x", "/streams/str_x"])
async def test_what_takes_nothing_tells_only_the_policy(path: str) -> None:
    async with fake_app(auth=limited_auth(requests_per_minute=1)) as api:
        for _ in range(3):
            response = await api.client.get(path, headers=bearer(ALICE))
            assert response.status_code in (200, 404)
            assert response.headers["ratelimit-policy"] == '"key-requests";q=1;w=60'
            assert "ratelimit" not in response.headers
        wrong = await api.client.post("/generate", json={}, headers=bearer(ALICE))
        assert (wrong.status_code, "ratelimit-policy" in wrong.headers) == (422, True)
        assert (await api.client.post("/generate", json=HELLO, headers=bearer(ALICE))).status_code == 200


async def test_default_limits_fill_what_a_key_leaves_out() -> None:
    auth = {**limited_auth(requests_per_minute=2), "default_limits": {"requests_per_minute": 5, "concurrency": 3}}
    async with fake_app(auth=auth) as api:
        alice = await api.client.post("/generate", json=HELLO, headers=bearer(ALICE))
        bob = await api.client.post("/generate", json={**HELLO, "model": "gpt-4o"}, headers=bearer(BOB))
    concurrency = '"key-concurrency";q=3;qu="concurrent-requests"'
    assert alice.headers["ratelimit-policy"] == f'"key-requests";q=2;w=60, {concurrency}'
    assert bob.headers["ratelimit-policy"] == f'"key-requests";q=5;w=60, {concurrency}'


async def test_without_authentication_all_callers_are_one() -> None:
    async with fake_app(auth={"enabled": False, "default_limits": {"requests_per_minute": 1}}) as api:
        assert (await api.client.post("/generate", json=HELLO)).status_code == 200
        refused = await api.client.post("/generate", json=HELLO)
        assert refused.json()["detail"].startswith("key 'anonymous' may start 1 requests a minute")


async def test_failed_call_counts_as_a_request_and_costs_no_tokens() -> None:
    auth = limited_auth(requests_per_minute=10, tokens_per_minute=1_000)
    async with fake_app(Script(before=UpstreamUnavailable("down")), auth=auth) as api:
        first = await api.client.post("/generate", json=HELLO, headers=bearer(ALICE))
        assert first.status_code == 502
        assert first.headers["ratelimit"] == '"key-requests";r=9;t=6, "key-tokens";r=978;t=2'
        second = await api.client.post("/generate", json=HELLO, headers=bearer(ALICE))
        assert second.headers["ratelimit"] == '"key-requests";r=8;t=12, "key-tokens";r=978;t=2'


async def test_shadow_tells_and_refuses_nothing() -> None:
    async with fake_app(auth=limited_auth(requests_per_minute=1), admission={"shadow": True}) as api:
        for _ in range(3):
            response = await api.client.post("/generate", json=HELLO, headers=bearer(ALICE))
            assert response.status_code == 200
            assert not [name for name in response.headers if "ratelimit" in name]
        for path in ("/v1/models", "/generate/async/job_x"):
            response = await api.client.get(path, headers=bearer(ALICE))
            assert not [name for name in response.headers if "ratelimit" in name]
        would_refuse = api.value(
            "llm_api_rate_limit_decisions_total", scope="key", resource="requests", decision="would_refuse"
        )
        assert would_refuse == 2


async def test_stream_holds_its_place_until_its_client_has_all_of_it() -> None:
    async with fake_app_on_socket(Script(stepped=True), auth=limited_auth(concurrency=1)) as api:
        async with api.client.stream("GET", "/stream", params={"prompt": "Hi"}, headers=bearer(ALICE)) as response:
            assert response.headers["ratelimit"] == '"key-concurrency";r=0'
            busy = await api.client.post("/generate", json=HELLO, headers=bearer(ALICE))
            assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
            (await api.provider.call()).step(4)
            await response.aread()
        api.provider.script = Script()
        assert (await api.client.post("/generate", json=HELLO, headers=bearer(ALICE))).status_code == 200


async def test_client_that_hangs_up_gives_its_place_back() -> None:
    async with fake_app_on_socket(Script(stepped=True), auth=limited_auth(concurrency=1)) as api:
        for number in range(3):
            request = asyncio.create_task(api.client.post("/generate", json=HELLO, headers=bearer(ALICE)))
            call = await api.provider.call(number)
            request.cancel()
            await asyncio.wait_for(call.closed.wait(), DEADLINE_S)


async def test_generations_on_a_socket_are_limited_each_by_itself() -> None:
    async with (
        fake_app_on_socket(auth=limited_auth(requests_per_minute=7, request_burst=1)) as api,
        connect(api.base_url.replace("http", "ws") + "/ws", proxy=None, additional_headers=bearer(ALICE)) as socket,
    ):
        ends = {}
        for generation in ("a", "b"):
            await socket.send(json.dumps({"type": "generate", "id": generation, "prompt": "Hi"}))
            while generation not in ends:
                message = json.loads(await asyncio.wait_for(socket.recv(), DEADLINE_S))
                if message["type"] in {"done", "error"}:
                    ends[message["id"]] = message
    assert ends["a"]["type"] == "done"
    assert (ends["b"]["code"], ends["b"]["retry_after_s"]) == ("rate_limited", 8.572)


async def test_resumable_stream_is_limited_like_any() -> None:
    async with fake_app_on_socket(auth=limited_auth(requests_per_minute=1)) as api:
        query = {"prompt": "Hi", "resumable": "true"}
        first = await api.client.get("/stream", params=query, headers=bearer(ALICE))
        assert first.headers["ratelimit"] == '"key-requests";r=0;t=60'
        continued = await api.client.get(f"/streams/{first.headers['x-stream-id']}", headers=bearer(ALICE))
        assert continued.status_code == 200
        refused = await api.client.get("/stream", params=query, headers=bearer(ALICE))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
