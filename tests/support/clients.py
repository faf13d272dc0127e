"""Real clients of every route as one interface: each asks one question and says truly how the answer ended.

They read by the contract for client authors (docs/streaming.md) and give nothing the benefit of the doubt: a body that
ends without its terminal event, and anything that comes after one, is told apart from a completion.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, Literal

import anthropic
import httpx
import httpx2
import openai
from anthropic.types import MessageParam
from httpx_sse import ServerSentEvent, aconnect_sse
from openai.types.chat import ChatCompletionMessageParam
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.support.readers import parse_events

HANG_S = 15.0
"""Whoever has no answer by then is taken to hang."""
THREADS = 64
"""For the SDKs' blocking clients."""
_CURL_TIMED_OUT = 28


class Ending(StrEnum):
    """How a client learnt that it is over."""

    COMPLETE = "complete"
    """By the end that the contract names."""
    STATUS = "status"
    """By an error status, with an error body."""
    EVENT = "event"
    """By an error after a 200: an event or a message, which an SDK raises as an exception of its own."""
    TRUNCATED = "truncated"
    """By nothing: the body ended with neither end nor error."""
    TWICE = "twice"
    """By more than one terminal event, or by one that more came after."""
    BROKEN = "broken"
    """By a failed connection."""
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, in every route's own form."""

    model: str
    prompt: str
    max_tokens: int = 256


@dataclass(slots=True)
class Outcome:
    """What came, filled in while it comes."""

    text: str = ""
    ending: Ending = Ending.TRUNCATED
    finish_reason: str | None = None
    status: int | None = None
    """HTTP status, or the one that an error event names."""
    code: str | None = None
    retryable: bool | None = None
    """None where the client cannot see it."""
    request_ids: set[str | None] = field(default_factory=set)
    """All that were named; one request has one."""
    seconds: float = 0.0
    """From the question to the end, by this client's clock."""
    detail: str = ""
    """For whoever reads a failed test."""

    def add(self, text: str) -> None:
        """Take a piece of the answer."""
        self.text += text
        if text and self.ending is not Ending.TRUNCATED:
            self.ending = Ending.TWICE

    def end(self, ending: Ending) -> None:
        """Take a terminal event."""
        self.ending = ending if self.ending is Ending.TRUNCATED else Ending.TWICE

    def fail(self, ending: Ending, problem: Mapping[str, Any]) -> None:
        """Take a failure in our own form."""
        self.end(ending)
        self.status, self.code = problem["status"], problem["code"]
        self.retryable = problem["retryable"]
        self.request_ids.add(problem["request_id"])


