"""Webhooks against receivers that work, fail, hang, redirect, are gone, or lie where nobody may reach through us."""

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from standardwebhooks import Webhook

from service.api.job_state import job_event
from service.config import JobSettings
from service.config.webhook_secret import secret_bytes
from service.domain.clock import ManualClock, SystemClock
from service.domain.job import Job, JobOutcome, JobStatus
from service.storage.memory_jobs import MemoryJobStore
from service.telemetry.metrics import Metrics
from service.webhooks.sender import Sent, WebhookSender
from service.worker import webhooks
from service.worker.webhooks import WebhookDelivery
from tests.support.fake_app import FakeApp, fake_app, until

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
LOOPBACK = (ip_network("127.0.0.0/8"),)
ANSWER = (
    b'{"text":"Hello","model":"m","prompt_tokens":1,"completion_tokens":2,"finish_reason":"stop","request_id":"job_1"}'
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Receiver:
    """A caller's server."""

    def __init__(self) -> None:
        self.url = ""
        self.messages: list[tuple[bytes, dict[str, str]]] = []
        self.answer: Handler = self.ok

    async def ok(self, _: web.Request) -> web.StreamResponse:
        return web.Response(status=204)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.messages.append((await request.read(), dict(request.headers)))
        return await self.answer(request)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield made
    await runner.cleanup()


@asynccontextmanager
async def sender(**changed: Any) -> AsyncIterator[WebhookSender]:
    options = {
        "secrets": lambda: [secret_bytes(SECRET)],
        "allow_http": True,
        "allow_networks": LOOPBACK,
        "timeout_s": 0.3,
        **changed,
    }
    async with WebhookSender(clock=SystemClock(), **options).opened() as made:
        yield made


async def test_a_message_arrives_signed(receiver: Receiver) -> None:
    async with sender() as ours:
        assert (await ours.send(receiver.url, "msg_1", b'{"type":"job.complete"}'))[0] is Sent.DELIVERED
    ((body, headers),) = receiver.messages
    assert Webhook(SECRET).verify(body, {name.lower(): value for name, value in headers.items()}) == {
        "type": "job.complete"
    }
    assert headers["Content-Type"] == "application/json"


async def test_without_a_secret_that_can_be_read_nothing_is_sent(receiver: Receiver) -> None:
    async with sender(secrets=list) as ours:
        assert (await ours.send(receiver.url, "msg_1", b"{}"))[0] is Sent.FAILED
    assert receiver.messages == []


async def test_what_a_receiver_sets_is_not_told_to_another(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    async def set_cookie(_: web.Request) -> web.StreamResponse:
        return web.Response(headers={"set-cookie": "known=1; Domain=example.com"})

    def lookup(host: str, port: int, *_: Any) -> list[Any]:
        del host
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    receiver.answer = set_cookie
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    port = receiver.url.rpartition(":")[2]
    async with sender() as ours:
        for name in ("a.example.com", "b.example.com"):
            assert (await ours.send(f"http://{name}:{port}", "msg_1", b"{}"))[0] is Sent.DELIVERED
    assert ["Cookie" in headers for _, headers in receiver.messages] == [False, False]


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example", "%6c", "exa mple.org", "xn--฀.example"])
async def test_a_name_that_cannot_be_is_refused(host: str) -> None:
    async with sender() as ours:
        assert (await ours.send(f"https://{host}/", "msg_1", b"{}"))[0] is Sent.REFUSED


async def test_slow_look_ups_delay_no_others_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, real = threading.Event(), socket.getaddrinfo

    def lookup(host: str, *place: Any) -> list[Any]:
        if host.endswith(".example.com"):
            answer.wait()
        return list(real(host, *place))

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    loop = asyncio.get_running_loop()
    try:
        async with sender() as ours, asyncio.timeout(10):
            sent = await asyncio.gather(*(ours.send(f"https://a{n}.example.com", "msg_1", b"{}") for n in range(40)))
            assert {outcome for outcome, _ in sent} == {Sent.FAILED}
            assert await loop.getaddrinfo("127.0.0.1", 80)
            await loop.shutdown_default_executor()
    finally:
        answer.set()


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_a_receiver_that_fails_is_asked_again(receiver: Receiver, status: int) -> None:
    async def fail(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    receiver.answer = fail
    async with sender() as ours:
        assert await ours.send(receiver.url, "msg_1", b"{}") == (Sent.FAILED, str(status))


async def test_a_receiver_that_hangs_is_left_and_asked_again(receiver: Receiver) -> None:
    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    receiver.answer = hang
    async with sender() as ours, asyncio.timeout(5):
        assert (await ours.send(receiver.url, "msg_1", b"{}"))[0] is Sent.FAILED


async def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(str(request.url.with_path("/elsewhere")))

    receiver.answer = redirect
    async with sender() as ours:
        assert await ours.send(receiver.url, "msg_1", b"{}") == (Sent.FAILED, "302")
    assert len(receiver.messages) == 1


async def test_a_receiver_that_is_gone_is_asked_no_more(receiver: Receiver) -> None:
    async def gone(_: web.Request) -> web.StreamResponse:
        return web.Response(status=410)

    receiver.answer = gone
    async with sender() as ours:
        assert (await ours.send(receiver.url, "msg_1", b"{}"))[0] is Sent.REFUSED


async def test_a_receiver_that_nobody_answers_at_is_asked_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with sender() as ours:
        assert (await ours.send(f"http://127.0.0.1:{port}/", "msg_1", b"{}"))[0] is Sent.FAILED


async def test_a_private_address_is_never_connected_to(receiver: Receiver) -> None:
    async with sender(allow_networks=()) as ours:
        assert (await ours.send(receiver.url, "msg_1", b"{}"))[0] is Sent.REFUSED
    assert receiver.messages == []


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"]])
async def test_a_name_that_leads_to_a_private_address_is_never_connected_to(
    receiver: Receiver, addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []

    def lookup(host: str, port: int, *_: Any) -> list[Any]:
        looked_up.append(host)
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    port = receiver.url.rpartition(":")[2]
    async with sender(allow_networks=()) as ours:
        sent, why = await ours.send(f"http://rebound.example.com:{port}", "msg_1", b"{}")
    assert (sent, "public internet" in why) == (Sent.REFUSED, True)
    assert looked_up == ["rebound.example.com"]
    assert receiver.messages == []


@pytest.mark.parametrize("host", ["127。0。0。1", "127.1", "0177.0.0.1", "2130706433", "127.0.0.1.", "[::ffff:7f00:1]"])
async def test_no_spelling_of_a_private_address_is_connected_to(receiver: Receiver, host: str) -> None:
    port = receiver.url.rpartition(":")[2]
    async with sender(allow_networks=()) as ours:
        sent, _ = await ours.send(f"http://{host}:{port}", "msg_1", b"{}")
    assert sent is not Sent.DELIVERED
    assert receiver.messages == []


class Scripted:
    """A sender that says what it is told to say."""

    def __init__(self, *outcomes: Sent) -> None:
        self.outcomes = list(outcomes)
        self.sent: list[tuple[str, bytes]] = []

    async def send(self, url: str, message_id: str, body: bytes) -> tuple[Sent, str]:
        del url
        self.sent.append((message_id, body))
        return self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0], "because"


async def ended_job(store: MemoryJobStore, job_id: str = "job_1", principal: str = "alice") -> str:
    url = f"https://{principal}.example"
    await store.submit(Job(job_id, principal, "/generate", b"{}", webhook=url, webhook_status="pending"))
    (claimed,) = await store.claim(1)
    await store.finish(claimed, JobOutcome(JobStatus.COMPLETE, answer=ANSWER))
    return claimed.id


async def status(store: MemoryJobStore, job_id: str) -> str | None:
    job = await store.get(job_id)
    assert isinstance(job, Job)
    return job.webhook_status


def delivery(store: MemoryJobStore, sender: webhooks.Sender, *, age_s: float = 0.0) -> WebhookDelivery:
    return WebhookDelivery(
        store=store,
        sender=sender,
        write=job_event,
        timeout_s=1,
        clock=ManualClock(wall=time.time() + age_s),
        metrics=Metrics(CollectorRegistry()),
        chance=lambda: 0.0,
    )


async def test_a_message_is_sent_again_until_it_is_heard_under_one_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(webhooks, "RETRIES_S", (0.01, 0.02))
    store = MemoryJobStore(JobSettings(), SystemClock())
    script = Scripted(Sent.FAILED, Sent.FAILED, Sent.DELIVERED)
    job_id = await ended_job(store)
    async with delivery(store, script).running(), asyncio.timeout(5):
        while await status(store, job_id) == "pending":  # noqa: ASYNC110 - as a caller polls
            await asyncio.sleep(0.01)
    assert await status(store, job_id) == "delivered"
    assert len({message_id for message_id, _ in script.sent}) == 1
    assert len(script.sent) == 3
    message = json.loads(script.sent[0][1])
    assert message["type"] == "job.complete"
    assert (message["data"]["job_id"], message["data"]["text"]) == ("job_1", "Hello")


@pytest.mark.parametrize(("outcome", "attempts"), [(Sent.FAILED, 3), (Sent.REFUSED, 1)])
async def test_a_message_is_given_up_after_its_last_retry_or_a_refusal(
    outcome: Sent, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(webhooks, "RETRIES_S", (0.01, 0.02))
    store = MemoryJobStore(JobSettings(), SystemClock())
    script = Scripted(outcome)
    job_id = await ended_job(store)
    async with delivery(store, script, age_s=1).running(), asyncio.timeout(5):
        while await status(store, job_id) == "pending":  # noqa: ASYNC110 - as a caller polls
            await asyncio.sleep(0.01)
    assert await status(store, job_id) == "failed"
    assert len(script.sent) == attempts


class Hanging:
    """A sender to whom nobody answers but bob."""

    def __init__(self) -> None:
        self.hanging: set[str] = set()
        self.most = 0

    async def send(self, url: str, message_id: str, body: bytes) -> tuple[Sent, str]:
        del body
        if url == "https://bob.example":
            return Sent.DELIVERED, "204"
        self.hanging.add(message_id)
        self.most = max(self.most, len(self.hanging))
        try:
            await asyncio.Event().wait()
        finally:
            self.hanging.discard(message_id)
        raise AssertionError


async def test_a_callers_receivers_that_hang_delay_nobody_elses_messages() -> None:
    store = MemoryJobStore(JobSettings(), SystemClock())
    for number in range(200):
        await ended_job(store, f"job_{number}")
    await ended_job(store, "job_bob", "bob")
    sender = Hanging()
    async with asyncio.timeout(10):
        async with delivery(store, sender).running():
            while await status(store, "job_bob") == "pending":  # noqa: ASYNC110 - as a caller polls
                await asyncio.sleep(0.01)
            assert sender.hanging
        assert not sender.hanging  # the end waits for none of them
    assert sender.most == webhooks.AT_ONCE_EACH


async def test_what_there_was_no_room_for_is_sent_as_soon_as_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "PACE_S", 0.01)
    store = MemoryJobStore(JobSettings(), SystemClock())
    jobs = [await ended_job(store, f"job_{number}") for number in range(50)]
    script = Scripted(Sent.DELIVERED)
    async with delivery(store, script).running(), asyncio.timeout(10):
        while len(script.sent) < len(jobs):  # noqa: ASYNC110 - the store has no events
            await asyncio.sleep(0.01)
    assert {await status(store, job_id) for job_id in jobs} == {"delivered"}


async def test_what_was_put_back_often_is_not_given_up_for_that() -> None:
    store = MemoryJobStore(JobSettings(), SystemClock())
    await ended_job(store)
    (due,) = await store.due_webhooks(1, 30)
    await delivery(store, Scripted(Sent.FAILED)).deliver(due._replace(attempt=99))
    assert await status(store, "job_1") == "pending"
    await delivery(store, Scripted(Sent.FAILED), age_s=1e6).deliver(due._replace(attempt=99))
    assert await status(store, "job_1") == "failed"


def test_a_later_job_with_the_same_id_has_other_messages() -> None:
    first, again, later = (Job("job_1", "alice", "/generate", b"", created_at=at) for at in (1.0, 1.0, 90_000.001))
    assert webhooks.message_id(first) == webhooks.message_id(again) == "msg_job_1_1000"
    assert webhooks.message_id(later) == "msg_job_1_90000001"


def test_the_retries_are_those_of_the_specification() -> None:
    assert webhooks.RETRIES_S[:4] == (5, 300, 1_800, 7_200)
    assert list(webhooks.RETRIES_S) == sorted(webhooks.RETRIES_S)


async def submit(api: FakeApp, webhook: str) -> Any:
    return await api.client.post("/generate/async", json={"prompt": "Hi", "webhook": webhook})


async def test_a_caller_is_told_how_its_job_ended(receiver: Receiver) -> None:
    async with fake_app(webhooks={"secrets": [SECRET], "allow_http": True, "allow_networks": ["127.0.0.0/8"]}) as api:
        job_id = (await submit(api, receiver.url)).json()["job_id"]
        await until(lambda: bool(receiver.messages))
        ((body, headers),) = receiver.messages
        message = json.loads(body)
        assert headers["webhook-id"].startswith(f"msg_{job_id}_")
        assert message["type"] == "job.complete"
        assert message["data"]["job_id"] == job_id
        assert message["data"]["text"] == "Hello, world"
        async with asyncio.timeout(5):
            while (await api.client.get(f"/generate/async/{job_id}")).json()["webhook"] != "delivered":  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "webhook",
    [
        "http://example.com",
        "https://127.0.0.1/",
        "https://a..b/",
        "https://user:secret@example.com/",
        "no address",
        "https://[::1]/",
    ],
)
async def test_an_address_that_cannot_be_right_is_refused_by_name(webhook: str) -> None:
    async with fake_app(webhooks={"secrets": [SECRET], "allow_http": False, "allow_networks": []}) as api:
        response = await submit(api, webhook)
        assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "webhook")
        assert "secret" not in response.text


async def test_without_a_secret_no_webhook_is_taken() -> None:
    async with fake_app() as api:
        response = await submit(api, "https://example.com/hook")
        assert response.status_code == 422
        assert "webhooks.secrets" in response.text
