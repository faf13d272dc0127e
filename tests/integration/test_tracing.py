"""One trace for each request, as a collector gets it over gRPC: exactly these spans, with these names and ends."""

import asyncio
import contextlib
import json
import logging
import re
import signal
import socket
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.openmetrics.exposition import generate_latest
from pydantic import SecretStr
from websockets.asyncio.client import connect

from service.config import RedisSettings, Settings
from service.engine.generation import GenerationService
from service.telemetry import semconv
from tests.support.attempts import PLAIN
from tests.support.command import running
from tests.support.http_server import answering
from tests.support.live import LiveService, serving
from tests.support.otlp import ERROR, UNSET, Collector, Tree, collecting, export_to, recorded
from tests.support.redis_server import own_redis
from tests.support.upstream import NO_HEAD, Answer, ScriptedUpstream, scripted_upstream

pytestmark = pytest.mark.timeout(120)

ONCE_MORE: Mapping[str, Any] = {"retries": {"max_attempts": 2, "base_s": 0.001, "cap_s": 0.001}}
CALLERS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PROMPT, KEY = "canary-prompt-5f1c", "sk-canary-key-0123456789"


def event(text: str | None = None, reason: str | None = None) -> bytes:
    delta = {} if text is None else {"content": text}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-4o-2024",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
    }
    return f"data: {json.dumps(body)}\n\n".encode()


def usage_event() -> bytes:
    usage = {
        "prompt_tokens": 12,
        "completion_tokens": 50,
        "total_tokens": 62,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}
    return f"data: {json.dumps({**body, 'usage': usage})}\n\n".encode()


STREAM = Answer(
    [*(event(f"{PROMPT} {number}") for number in range(50)), event(reason="stop"), usage_event(), b"data: [DONE]\n\n"]
)
PLAIN_ANSWER = Answer.of_json(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-2024",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": PROMPT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
    }
)
UNAVAILABLE = Answer.of_json({"error": {"message": PROMPT}}, status=503)
REJECTED = Answer.of_json({"error": {"message": PROMPT, "type": "invalid_request_error"}}, status=400)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting(monkeypatch) as running:
        yield running
        # Whatever a test was about: no other names, and nothing that anybody wrote.
        for one in running.spans:
            assert any(re.fullmatch(pattern, one.name) for pattern in semconv.SPAN_NAMES), one.name
            assert set(one.attributes) <= semconv.ATTRIBUTES
            assert {name for name, _ in one.events} <= semconv.EVENTS
            assert {name for _, attributes in one.events for name in attributes} <= semconv.ATTRIBUTES
            assert one.schema_url == semconv.SCHEMA_URL
            assert one.resource["service.name"] == "llm-api"
        exported = b"".join(running.requests)
        assert PROMPT.encode() not in exported
        assert KEY.encode() not in exported


def settings_over(*upstreams: ScriptedUpstream, provider: Mapping[str, Any] = PLAIN, **sections: Any) -> Settings:
    names = [f"upstream-{number}" for number in range(1, len(upstreams) + 1)]
    return Settings.model_validate(
        {
            "server": {"metrics_port": 0},
            "embedded": {"store": False},
            "providers": {
                name: {"kind": "openai", "base_url": f"{upstream.base_url}/v1", "keys": [KEY], **provider}
                for name, upstream in zip(names, upstreams, strict=True)
            },
            "models": {
                "gpt": {"routes": [{"provider": name} for name in names]},
                "vectors": {"routes": [{"provider": names[0]}], "modes": ["embeddings"]},
            },
            "readiness": {"mode": "off"},
            "auth": {"enabled": False},
            **sections,
        }
    )


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[tuple[LiveService, httpx.AsyncClient]]:
    """Serve from another thread; once the block is left, all that is to be exported was."""
    server = serving(settings)
    running = await asyncio.to_thread(server.__enter__)
    try:
        async with httpx.AsyncClient(base_url=running.base_url, trust_env=False, timeout=30) as client:
            yield running, client
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)