Vendor = Literal["ours", "openai", "anthropic"]
Form = Literal["stream", "socket", "whole"]
"""A failure before the first content is a status, but on a socket, which has had its status."""
_Reader = Callable[[Question, Outcome], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Client:
    """One way to ask."""

    name: str
    """Route and client, short enough for the head of a column."""
    vendor: Vendor
    """In whose form the route answers."""
    form: Form
    _read: _Reader

    async def ask(self, question: Question) -> Outcome:
        """Ask, and come back in any case."""
        outcome = Outcome()
        begun_at = time.monotonic()
        try:
            async with asyncio.timeout(HANG_S):
                await self._read(question, outcome)
        except (
            TimeoutError,
            httpx.TimeoutException,
            httpx2.TimeoutException,
            openai.APITimeoutError,
            anthropic.APITimeoutError,
        ) as error:
            outcome.ending, outcome.detail = Ending.HUNG, repr(error)
        except openai.APIStatusError as error:
            _take_openai_status(error, outcome)
        except anthropic.APIStatusError as error:
            _take_anthropic(error, outcome)
        except (
            httpx.TransportError,
            httpx2.TransportError,  # of the SDKs: in mid-stream they let it through
            openai.APIConnectionError,
            anthropic.APIConnectionError,
            ConnectionClosed,
            ConnectionError,
        ) as error:
            outcome.ending, outcome.detail = Ending.BROKEN, repr(error)
        except openai.APIError as error:
            _take_openai_event(error, outcome)
        outcome.seconds = time.monotonic() - begun_at
        return outcome


@asynccontextmanager
async def open_clients(base_url: str, key: str) -> AsyncIterator[tuple[Client, ...]]:
    """Open all of them, with their retries off: a retry would hide what happened."""
    async with AsyncExitStack() as stack:
        threads = ThreadPoolExecutor(THREADS)
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        bearer = {"Authorization": f"Bearer {key}"}
        certificates = ssl.create_default_context()

        def open_http() -> httpx.AsyncClient:
            # One for each question: a pool that hundreds of questions share is slower than what it is to measure.
            return httpx.AsyncClient(
                base_url=base_url, headers=bearer, trust_env=False, timeout=HANG_S, verify=certificates
            )

        given: dict[str, Any] = {"api_key": key, "max_retries": 0, "timeout": HANG_S}
        openai_async = await stack.enter_async_context(openai.AsyncOpenAI(base_url=f"{base_url}/v1", **given))
        openai_sync = stack.enter_context(openai.OpenAI(base_url=f"{base_url}/v1", **given))
        anthropic_async = await stack.enter_async_context(anthropic.AsyncAnthropic(base_url=base_url, **given))
        anthropic_sync = stack.enter_context(anthropic.Anthropic(base_url=base_url, **given))

        def in_thread(read: Callable[[Question, Outcome], None]) -> _Reader:
            async def asked(question: Question, outcome: Outcome) -> None:
                await asyncio.get_running_loop().run_in_executor(threads, read, question, outcome)

            return asked

        socket_url = base_url.replace("http", "ws", 1) + "/ws"
        yield (
            Client("stream httpx-sse", "ours", "stream", partial(_stream, open_http)),
            Client("stream curl", "ours", "stream", partial(_curl, base_url, key)),
            Client("chat httpx-sse", "ours", "stream", partial(_chat_stream, open_http)),
            Client("ws websockets", "ours", "socket", partial(_socket, socket_url, bearer)),
            Client("v1/chat openai", "openai", "stream", in_thread(partial(_openai_stream_sync, openai_sync))),
            Client("v1/chat openai async", "openai", "stream", partial(_openai_stream, openai_async)),
            Client("v1/chat openai .stream", "openai", "stream", partial(_openai_helper, openai_async)),
            Client("v1/msgs anthropic", "anthropic", "stream", in_thread(partial(_anthropic_sync, anthropic_sync))),
            Client("v1/msgs anthropic raw", "anthropic", "stream", partial(_anthropic_raw, anthropic_async)),
            Client("v1/msgs anthropic .stream", "anthropic", "stream", partial(_anthropic_helper, anthropic_async)),
            Client("generate httpx", "ours", "whole", partial(_generate, open_http)),
            Client("chat httpx", "ours", "whole", partial(_chat, open_http)),
            Client("v1/chat openai whole", "openai", "whole", partial(_openai_whole, openai_async)),
            Client("v1/msgs anthropic whole", "anthropic", "whole", partial(_anthropic_whole, anthropic_async)),
        )


# Our own routes.


def _messages(question: Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.prompt}]


def _query(question: Question) -> dict[str, str | int]:
    return {"prompt": question.prompt, "model": question.model, "max_tokens": question.max_tokens}


def _chat_body(question: Question, *, stream: bool) -> dict[str, Any]:
    return {
        "messages": _messages(question),
        "model": question.model,
        "max_tokens": question.max_tokens,
        "stream": stream,
    }


OpenHttp = Callable[[], httpx.AsyncClient]


async def _stream(open_http: OpenHttp, question: Question, outcome: Outcome) -> None:
    await _read_sse(open_http, outcome, "GET", "/stream", params=_query(question))


async def _chat_stream(open_http: OpenHttp, question: Question, outcome: Outcome) -> None:
    await _read_sse(open_http, outcome, "POST", "/chat", json=_chat_body(question, stream=True))


async def _read_sse(open_http: OpenHttp, outcome: Outcome, method: str, path: str, **request: Any) -> None:
    async with open_http() as http, aconnect_sse(http, method, path, **request) as source:
        response = source.response
        outcome.request_ids.add(response.headers["x-request-id"])
        if response.status_code != httpx.codes.OK:
            await response.aread()
            _take_problem(response.status_code, response.content, outcome)
            return
        async for event in source.aiter_sse():
            _follow([event], outcome)


