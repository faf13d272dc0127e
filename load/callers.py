"""How each route is asked, and what counts as its good end. Nothing is ever asked twice."""

import errno
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import gevent
import httptools
import msgspec

from load.results import CUT
from load.validity import GENERATOR
from load.wire.answers import EventStream, OpenAIStream, WholeAnswer
from load.wire.connection import Closed, Connection, Pool, TimedOut
from load.wire.websocket import Greeting, SocketAnswer, handshake, text_frame

_POLL_S: Final = 0.5
_OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS})
"""What this machine has run out of is not the service's failure."""
_OK: Final = 200
_ACCEPTED: Final = 202


class Failed(Exception):  # noqa: N818 - the outcome's name
    """A request that did not end well; its text is the kind."""


@dataclass(slots=True)
class Ask:
    """What is asked, and what came of it."""

    model: str
    prompt: str
    max_tokens: int
    until_s: float
    finish_reasons: tuple[str, ...]
    times: Any = ()
    """When contents came."""
    ended_s: float | None = None
    output_tokens: int | None = None


class Callers:
    """The routes of one service."""

    def __init__(self, base_url: str, key: str | None) -> None:
        self._http, self._sockets = Pool(base_url), Pool(base_url)
        self._headers = f"Authorization: Bearer {key}\r\n" if key else ""
        self.routes: dict[str, Callable[[Ask], None]] = {
            "generate": self.generate,
            "stream": self.stream,
            "chat": self.chat,
            "chat_stream": self.chat_stream,
            "socket": self.socket,
            "jobs_poll": self.jobs_poll,
            "jobs_stream": self.jobs_stream,
            "v1": self.v1,
            "v1_stream": self.v1_stream,
        }

    def ask(self, route: str, ask: Ask) -> str:  # noqa: PLR0911 - one for each kind
        """Ask; return the outcome: `completed`, or the kind of failure."""
        try:
            self.routes[route](ask)
        except Failed as failure:
            return str(failure)
        except TimedOut:
            return "timeout"
        except Closed:
            return CUT if ask.times else "closed"
        except OSError as error:
            if error.errno in _OURS:
                return GENERATOR
            return "refused" if error.errno == errno.ECONNREFUSED else CUT if ask.times else "reset"
        except (ValueError, KeyError, TypeError, msgspec.MsgspecError, httptools.HttpParserError):
            return "malformed"
        return "completed"

    def generate(self, ask: Ask) -> None:
        """`POST /generate`."""
        self._whole(ask, "/generate", {**_common(ask), "prompt": ask.prompt})

    def chat(self, ask: Ask) -> None:
        """`POST /chat`, whole."""
        self._whole(ask, "/chat", {**_common(ask), "messages": _messages(ask)})

    def stream(self, ask: Ask) -> None:
        """`GET /stream`."""
        query = f"prompt={quote(ask.prompt)}&model={quote(ask.model)}&max_tokens={ask.max_tokens}"
        self._streamed(ask, self._head("GET", f"/stream?{query}"), EventStream())

    def chat_stream(self, ask: Ask) -> None:
        """`POST /chat`, streamed."""
        body = {**_common(ask), "messages": _messages(ask), "stream": True}
        self._streamed(ask, self._head("POST", "/chat", body), EventStream())

    def v1(self, ask: Ask) -> None:
        """`POST /v1/chat/completions`, whole."""
        body = {**_common(ask), "messages": _messages(ask)}
        answer = self._json(ask, self._head("POST", "/v1/chat/completions", body), _OK)
        ask.output_tokens = answer["usage"]["completion_tokens"]
        _check(answer["choices"][0]["finish_reason"], ask)

    def v1_stream(self, ask: Ask) -> None:
        """`POST /v1/chat/completions`, streamed."""
        extra = {"messages": _messages(ask), "stream": True, "stream_options": {"include_usage": True}}
        self._streamed(ask, self._head("POST", "/v1/chat/completions", {**_common(ask), **extra}), OpenAIStream())

    def socket(self, ask: Ask) -> None:
        """Generate over `WS /ws`."""
        connection = self._sockets.take(ask.until_s, self._greet)
        message = json.dumps({"type": "generate", "id": "1", **_common(ask), "prompt": ask.prompt})
        answer = SocketAnswer(connection)
        ask.times = answer.times
        _exchange(self._sockets, connection, text_frame(message.encode()), answer, ask, lambda: answer.done)
        _finish(answer, ask)

    def jobs_poll(self, ask: Ask) -> None:
        """Submit a job and ask for it until it is over."""
        job = self._submit(ask)
        while (state := self._json(ask, self._head("GET", f"/generate/async/{job}"), _OK))["status"] == "pending":
            if time.perf_counter() + _POLL_S > ask.until_s:
                raise TimedOut
            gevent.sleep(_POLL_S)
        if state["status"] != "complete":
            raise Failed(f"job_{state['status']}")
        ask.output_tokens = state["completion_tokens"]
        _check(state["finish_reason"], ask)

    def jobs_stream(self, ask: Ask) -> None:
        """Submit a job and follow it."""
        self._streamed(ask, self._head("GET", f"/generate/async/{self._submit(ask)}/stream"), EventStream())

    def _submit(self, ask: Ask) -> str:
        head = self._head("POST", "/generate/async", {**_common(ask), "prompt": ask.prompt})
        return str(self._json(ask, head, _ACCEPTED)["job_id"])

    def _greet(self, connection: Connection, until_s: float) -> None:
        greeting = Greeting()
        connection.exchange(handshake(self._http.path, self._host, self._headers), greeting, until_s)
        if greeting.status != 101:  # noqa: PLR2004 - RFC 6455 section 4.1
            raise Failed(f"http_{greeting.status}")

    @property
    def _host(self) -> str:
        return f"{self._http.host}:{self._http.port}"

    def _head(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        content = b"" if body is None else json.dumps(body).encode()
        described = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n" if content else ""
        head = f"{method} {self._http.path}{path} HTTP/1.1\r\nHost: {self._host}\r\n{self._headers}{described}\r\n"
        return head.encode() + content

    def _whole(self, ask: Ask, path: str, body: dict[str, Any]) -> None:
        answer = self._json(ask, self._head("POST", path, body), _OK)
        ask.output_tokens = answer["completion_tokens"]
        _check(answer["finish_reason"], ask)

    def _json(self, ask: Ask, request: bytes, status: int) -> dict[str, Any]:
        answer = WholeAnswer()
        _exchange(self._http, self._http.take(ask.until_s), request, answer, ask, lambda: answer.reusable)
        if answer.status != status:
            raise Failed(f"http_{answer.status}")
        document: dict[str, Any] = json.loads(answer.body)
        return document

    def _streamed(self, ask: Ask, request: bytes, answer: EventStream) -> None:
        ask.times = answer.times
        _exchange(self._http, self._http.take(ask.until_s), request, answer, ask, lambda: answer.reusable)
        if answer.status != _OK:
            raise Failed(f"http_{answer.status}")
        _finish(answer, ask)


def _exchange(  # noqa: PLR0917 - in the order in which they are used
    pool: Pool, connection: Connection, request: bytes, answer: Any, ask: Ask, keep: Callable[[], bool]
) -> None:
    kept = False
    try:
        connection.exchange(request, answer, ask.until_s)
        kept = keep()
    finally:
        ask.ended_s = answer.ended_s
        if kept:
            pool.give_back(connection)
        else:
            connection.close()


def _finish(answer: EventStream | SocketAnswer, ask: Ask) -> None:
    """Judge a stream by what it said: one terminal event, its usage, and why it stopped."""
    if answer.error is not None:
        raise Failed("error_event")
    if not answer.done:
        raise Failed(CUT)
    if answer.usage is None:
        raise Failed("no_usage")
    ask.output_tokens = answer.usage.completion_tokens
    _check(answer.usage.finish_reason, ask)


def _check(finish_reason: str | None, ask: Ask) -> None:
    if finish_reason not in ask.finish_reasons:
        raise Failed("wrong_finish")


def _common(ask: Ask) -> dict[str, Any]:
    return {"model": ask.model, "max_tokens": ask.max_tokens}


def _messages(ask: Ask) -> list[dict[str, str]]:
    return [{"role": "user", "content": ask.prompt}]