def asked(attempts: int = 1, path: str = "POST /chat") -> Tree:
    return ("server", path, [("client", "chat gpt", [("client", "POST", [])] * attempts)])


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "gpt", "messages": [{"role": "user", "content": PROMPT}], **more}


async def test_plain_answer_is_a_request_a_call_and_an_attempt(collector: Collector) -> None:
    async with scripted_upstream(PLAIN_ANSWER) as upstream, served(settings_over(upstream)) as (_, client):
        answer = await client.post("/chat", json=chat(max_tokens=9, temperature=0.5))
        assert answer.status_code == 200
        assert "traceparent" not in upstream.calls[0].headers
    assert collector.trees() == [asked()]
    request, call, attempt = collector.one("POST /chat"), collector.one("chat gpt"), collector.one("POST")
    assert answer.headers["traceparent"] == f"00-{request.trace_id}-{request.span_id}-03"
    assert [one.status for one in collector.spans] == [UNSET] * 3
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["http.route"] == "/chat"
    assert request.attributes["llm_api.request.id"] == answer.headers["x-request-id"]
    told = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt",
        "gen_ai.request.stream": False,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "gpt-4o-2024",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 3,
        "llm_api.usage.estimated": False,
        "llm_api.provider": "upstream-1",
    }
    assert call.attributes == told
    assert attempt.attributes.pop("llm_api.queue.wait") >= 0
    assert attempt.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "llm_api.attempt.kind": "first",
        "llm_api.provider": "upstream-1",
        "server.address": "127.0.0.1",
        "server.port": int(upstream.base_url.rpartition(":")[2]),
        "url.full": f"{upstream.base_url}/v1/chat/completions",
    }


async def test_stream_of_fifty_chunks_is_three_spans_and_one_event(collector: Collector) -> None:
    async with scripted_upstream(STREAM) as upstream, served(settings_over(upstream)) as (_, client):
        assert b"[DONE]" in (await client.post("/chat", json=chat(stream=True))).content
    assert collector.trees() == [asked()]
    call = collector.one("chat gpt")
    assert [name for name, _ in call.events] == ["llm_api.first_token"]
    assert call.attributes["gen_ai.request.stream"] is True
    assert call.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert call.attributes["gen_ai.usage.input_tokens"] == 12
    assert call.attributes["gen_ai.usage.output_tokens"] == 50
    assert call.attributes["gen_ai.usage.cache_read.input_tokens"] == 4
    assert 0 <= call.attributes["gen_ai.response.time_to_first_chunk"] <= (call.end_ns - call.start_ns) / 1e9
    assert collector.one("POST /chat").attributes["llm_api.outcome"] == "complete"
    assert [one.status for one in collector.spans] == [UNSET] * 3
    assert all(one.start_ns <= below.start_ns for one in [call] for below in collector.named("POST"))


async def test_caller_s_trace_goes_on_and_its_baggage_does_not(collector: Collector) -> None:
    settings = {"provider": {**PLAIN, "propagate_trace": True}}
    async with scripted_upstream(PLAIN_ANSWER) as upstream, served(settings_over(upstream, **settings)) as (_, client):
        headers = {"traceparent": CALLERS, "tracestate": "vendor=1", "baggage": f"user={PROMPT}"}
        await client.post("/chat", json=chat(), headers=headers)
        sent = upstream.calls[0].headers
    request, attempt = collector.one("POST /chat"), collector.one("POST")
    assert (request.trace_id, request.parent_id) == (CALLERS[3:35], CALLERS[36:52])
    assert sent["traceparent"] == f"00-{CALLERS[3:35]}-{attempt.span_id}-01"
    assert sent["tracestate"] == "vendor=1"
    assert "baggage" not in sent


