"""Secrets and prompts, planted wherever they may be put, and looked for wherever they could come out."""

import base64
import contextlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from websockets.sync.client import connect

from service.auth.keys import hash_key
from tests.support.command import free_port, running
from tests.support.live import simulating
from tests.support.redis_server import own_redis

pytestmark = pytest.mark.timeout(180)

MARK = "canary"
"""In every secret and prompt, and in nothing else."""


class Canaries:
    """Gives texts that are found again."""

    def __init__(self) -> None:
        self.count = 0

    def text(self) -> str:
        self.count += 1
        return f"{MARK}{self.count:03d}"

    def key(self) -> str:
        return f"{self.text()}-0123456789abcdef"


def bodies(canary: Canaries) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield paths and bodies with prompts in every place that a body has for them, right and wrong ones."""
    chat, messages = "/v1/chat/completions", "/v1/messages"

    def said(**more: Any) -> dict[str, Any]:
        return {"model": "sim", "max_tokens": 4, "messages": [{"role": "user", "content": canary.text()}], **more}

    yield "/generate", {"prompt": canary.text(), "model": "sim", "max_tokens": 3}
    yield "/generate", {"prompt": canary.text(), "model": "sim", "max_tokens": canary.text()}
    yield "/generate", {"prompt": canary.text(), "model": "sim;fault=500"}
    yield "/generate", {"prompt": [canary.text()], "model": "sim"}
    yield "/generate", {"prompt": canary.text(), "promt": canary.text()}
    yield "/chat", said()
    yield "/chat", said(temperature=canary.text())
    yield "/generate/async", {"prompt": canary.text(), "model": "sim", "max_tokens": 3}
    yield "/generate/async", {"prompt": canary.text(), "model": "sim;fault=500"}
    yield chat, said()
    yield chat, said(stream=True)
    yield chat, said(stream=True, model="sim;fault=cut")
    yield chat, said(model="sim;fault=429")
    yield chat, said(model="sim;fault=malformed")
    yield chat, said(stop=[canary.text()])
    yield chat, said(metadata={canary.text(): canary.text()})
    yield chat, said(logit_bias={canary.text(): 1})
    schema = {"name": "x", "schema": {"title": canary.text()}}
    yield chat, said(response_format={"type": "json_schema", "json_schema": schema})
    tool = {"name": "look", "description": canary.text(), "parameters": {"type": "object", "title": canary.text()}}
    yield chat, said(tools=[{"type": "function", "function": tool}])
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": canary.text()}}
    yield chat, said(messages=[{"role": "assistant", "content": canary.text(), "tool_calls": [call]}])
    yield chat, said(messages=[{"role": "tool", "tool_call_id": "1", "content": canary.text()}])
    yield chat, said(messages=[{"role": role, "content": canary.text()} for role in ("system", "user", "assistant")])
    image = {"type": "image_url", "image_url": {"url": f"https://example.com/{canary.text()}"}}
    yield chat, said(messages=[{"role": "user", "content": [{"type": "text", "text": canary.text()}, image]}])
    yield chat, said(messages=[{"role": canary.text(), "content": canary.text()}])
    yield chat, said(messages=canary.text())
    yield messages, said(system=canary.text())
    yield messages, said(system=[{"type": "text", "text": canary.text()}], stream=True)
    yield "/v1/embeddings", {"model": "sim", "input": [canary.text(), canary.text()]}
    yield "/v1/embeddings", {"model": "sim", "input": {canary.text(): canary.text()}}


def test_no_key_and_no_prompt_comes_out_where_it_does_not_belong(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    canary = Canaries()
    caller, provider_key, other = canary.key(), canary.key(), canary.key()
    webhook = "whsec_" + base64.b64encode(canary.key().encode()).decode()
    key_file = tmp_path / "key"
    key_file.write_text(canary.key())
    with own_redis() as store, simulating("--ttft-ms", "1", "--gap-ms", "0") as simulator:
        api, metrics = str(free_port()), str(free_port())
        settings = {
            "LLM_API_PROVIDERS__SIM__KIND": "openai",
            "LLM_API_PROVIDERS__SIM__BASE_URL": f"{simulator}/v1",
            "LLM_API_PROVIDERS__SIM__KEYS": provider_key,
            "LLM_API_PROVIDERS__SIM__KEY_FILES": str(key_file),
            "LLM_API_MODELS": json.dumps({"sim*": {"routes": [{"provider": "sim"}]}}),
            "LLM_API_AUTH__KEYS": f"alice:{hash_key(caller)},bob:{other}",
            "LLM_API_REDIS__URL": store.url,
            "LLM_API_WEBHOOKS__SECRETS": webhook,
            "LLM_API_USAGE__DIR": str(tmp_path / "usage"),
            "LLM_API_USAGE__EXPORT_DIR": str(tmp_path / "export"),
        }
        with running("serve", "--port", api, "--metrics-port", metrics, settings=settings) as service:
            address = service.address("API")
            headers = {"authorization": f"Bearer {caller}"}
            answers = list(_ask(address, headers, canary))
            shown = httpx.get(f"http://127.0.0.1:{metrics}/metrics").text
            time.sleep(2.5)  # records are drained each second
            assert service.stop(signal.SIGTERM)[0] == 0
        log = capfd.readouterr().err
        kept = _dump(store.url)
    assert canary.count >= 60
    errors = [answer.text for answer in answers if answer.status_code >= 400]
    assert len(errors) >= 15
    exported = "".join(path.read_text() for path in (tmp_path / "export").glob("*.jsonl"))
    assert log.count("service.access: request") >= len(answers) > 35
    assert "llm_api_http_requests_total" in shown
    assert exported
    places = {"log": log, "metrics": shown, "records": exported, "store": kept, "errors": "".join(errors)}
    assert {name: _around(text) for name, text in places.items() if MARK in text} == {}


def test_texts_are_in_the_log_of_the_key_that_wants_them_and_of_no_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secrets = {"talker": "talker-0123456789abcdef", "other": "other-0123456789abcdef"}
    keys = {name: {"key": secret, "log_content": name == "talker"} for name, secret in secrets.items()}
    with simulating("--ttft-ms", "1", "--gap-ms", "0") as simulator:
        settings = {
            "LLM_API_PROFILE": "production",
            "LLM_API_PROVIDERS__SIM__KIND": "openai",
            "LLM_API_PROVIDERS__SIM__BASE_URL": f"{simulator}/v1",
            "LLM_API_PROVIDERS__SIM__KEYS": "sk-upstream-0123456789",
            "LLM_API_MODELS": json.dumps({"sim*": {"routes": [{"provider": "sim"}]}}),
            "LLM_API_AUTH__KEYS": json.dumps(keys),
            "LLM_API_USAGE__DIR": str(tmp_path / "usage"),
        }
        with running("serve", "--port", "0", "--metrics-port", "0", settings=settings) as service:
            with httpx.Client(base_url=service.address("API"), timeout=30) as http:
                texts = {}
                for name, secret in secrets.items():
                    headers = {"authorization": f"Bearer {secret}"}
                    for stream in (False, True):
                        said = f"{MARK} of {name}, streamed: {stream}\n\x1b[0m\u2028end"
                        body = {"model": "sim", "max_tokens": 9, "messages": [{"role": "user", "content": said}]}
                        answer = http.post("/v1/chat/completions", json={**body, "stream": stream}, headers=headers)
                        texts[name, stream] = said, answer
            assert service.stop(signal.SIGTERM)[0] == 0
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"request"' in line]
    found: dict[str, list[tuple[Any, Any]]] = {name: [] for name in secrets}
    for line in lines:
        if "principal" in line:
            found[line["principal"]].append((line.get("prompt"), line.get("answer")))
    assert found["other"] == [(None, None)] * 2
    plain, streamed = (texts["talker", stream] for stream in (False, True))
    whole = plain[1].json()["choices"][0]["message"]["content"]
    events = [json.loads(one[6:]) for one in streamed[1].text.split("\n\n") if one.startswith("data: {")]
    pieces = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    assert whole
    assert pieces
    assert found["talker"] == [
        ([{"role": "user", "text": plain[0]}], whole),
        ([{"role": "user", "text": streamed[0]}], pieces),
    ]
    kept = "".join(path.read_text() for path in (tmp_path / "usage").iterdir() if path.is_file())
    assert kept
    assert MARK not in kept


def _ask(address: str, headers: dict[str, str], canary: Canaries) -> Iterator[httpx.Response]:
    with httpx.Client(base_url=address, timeout=30) as http:
        for path, body in bodies(canary):
            yield http.post(path, json=body, headers=headers)
        yield http.post("/generate", content=f'{{"prompt": "{canary.text()}', headers=headers)
        yield http.post("/generate", json={"prompt": "x"}, headers={"authorization": f"Bearer {canary.key()}"})
        yield http.post("/generate", json={"prompt": "x"}, headers={"authorization": canary.key()})
        yield http.post("/generate", json={"prompt": "x"}, headers={"x-api-key": canary.key()})
        yield http.get("/stream", params={"prompt": canary.text(), "model": "sim"}, headers=headers)
        yield http.get("/stream", params={"prompt": canary.text(), "api_key": canary.key()})
        yield http.get(f"/{canary.text()}/{canary.text()}")
        yield http.get("/v1/models", headers={**headers, "x-request-id": f"<{canary.text()}>"})
        yield http.get("/v1/models", headers={**headers, "user-agent": canary.text(), "cookie": canary.text()})
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"prompt": canary.text()}}
        yield http.post("/v1/files", files={"file": json.dumps(line)}, data={"purpose": "batch"}, headers=headers)
        ticket = http.post("/tickets", headers=headers).json()["ticket"]
        with contextlib.suppress(Exception), connect(f"{address.replace('http', 'ws')}/ws?ticket={ticket}") as socket:
            socket.send(json.dumps({"type": "generate", "id": "1", "prompt": canary.text(), "model": "sim"}))
            socket.send(json.dumps({"type": canary.text(), "id": "2"}))
            socket.send(canary.text())
            for _ in range(6):
                socket.recv(timeout=1)


def _dump(url: str) -> str:
    """Return all that the store holds, but for what was asked to be done and is not yet, and answers."""
    client: Any = redis.Redis.from_url(url)
    texts: list[bytes] = []
    for key in client.scan_iter():
        texts.append(key)
        match client.type(key):
            case b"string":
                texts.append(client.get(key))
            case b"hash":
                texts += [value for name, value in client.hgetall(key).items() if name not in (b"body", b"answer")]
            case b"stream":
                texts += [value for _, fields in client.xrange(key) for value in fields.values()]
            case b"zset":
                texts += client.zrange(key, 0, -1)
    return b"\n".join(texts).decode("utf-8", "replace")


def _around(text: str) -> str:
    at = text.index(MARK)
    return text[max(0, at - 100) : at + 60]
