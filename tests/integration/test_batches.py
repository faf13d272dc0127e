"""Batches, by the openai SDK, over a real store and the simulator."""

import json
import time
from collections.abc import Iterator
from typing import Any, Final

import httpx
import openai
import pytest
from pydantic import SecretStr
from redis import Redis

from service.config import RedisSettings
from tests.support.live import LiveService, serving, settings_over, simulating
from tests.support.redis_server import own_redis

pytestmark = pytest.mark.timeout(120)

PATIENCE_S = 60.0
ALICE, BOB = "alice-key-0123456789", "bob-key-0123456789"
ENDPOINT: Final = "/v1/chat/completions"
PARTS = {"content-type": "multipart/form-data; boundary=x"}


@pytest.fixture(scope="module")
def store() -> Iterator[Redis]:
    with own_redis() as server, Redis.from_url(server.url) as client:
        yield client


@pytest.fixture(scope="module")
def service(store: Redis) -> Iterator[LiveService]:
    path = store.connection_pool.connection_kwargs["path"]
    with simulating("--ttft-ms", "20", "--gap-ms", "1") as upstream:
        settings = settings_over(
            upstream,
            redis=RedisSettings(url=SecretStr(f"unix://{path}"), timeout_s=1.0),
            auth={"enabled": True, "keys": {"alice": {"key": ALICE}, "bob": {"key": BOB}}},
            jobs={"concurrency": 16, "batch_file_bytes_max": 2_000_000},
        )
        with serving(settings) as running:
            yield running


@pytest.fixture
def alice(service: LiveService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.base_url}/v1", api_key=ALICE, max_retries=0) as client:
        yield client


@pytest.fixture
def bob(service: LiveService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.base_url}/v1", api_key=BOB, max_retries=0) as client:
        yield client


def line(number: int, **changed: Any) -> dict[str, Any]:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Line {number}"}], "max_tokens": 5}
    return {"custom_id": f"line-{number}", "method": "POST", "url": ENDPOINT, "body": body, **changed}


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def nested(depth: int) -> bytes:
    metadata = b'{"metadata": ' + b'{"a":' * depth + b"1" + b"}" * depth + b","
    return jsonl(line(0)).replace(b'"body": {', b'"body": ' + metadata)


def uploaded(client: openai.OpenAI, *lines: dict[str, Any]) -> str:
    return client.files.create(file=("requests.jsonl", jsonl(*lines)), purpose="batch").id


def begun(client: openai.OpenAI, file_id: str) -> str:
    return client.batches.create(
        input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", metadata={"team": "a"}
    ).id


def over(client: openai.OpenAI, batch_id: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while (batch := client.batches.retrieve(batch_id)).status == "in_progress":
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
    return batch


def done_lines(client: openai.OpenAI, batch_id: str) -> int:
    counts = client.batches.retrieve(batch_id).request_counts
    assert counts is not None
    return counts.completed


def results(client: openai.OpenAI, file_id: str) -> list[dict[str, Any]]:
    return [json.loads(one) for one in client.files.content(file_id).text.splitlines()]


def test_a_batch_is_answered_line_by_line(alice: openai.OpenAI) -> None:
    count = 120
    file = alice.files.create(
        file=("requests.jsonl", jsonl(*(line(number) for number in range(count)))), purpose="batch"
    )
    assert (file.object, file.purpose, file.filename) == ("file", "batch", "requests.jsonl")
    batch = over(alice, begun(alice, file.id))
    assert batch.status == "completed"
    assert batch.metadata == {"team": "a"}
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (
        count,
        count,
        0,
    )
    assert batch.error_file_id is None
    assert batch.completed_at >= batch.created_at
    found = results(alice, batch.output_file_id)
    assert [one["custom_id"] for one in found] == [f"line-{number}" for number in range(count)]
    assert all(one["response"]["status_code"] == 200 and one["error"] is None for one in found)
    body = found[0]["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"]
    assert len({one["id"] for one in found}) == count


def test_lines_that_fail_are_told_apart(alice: openai.OpenAI) -> None:
    wrong = line(1)
    wrong["body"]["model"] = "no-such-model"
    batch = over(alice, begun(alice, uploaded(alice, line(0), wrong, line(2))))
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 2, 1)
    assert [one["custom_id"] for one in results(alice, batch.output_file_id)] == ["line-0", "line-2"]
    (failed,) = results(alice, batch.error_file_id)
    assert (failed["custom_id"], failed["response"]) == ("line-1", None)
    assert failed["error"]["code"] == "model_not_found"