async def _curl(base_url: str, key: str, question: Question, outcome: Outcome) -> None:
    options = [word for pair in _query(question).items() for word in ("--data-urlencode", "{}={}".format(*pair))]
    process = await asyncio.create_subprocess_exec(
        "curl",
        "--disable",
        "--silent",
        "--no-buffer",
        "--get",
        "--noproxy",
        "*",
        "--max-time",
        str(HANG_S),
        "--header",
        f"Authorization: Bearer {key}",
        "--write-out",
        "%{stderr}%{http_code}",
        *options,
        f"{base_url}/stream",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        body, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == _CURL_TIMED_OUT:
        raise TimeoutError("curl gave up")
    if process.returncode:
        raise ConnectionError(f"curl: exit status {process.returncode}")
    status = int(said)
    if status != httpx.codes.OK:
        _take_problem(status, body, outcome)
    else:
        _follow(parse_events([body]), outcome)


def _follow(events: Iterable[ServerSentEvent], outcome: Outcome) -> None:
    for event in events:
        match event.event:
            case "text":
                outcome.add(json.loads(event.data))
            case "usage":
                usage = json.loads(event.data)
                outcome.finish_reason = usage["finish_reason"]
                outcome.request_ids.add(usage["request_id"])
            case "error":
                outcome.fail(Ending.EVENT, json.loads(event.data))
            case "message" if event.data == "[DONE]":
                outcome.end(Ending.COMPLETE)
            case "message":
                outcome.add(event.data)
            case other:
                raise AssertionError(f"an event that no page documents: {other}")


def _take_problem(status: int, body: bytes, outcome: Outcome) -> None:
    problem = json.loads(body)
    outcome.fail(Ending.STATUS, problem)
    assert status == problem["status"]


async def _socket(url: str, headers: dict[str, str], question: Question, outcome: Outcome) -> None:
    async with connect(url, additional_headers=headers, proxy=None, max_size=None) as socket:
        await socket.send(json.dumps({"type": "generate", "id": "a", **_query(question)}))
        while outcome.ending is Ending.TRUNCATED:
            _take_message(json.loads(await socket.recv()), outcome)
        # Whatever else comes for it comes before the answer to this.
        await socket.send(json.dumps({"type": "ping", "id": "after"}))
        while (message := json.loads(await socket.recv())) != {"type": "pong", "id": "after"}:
            _take_message(message, outcome)


def _take_message(message: Mapping[str, Any], outcome: Outcome) -> None:
    assert message["id"] == "a", message
    outcome.request_ids |= {message["request_id"]} if "request_id" in message else set()
    match message["type"]:
        case "delta":
            outcome.add(message["text"])
        case "usage":
            outcome.finish_reason = message["finish_reason"]
        case "done":
            assert message["finish_reason"] == outcome.finish_reason
            outcome.end(Ending.COMPLETE)
        case "error":
            outcome.fail(Ending.EVENT, message)
        case other:
            assert other == "started"


async def _generate(open_http: OpenHttp, question: Question, outcome: Outcome) -> None:
    async with open_http() as http:
        answer = await _whole(await http.post("/generate", json=_query(question)), outcome)
    outcome.text = answer["text"] if answer else ""


async def _chat(open_http: OpenHttp, question: Question, outcome: Outcome) -> None:
    async with open_http() as http:
        answer = await _whole(await http.post("/chat", json=_chat_body(question, stream=False)), outcome)
    outcome.text = answer["message"]["content"] if answer else ""


async def _whole(response: httpx.Response, outcome: Outcome) -> dict[str, Any]:
    outcome.request_ids.add(response.headers["x-request-id"])
    if response.status_code != httpx.codes.OK:
        _take_problem(response.status_code, response.content, outcome)
        return {}
    answer: dict[str, Any] = response.json()
    outcome.request_ids.add(answer["request_id"])
    outcome.finish_reason = answer["finish_reason"]
    outcome.ending = Ending.COMPLETE
    return answer


# OpenAI's.


def _openai_messages(question: Question) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": question.prompt}]


def _openai_stream_sync(client: openai.OpenAI, question: Question, outcome: Outcome) -> None:
    with client.chat.completions.create(
        model=question.model, messages=_openai_messages(question), max_tokens=question.max_tokens, stream=True
    ) as stream:
        outcome.request_ids.add(stream.response.headers["x-request-id"])
        for chunk in stream:
            _take_chunk(chunk, outcome)
    _end_of_openai(outcome)


async def _openai_stream(client: openai.AsyncOpenAI, question: Question, outcome: Outcome) -> None:
    async with await client.chat.completions.create(
        model=question.model, messages=_openai_messages(question), max_tokens=question.max_tokens, stream=True
    ) as stream:
        outcome.request_ids.add(stream.response.headers["x-request-id"])
        async for chunk in stream:
            _take_chunk(chunk, outcome)
    _end_of_openai(outcome)


async def _openai_helper(client: openai.AsyncOpenAI, question: Question, outcome: Outcome) -> None:
    async with client.chat.completions.stream(
        model=question.model, messages=_openai_messages(question), max_tokens=question.max_tokens
    ) as stream:
        outcome.request_ids.add(stream._response.headers["x-request-id"])
        async for event in stream:
            if event.type == "chunk":
                _take_chunk(event.chunk, outcome)
    _end_of_openai(outcome)


def _take_chunk(chunk: Any, outcome: Outcome) -> None:
    for choice in chunk.choices:
        outcome.add(choice.delta.content or "")
        if choice.finish_reason is not None:
            outcome.end(Ending.COMPLETE)
            outcome.finish_reason = choice.finish_reason


def _end_of_openai(outcome: Outcome) -> None:
    if outcome.ending is Ending.TRUNCATED:
        outcome.detail = "the SDK took the end of the body for the end of the answer"


async def _openai_whole(client: openai.AsyncOpenAI, question: Question, outcome: Outcome) -> None:
    answer = await client.chat.completions.create(
        model=question.model, messages=_openai_messages(question), max_tokens=question.max_tokens
    )
    [choice] = answer.choices
    outcome.add(choice.message.content or "")
    outcome.request_ids.add(answer._request_id)
    outcome.finish_reason = choice.finish_reason
    outcome.end(Ending.COMPLETE)


def _take_openai_status(error: openai.APIStatusError, outcome: Outcome) -> None:
    outcome.end(Ending.STATUS)
    outcome.status, outcome.code = error.status_code, error.code
    outcome.request_ids |= {error.request_id, error.response.json()["request_id"]}
    outcome.detail = repr(error)


def _take_openai_event(error: openai.APIError, outcome: Outcome) -> None:
    # The SDK keeps only the inner object: the request's id, which stands beside it, is known from the headers.
    outcome.end(Ending.EVENT)
    outcome.code = error.code
    outcome.detail = repr(error)


# Anthropic's.


def _anthropic_messages(question: Question) -> list[MessageParam]:
    return [{"role": "user", "content": question.prompt}]


def _anthropic_sync(client: anthropic.Anthropic, question: Question, outcome: Outcome) -> None:
    with client.messages.create(
        model=question.model, messages=_anthropic_messages(question), max_tokens=question.max_tokens, stream=True
    ) as stream:
        outcome.request_ids.add(stream.response.headers["request-id"])
        for event in stream:
            _take_anthropic_event(event, outcome)


async def _anthropic_raw(client: anthropic.AsyncAnthropic, question: Question, outcome: Outcome) -> None:
    async with await client.messages.create(
        model=question.model, messages=_anthropic_messages(question), max_tokens=question.max_tokens, stream=True
    ) as stream:
        outcome.request_ids.add(stream.response.headers["request-id"])
        async for event in stream:
            _take_anthropic_event(event, outcome)


async def _anthropic_helper(client: anthropic.AsyncAnthropic, question: Question, outcome: Outcome) -> None:
    async with client.messages.stream(
        model=question.model, messages=_anthropic_messages(question), max_tokens=question.max_tokens
    ) as stream:
        outcome.request_ids.add(stream.response.headers["request-id"])
        async for event in stream:
            _take_anthropic_event(event, outcome)
        if outcome.ending is Ending.COMPLETE:
            answer = await stream.get_final_message()
            assert "".join(block.text for block in answer.content if block.type == "text") == outcome.text
            assert answer.stop_reason == outcome.finish_reason


def _take_anthropic_event(event: Any, outcome: Outcome) -> None:
    if event.type == "content_block_delta":
        outcome.add(event.delta.text)
    elif event.type == "message_delta":
        outcome.finish_reason = event.delta.stop_reason
    elif event.type == "message_stop":
        outcome.end(Ending.COMPLETE)


async def _anthropic_whole(client: anthropic.AsyncAnthropic, question: Question, outcome: Outcome) -> None:
    answer = await client.messages.create(
        model=question.model, messages=_anthropic_messages(question), max_tokens=question.max_tokens
    )
    outcome.add("".join(block.text for block in answer.content if block.type == "text"))
    outcome.request_ids.add(answer._request_id)
    outcome.finish_reason = answer.stop_reason
    outcome.end(Ending.COMPLETE)


def _take_anthropic(error: anthropic.APIStatusError, outcome: Outcome) -> None:
    body: Any = error.body
    in_stream = error.status_code == httpx.codes.OK
    outcome.end(Ending.EVENT if in_stream else Ending.STATUS)
    outcome.status = None if in_stream else error.status_code
    outcome.code = body["error"]["details"]["error_code"]
    outcome.request_ids |= {error.request_id, body["request_id"]}
    outcome.detail = repr(error)