@pytest.mark.parametrize(
    "traceparent", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff-" + CALLERS[3:]]
)
async def test_traceparent_that_cannot_be_read_begins_a_new_trace(collector: Collector, traceparent: str) -> None:
    async with scripted_upstream(PLAIN_ANSWER) as upstream, served(settings_over(upstream)) as (_, client):
        assert (await client.post("/chat", json=chat(), headers={"traceparent": traceparent})).status_code == 200
    assert collector.trees() == [asked()]
    assert collector.one("POST /chat").parent_id == ""


async def test_caller_that_does_not_sample_is_not_sampled_and_still_has_an_id(collector: Collector) -> None:
    async with scripted_upstream(PLAIN_ANSWER) as upstream, served(settings_over(upstream)) as (_, client):
        answer = await client.post("/chat", json=chat(), headers={"traceparent": CALLERS[:-2] + "00"})
    assert answer.headers["traceparent"].startswith(CALLERS[:36])
    assert answer.headers["traceparent"].endswith("-00")
    assert collector.spans == []


async def test_retry_is_a_second_attempt_below_the_same_call(collector: Collector) -> None:
    async with (
        scripted_upstream(UNAVAILABLE, PLAIN_ANSWER) as upstream,
        served(settings_over(upstream, provider=ONCE_MORE)) as (_, client),
    ):
        assert (await client.post("/chat", json=chat())).status_code == 200
    assert collector.trees() == [asked(2)]
    first, second = collector.named("POST")
    assert (first.status, second.status) == (ERROR, UNSET)
    assert first.attributes["error.type"] == "upstream_unavailable"
    assert first.attributes["http.response.status_code"] == 503
    assert "http.request.resend_count" not in first.attributes
    assert second.attributes["http.request.resend_count"] == 1
    assert second.attributes["llm_api.attempt.kind"] == "retry"
    assert collector.one("chat gpt").status == UNSET


async def test_fallback_is_an_attempt_at_the_other_provider(collector: Collector) -> None:
    async with (
        scripted_upstream(NO_HEAD) as dead,
        scripted_upstream(PLAIN_ANSWER) as alive,
        served(settings_over(dead, alive)) as (_, client),
    ):
        assert (await client.post("/chat", json=chat())).status_code == 200
    assert collector.trees() == [asked(2)]
    first, second = collector.named("POST")
    assert first.attributes["error.type"] == "upstream_unavailable"
    assert "http.response.status_code" not in first.attributes
    assert second.attributes["llm_api.attempt.kind"] == "fallback"
    assert second.attributes["llm_api.provider"] == "upstream-2"
    assert collector.one("chat gpt").attributes["llm_api.provider"] == "upstream-2"


async def test_hedge_is_a_second_attempt_and_the_slow_one_is_cancelled(collector: Collector) -> None:
    hedging = {"hedging": {"enabled": True, "delay_s": 0.05, "budget_ratio": 1}}
    slow = Answer(head_after=asyncio.Event())
    async with (
        scripted_upstream(slow) as first_asked,
        scripted_upstream(STREAM) as quick,
        served(settings_over(first_asked, quick, resilience=hedging)) as (_, client),
    ):
        assert b"[DONE]" in (await client.post("/chat", json=chat(stream=True))).content
    assert collector.trees() == [asked(2)]
    late, hedge = collector.named("POST")
    assert late.attributes["llm_api.outcome"] == "cancelled"
    assert hedge.attributes["llm_api.attempt.kind"] == "hedge"
    assert [one.status for one in collector.spans] == [UNSET] * 4
    assert late.end_ns <= hedge.end_ns


async def test_failure_is_one_at_each_level_and_a_rejection_is_none_of_ours(collector: Collector) -> None:
    async with scripted_upstream(UNAVAILABLE, REJECTED) as upstream, served(settings_over(upstream)) as (_, client):
        assert (await client.post("/chat", json=chat())).status_code == 502
        assert (await client.post("/chat", json=chat())).status_code == 400
        assert (await client.post("/chat", json=chat(model="none"))).status_code == 422
        assert (await client.post("/chat", content=b"{")).status_code == 422
    nothing: Tree = ("server", "POST /chat", [])
    assert collector.trees() == [asked(), asked(), nothing, nothing]
    assert [one.status for one in collector.named("POST /chat")] == [ERROR, UNSET, UNSET, UNSET]
    assert [one.status for one in collector.named("chat gpt")] == [ERROR, ERROR]
    assert collector.named("POST /chat")[0].attributes["error.type"] == "502"
    types = [one.attributes["error.type"] for one in collector.named("chat gpt")]
    assert types == ["upstream_unavailable", "upstream_rejected"]