def test_the_requests_can_be_read_back_and_forgotten(alice: openai.OpenAI) -> None:
    lines = [line(number) for number in range(3)]
    file_id = uploaded(alice, *lines)
    assert results(alice, file_id) == lines
    assert alice.files.retrieve(file_id).id == file_id
    assert alice.files.delete(file_id).deleted
    with pytest.raises(openai.NotFoundError):
        alice.files.retrieve(file_id)


def test_a_batch_can_be_cancelled_and_what_was_done_stays(alice: openai.OpenAI) -> None:
    lines = [line(number) for number in range(200)]
    for one in lines:
        one["body"]["model"] = "sim;ttft_ms=300"
    batch_id = begun(alice, uploaded(alice, *lines))
    deadline = time.monotonic() + PATIENCE_S
    while not done_lines(alice, batch_id):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    cancelled = alice.batches.cancel(batch_id)
    assert cancelled.status == "cancelled"
    time.sleep(1.5)
    batch, done = alice.batches.retrieve(batch_id), done_lines(alice, batch_id)
    assert 0 < done < 200
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    answered, rest = results(alice, batch.output_file_id), results(alice, batch.error_file_id)
    assert len(answered) == done
    assert {one["error"]["code"] for one in rest} == {"batch_cancelled"}
    assert {one["custom_id"] for one in (*answered, *rest)} == {f"line-{number}" for number in range(200)}
    assert alice.batches.cancel(batch_id).status == "cancelled"


def test_a_batch_with_a_key_is_begun_once(alice: openai.OpenAI) -> None:
    file_id = uploaded(alice, line(0))
    asked: dict[str, Any] = {
        "endpoint": ENDPOINT,
        "completion_window": "24h",
        "extra_headers": {"Idempotency-Key": "1"},
    }
    first = alice.batches.create(input_file_id=file_id, **asked)
    assert over(alice, first.id).status == "completed"
    with pytest.raises(openai.BadRequestError) as refused:
        alice.batches.create(input_file_id=uploaded(alice, line(0)), **asked)
    assert refused.value.code == "idempotency_mismatch"
    alice.files.delete(file_id)
    again = alice.batches.create(input_file_id=file_id, **asked)
    assert (again.id, again.status) == (first.id, "completed")


def test_a_result_that_was_lost_has_a_line_all_the_same(alice: openai.OpenAI, store: Redis) -> None:
    batch = over(alice, begun(alice, uploaded(alice, line(0), line(1))))
    (key,) = store.scan_iter(f"*results:{batch.id}")
    store.hdel(key, "1")
    lost, kept = results(alice, batch.output_file_id)
    assert (lost["custom_id"], lost["error"]["code"], kept["custom_id"]) == ("line-0", "result_lost", "line-1")
    assert batch.error_file_id is None


def test_what_is_anothers_looks_like_nothing(alice: openai.OpenAI, bob: openai.OpenAI) -> None:
    file_id = uploaded(alice, line(0))
    batch = over(alice, begun(alice, file_id))
    for look in (
        lambda: bob.files.retrieve(file_id),
        lambda: bob.files.content(file_id),
        lambda: bob.files.delete(file_id),
        lambda: bob.batches.retrieve(batch.id),
        lambda: bob.batches.cancel(batch.id),
        lambda: bob.files.content(batch.output_file_id),
        lambda: begun(bob, file_id),
    ):
        with pytest.raises(openai.NotFoundError):
            look()
    assert bob.batches.list().data == []


def test_batches_are_listed_the_newest_first(service: LiveService) -> None:
    with openai.OpenAI(base_url=f"{service.base_url}/v1", api_key=ALICE, max_retries=0) as client:
        known = {batch.id for batch in client.batches.list(limit=100)}
        ids = [begun(client, uploaded(client, line(0))) for _ in range(3)]
        listed = [batch.id for batch in client.batches.list(limit=2) if batch.id not in known]
        assert listed == ids[::-1]


@pytest.mark.parametrize(
    ("content", "named", "why"),
    [
        (b"", "file", "no lines"),
        (b"\n\n", "file", "no lines"),
        (b"nonsense\n", "file.1", "not JSON"),
        (b"[]\n", "file.1", "JSON object"),
        (nested(100_000), "file.1", "nested"),
        (nested(700), "file.1", "recursion"),
        (nested(300), "file.1", "recursion"),
        (jsonl(line(0)).replace(b'"max_tokens": 5', b'"seed": 1e999'), "file.1", "body: not JSON"),
        (b'{"custom_id": "\xff"}\n', "file.1", "not JSON"),
        (b"\n" * 50_001, "file", "empty lines"),
        (jsonl(line(0), line(0)), "file.2", "earlier line"),
        (jsonl(line(0, custom_id="")), "file.1", "custom_id"),
        (jsonl(line(0, method="GET")), "file.1", "POST"),
        (jsonl(line(0, url="/v1/embeddings")), "file.1", ENDPOINT),
        (jsonl(line(0, body=[])), "file.1", "body"),
        (jsonl(line(0), line(1, body={"model": "gpt-4o-mini"})), "file.2", "messages"),
        (jsonl(line(0, body={**line(0)["body"], "stream": True})), "file.1", "stream"),
    ],
)
def test_wrong_lines_are_refused_and_named(alice: openai.OpenAI, content: bytes, named: str, why: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        alice.files.create(file=("requests.jsonl", content), purpose="batch")
    assert refused.value.param == named
    assert why in refused.value.message


def test_a_file_for_another_purpose_is_refused(alice: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="purpose"):
        alice.files.create(file=("requests.jsonl", jsonl(line(0))), purpose="assistants")


def test_a_file_that_is_too_large_is_refused(alice: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        alice.files.create(file=("requests.jsonl", b"x" * 2_000_001), purpose="batch")
    assert refused.value.status_code == 413


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "application/json"}, b"{}"),
        ({"content-type": "multipart/form-data"}, b""),
        ({"content-type": "multipart/form-data; boundary=x"}, b"no parts at all"),
        ({"content-type": f"multipart/form-data; boundary={'x' * 300}"}, b"--x"),
        (
            {"content-type": "multipart/form-data; boundary=x"},
            b"--x\r\nContent-Disposition: form-data; name=purpose\r\n\r\n",
        ),
    ],
)
def test_what_is_no_upload_is_refused(service: LiveService, headers: dict[str, str], body: bytes) -> None:
    answer = httpx.post(
        f"{service.base_url}/v1/files", headers={"authorization": f"Bearer {ALICE}", **headers}, content=body
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "file"


def test_fields_may_come_before_and_after_the_file(service: LiveService) -> None:
    parts: dict[str, Any] = {"purpose": (None, "batch"), "file": ("a.jsonl", jsonl(line(0)).rstrip())}
    for order in (["purpose", "file"], ["file", "purpose"]):
        answer = httpx.post(
            f"{service.base_url}/v1/files",
            headers={"authorization": f"Bearer {ALICE}"},
            files=[(name, parts[name]) for name in order],
        )
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"endpoint": "/v1/embeddings"}, "endpoint"), ({"completion_window": "1h"}, "completion_window")],
)
def test_a_batch_that_cannot_be_done_is_refused(alice: openai.OpenAI, changed: dict[str, Any], named: str) -> None:
    given = {"input_file_id": uploaded(alice, line(0)), "endpoint": ENDPOINT, "completion_window": "24h", **changed}
    with pytest.raises(openai.BadRequestError) as refused:
        alice.batches.create(**given)
    assert refused.value.param == named


def test_interactive_requests_go_first(alice: openai.OpenAI) -> None:
    batch_id = begun(alice, uploaded(alice, *(line(number) for number in range(100))))
    answer = alice.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}], max_tokens=5
    )
    assert answer.choices[0].message.content
    assert over(alice, batch_id).status == "completed"