async def test_stream_that_breaks_off_is_a_failure_though_its_status_was_200(collector: Collector) -> None:
    async with (
        scripted_upstream(Answer([event("a")], ending="cut")) as upstream,
        served(settings_over(upstream)) as (_, client),
    ):
        assert (await client.post("/chat", json=chat(stream=True))).status_code == 200
    assert collector.trees() == [asked()]
    assert [one.status for one in collector.spans] == [ERROR] * 3
    assert collector.one("POST /chat").attributes["error.type"] == "stream_failed"
    assert collector.one("POST").attributes["error.type"] == "upstream_invalid_response"
    assert collector.one("chat gpt").attributes["llm_api.usage.estimated"] is True


async def test_client_that_leaves_is_no_failure(collector: Collector) -> None:
    async with (
        scripted_upstream(Answer([event("a")], ending="hold")) as upstream,
        served(settings_over(upstream)) as (_, client),
    ):
        async with client.stream("POST", "/chat", json=chat(stream=True)) as response:
            await anext(response.aiter_raw())
        await asyncio.wait_for((await upstream.call()).left.wait(), 10)
        plain = asyncio.create_task(client.post("/chat", json=chat()))
        second = await upstream.call(1)
        plain.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await plain
        await asyncio.wait_for(second.left.wait(), 10)
    assert collector.trees() == [asked(), asked()]
    assert [one.status for one in collector.spans] == [UNSET] * 6
    streamed, left = collector.named("POST /chat")
    assert streamed.attributes["llm_api.outcome"] == left.attributes["llm_api.outcome"] == "client_disconnect"
    assert "http.response.status_code" not in left.attributes
    assert {one.attributes["llm_api.outcome"] for one in collector.named("POST")} == {"cancelled"}


async def test_embeddings_are_an_operation_of_their_own(collector: Collector) -> None:
    vectors = {"object": "list", "model": "v", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]}
    answer = Answer.of_json({**vectors, "usage": {"prompt_tokens": 2, "total_tokens": 2}})
    async with scripted_upstream(answer) as upstream, served(settings_over(upstream)) as (_, client):
        assert (await client.post("/v1/embeddings", json={"model": "vectors", "input": PROMPT})).status_code == 200
    assert collector.trees() == [
        ("server", "POST /v1/embeddings", [("client", "embeddings vectors", [("client", "POST", [])])])
    ]
    call = collector.one("embeddings vectors")
    assert call.attributes["gen_ai.operation.name"] == "embeddings"
    assert call.attributes["gen_ai.usage.input_tokens"] == 2
    assert "gen_ai.request.stream" not in call.attributes


async def test_failure_on_a_socket_is_what_it_would_be_over_http(collector: Collector) -> None:
    cut = Answer([event("a")], ending="cut")
    async with scripted_upstream(UNAVAILABLE, REJECTED, cut) as upstream, served(settings_over(upstream)) as (live, _):
        address = live.base_url.replace("http", "ws") + "/ws"
        async with connect(address, proxy=None) as connection:
            for number, model in enumerate(("gpt", "gpt", "gpt", "none")):
                ask = {"type": "generate", "id": str(number), "prompt": PROMPT, "model": model}
                await connection.send(json.dumps(ask))
                while json.loads(await connection.recv())["type"] != "error":
                    pass
    spans = collector.named("WS /ws")
    assert [one.status for one in spans] == [ERROR, UNSET, ERROR, UNSET]
    assert [one.attributes.get("error.type") for one in spans] == ["502", None, "stream_failed", None]


async def test_each_generation_on_a_socket_is_a_request(collector: Collector) -> None:
    async with scripted_upstream(STREAM) as upstream, served(settings_over(upstream)) as (live, _):
        address = live.base_url.replace("http", "ws") + "/ws"
        async with connect(address, proxy=None, additional_headers={"traceparent": CALLERS}) as connection:
            for number in ("1", "2"):
                await connection.send(json.dumps({"type": "generate", "id": number, "prompt": PROMPT, "model": "gpt"}))
                while json.loads(await connection.recv())["type"] != "done":
                    pass
    assert collector.trees() == [asked(path="WS /ws"), asked(path="WS /ws")]
    assert {one.trace_id for one in collector.spans} == {CALLERS[3:35]}
    assert [one.attributes["llm_api.outcome"] for one in collector.named("WS /ws")] == ["complete"] * 2


async def test_paths_that_no_route_has_and_probes_tell_nothing(collector: Collector) -> None:
    async with scripted_upstream(PLAIN_ANSWER) as upstream, served(settings_over(upstream)) as (_, client):
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200
        assert "traceparent" not in (await client.get("/health")).headers
        assert (await client.get(f"/{PROMPT}", params={"key": KEY})).status_code == 404
        assert (await client.get("/stream", params={"prompt": PROMPT, "key": KEY})).status_code == 401
        assert (await client.request("PROPFIND", "/pot")).status_code == 404
    assert [one.name for one in collector.spans] == ["GET", "GET /stream", "HTTP"]
    assert collector.one("HTTP").attributes["http.request.method"] == "_OTHER"


async def ended(client: httpx.AsyncClient, job_id: str) -> str:
    async with asyncio.timeout(60):
        while True:
            state = (await client.get(f"/generate/async/{job_id}")).json()
            if state["status"] != "pending":
                return str(state["status"])
            await asyncio.sleep(0.05)


def on_redis(url: str) -> dict[str, Any]:
    return {"redis": RedisSettings(url=SecretStr(url), timeout_s=1.0)}


@pytest.mark.parametrize("shared", [False, True], ids=["memory", "redis"])
async def test_job_is_accepted_in_one_trace_and_run_in_others_that_are_linked(
    collector: Collector,
    shared: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    throttled = Answer.of_json({"error": {"message": PROMPT}}, status=429, headers={"retry-after": "0.1"})
    async with scripted_upstream(throttled, STREAM) as upstream:
        with own_redis() if shared else contextlib.nullcontext() as store:
            sections = {} if store is None else on_redis(store.url)
            async with served(settings_over(upstream, **sections)) as (_, client):
                accepted = await client.post("/generate/async", json={"prompt": PROMPT, "model": "gpt"})
                job_id = accepted.json()["job_id"]
                assert await ended(client, job_id) == "complete"
    looks: Tree = ("server", "GET /generate/async/{job_id}", [])
    run: Tree = ("consumer", "process jobs", [("client", "chat gpt", [("client", "POST", [])])])
    assert [tree for tree in collector.trees() if tree != looks] == [
        ("server", "POST /generate/async", [("producer", "send jobs", [])]),
        run,
        run,
    ]
    sent = collector.one("send jobs")
    first, second = collector.named("process jobs")
    assert len({sent.trace_id, first.trace_id, second.trace_id}) == 3
    assert first.links == [(sent.trace_id, sent.span_id)]
    assert second.links == [(sent.trace_id, sent.span_id), (first.trace_id, first.span_id)]
    assert [one.attributes["llm_api.outcome"] for one in (first, second)] == ["put_back", "complete"]
    assert [one.attributes["llm_api.job.run"] for one in (first, second)] == [1, 2]
    assert {one.attributes["messaging.message.id"] for one in (sent, first, second)} == {job_id}
    assert [one.status for one in (sent, first, second)] == [UNSET] * 3


async def test_lines_of_a_batch_are_linked_to_its_acceptance(collector: Collector) -> None:
    async with scripted_upstream(PLAIN_ANSWER) as upstream:
        with own_redis() as store:
            async with served(settings_over(upstream, **on_redis(store.url))) as (_, client):
                lines = [
                    {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": chat()}
                    for name in ("a", "b")
                ]
                content = "\n".join(map(json.dumps, lines)).encode()
                file = await client.post("/v1/files", files={"file": ("a.jsonl", content)}, data={"purpose": "batch"})
                asks = {"input_file_id": file.json()["id"], "endpoint": "/v1/chat/completions"}
                batch = await client.post("/v1/batches", json={**asks, "completion_window": "24h"})
                assert batch.status_code == 200, batch.text
                async with asyncio.timeout(60):
                    batch_url = f"/v1/batches/{batch.json()['id']}"
                    while (await client.get(batch_url)).json()["status"] != "completed":  # noqa: ASYNC110 - a caller does
                        await asyncio.sleep(0.05)
    sent = collector.one("send batches")
    runs = collector.named("process jobs")
    assert [run.links for run in runs] == [[(sent.trace_id, sent.span_id)]] * 2
    assert len({run.trace_id for run in runs}) == 2
    assert sent.attributes["messaging.message.id"] == batch.json()["id"]


async def test_trace_id_stands_in_the_access_log(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "service.access"):
        async with scripted_upstream(PLAIN_ANSWER) as upstream, served(settings_over(upstream)) as (_, client):
            answer = await client.post("/chat", json=chat())
    (line,) = [record for record in caplog.records if record.name == "service.access"]
    assert vars(line)["trace_id"] == answer.headers["traceparent"][3:35]


async def test_measured_times_of_a_plain_answer_name_its_trace(collector: Collector) -> None:
    async with scripted_upstream(PLAIN_ANSWER) as upstream, served(settings_over(upstream)) as (running, client):
        answer = await client.post("/chat", json=chat())
        unsampled = await client.post("/chat", json=chat(), headers={"traceparent": CALLERS[:-2] + "00"})
        registry = running.resources.metrics.registry
    exposed = generate_latest(registry).decode()  # type: ignore[no-untyped-call]
    trace_id = collector.one("POST /chat").trace_id
    assert answer.headers["traceparent"][3:35] == trace_id
    named = {line.partition("{")[0] for line in exposed.splitlines() if trace_id in line}
    assert named == {"llm_api_http_request_duration_seconds_bucket", "llm_api_overhead_seconds_bucket"}
    assert unsampled.headers["traceparent"][3:35] not in exposed


async def took(client: httpx.AsyncClient, count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        assert (await client.post("/chat", json=chat())).status_code == 200
        times.append(time.perf_counter() - began)
    return times


@pytest.mark.parametrize("outage", ["refuses", "is silent"])
async def test_collector_that_is_away_costs_requests_nothing(
    outage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    count = 200
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    async with scripted_upstream(PLAIN_ANSWER) as upstream:
        async with served(settings_over(upstream)) as (live, client):
            untraced = await took(client, count)
            assert live.resources.tracing is None
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            if outage == "refuses":
                silent.close()
            export_to(f"http://127.0.0.1:{port}", monkeypatch)
            monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
            with caplog.at_level(logging.INFO):
                async with served(settings_over(upstream)) as (live, client):
                    traced = await took(client, count)
                    registry = live.resources.metrics.registry
                    stopping_at = time.monotonic()
    stopped_in_s = time.monotonic() - stopping_at
    assert len(traced) == len(untraced) == count
    assert statistics.median(traced) < 3 * statistics.median(untraced) + 0.02
    dropped = {
        outcome: registry.get_sample_value("llm_api_trace_spans_total", {"outcome": outcome}) or 0
        for outcome in ("exported", "queue_full", "export_failed", "shutdown")
    }
    assert dropped["exported"] == 0
    assert dropped["queue_full"] > 0
    in_the_thread = 64 if outage == "is silent" else 0
    assert 3 * count - in_the_thread <= sum(dropped.values()) <= 3 * count
    lines = [record for record in caplog.records if "trace" in record.name or "telemetry" in record.name]
    assert len(lines) <= 1
    assert stopped_in_s < 15


async def test_limits_are_an_event_of_the_request_and_who_is_refused_asks_no_model(collector: Collector) -> None:
    keys = {"alice": {"key": KEY, "limits": {"requests_per_minute": 1, "request_burst": 1}}}
    sections = {"auth": {"enabled": True, "keys": keys}}
    async with scripted_upstream(PLAIN_ANSWER) as upstream, served(settings_over(upstream, **sections)) as (_, client):
        headers = {"authorization": f"Bearer {KEY}"}
        for status in (200, 429):
            assert (await client.post("/chat", json=chat(), headers=headers)).status_code == status
    assert collector.trees() == [asked(), ("server", "POST /chat", [])]
    told = [attributes for one in collector.named("POST /chat") for name, attributes in one.events]
    assert [attributes["llm_api.limits.decision"] for attributes in told] == ["admitted", "refused"]
    assert all(attributes["llm_api.limits.wait"] >= 0 for attributes in told)
    assert [one.status for one in collector.spans] == [UNSET] * 4


class OverHttp(BaseHTTPRequestHandler):
    """Takes traces by HTTP."""

    bodies: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        self.bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()


async def test_traces_go_by_http_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(OverHttp) as address:
        export_to(address, monkeypatch)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        async with scripted_upstream(PLAIN_ANSWER) as upstream, served(settings_over(upstream)) as (_, client):
            assert (await client.post("/chat", json=chat())).status_code == 200
    assert {path for path, _ in OverHttp.bodies} == {"/v1/traces"}
    requests = [ExportTraceServiceRequest.FromString(body) for _, body in OverHttp.bodies]
    assert sorted(one.name for request in requests for one in recorded(request)) == ["POST", "POST /chat", "chat gpt"]


async def test_what_ends_in_the_drain_is_exported_before_the_process_ends(collector: Collector, tmp_path: Path) -> None:
    gate = asyncio.Event()
    last = [event(reason="stop"), usage_event(), b"data: [DONE]\n\n"]
    async with scripted_upstream(Answer([event("a"), gate, *last])) as upstream:
        settings = settings_over(upstream, drain={"delay_s": 0, "timeout_s": 20})
        config = tmp_path / "config.yaml"
        given = settings.model_dump(mode="json", exclude_unset=True)
        given["providers"]["upstream-1"]["keys"] = [KEY]
        config.write_text(yaml.safe_dump({**given, "server": {"metrics_port": 0, "port": 0}}))
        with running("serve", settings={"LLM_API_CONFIG": str(config)}) as command:
            address = await asyncio.to_thread(command.address, "API")
            async with (
                httpx.AsyncClient(base_url=address, trust_env=False, timeout=30) as client,
                client.stream("POST", "/chat", json=chat(stream=True)) as response,
            ):
                await upstream.call()
                stopping = asyncio.create_task(asyncio.to_thread(command.stop, signal.SIGTERM))
                await asyncio.sleep(0.2)
                gate.set()
                assert b"[DONE]" in await response.aread()
            await stopping
    assert collector.trees() == [asked()]
    assert [one.status for one in collector.spans] == [UNSET] * 3


async def test_defect_is_a_failure_whose_words_stand_in_the_log_alone(
    collector: Collector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        raise RuntimeError(PROMPT)

    monkeypatch.setattr(GenerationService, "complete", fails)
    async with scripted_upstream(PLAIN_ANSWER) as upstream, served(settings_over(upstream)) as (_, client):
        answer = await client.post("/chat", json=chat())
    assert answer.status_code == 500
    assert collector.one("POST /chat").status == ERROR
    (line,) = [record for record in caplog.records if record.getMessage() == "unhandled error"]
    assert vars(line)["trace_id"] == answer.headers["traceparent"][3:35]
    assert vars(line)["request_id"] == answer.headers["x-request-id"]
