"""Counts the calls of functions that a plain request, a stream and a chunk of one take, through the whole service.

``python -m tests.hotpath.counting`` records them anew for the Python that runs it; the commit says why they grew.
"""

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median_low

from load.bench.targets import CALLER_KEY, Place, clean_environment, own_settings

RECORDED = Path(__file__).parent / "call_counts.json"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
START_TIMEOUT_S = 60
SOCKET_TIMEOUT_S = 20
WARM_UP, TIMES, CHUNKS = 5, 11, 12

CHUNK = (
    'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1760000000,"model":"gpt-4o-mini",'
    '"choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}]}\n\n'
)
USAGE = (
    'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1760000000,"model":"gpt-4o-mini",'
    '"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21}}\n\n'
)
ANSWER = (
    '{"id":"chatcmpl-1","object":"chat.completion","created":1760000000,"model":"gpt-4o-mini","choices":[{"index":0,'
    '"message":{"role":"assistant","content":"whole"},"logprobs":null,"finish_reason":"stop"}],'
    '"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}'
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Upstream:
    """A provider whose every byte the caller sends: nothing is read together that was not sent together."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._connections: list[socket.socket] = []

    def request(self) -> socket.socket:
        """Wait for a request, on any connection; return that."""
        while True:
            ready, _, _ = select.select([self._listener, *self._connections], [], [], SOCKET_TIMEOUT_S)
            if not ready:
                raise TimeoutError("the service asked nothing")
            for one in ready:
                if one is self._listener:
                    connection, _ = self._listener.accept()
                    connection.settimeout(SOCKET_TIMEOUT_S)
                    self._connections.append(connection)
                elif read_message(one):
                    return one
                else:
                    self._connections.remove(one)
                    one.close()

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            connection.close()


def read_message(connection: socket.socket) -> bytes:
    """Read a request or answer that has a Content-Length; empty where the peer has closed."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head + body


def read_until(connection: socket.socket, text: bytes) -> None:
    """Read up to a text."""
    data = b""
    while text not in data:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError(f"the service closed before {text!r}: {data!r}")
        data += piece


def framed(event: str) -> bytes:
    """Frame an event as one chunk of the transfer coding."""
    return b"%x\r\n%b\r\n" % (len(event), event.encode())


class Counting:
    """A service, its only client, and its provider, in lock-step."""

    def __init__(self, client: socket.socket, upstream: Upstream, calls: Callable[[], int]) -> None:
        self._client = client
        self._upstream = upstream
        self._calls = calls

    def measure(self) -> Mapping[str, int]:
        """Count; medians, since the service's own timers run now and then."""
        plain = [self._plain() for _ in range(WARM_UP + TIMES)][WARM_UP:]
        streams = [self._stream() for _ in range(WARM_UP + TIMES)][WARM_UP:]
        chunk = median_low([count for _, chunks in streams for count in chunks])
        whole = median_low([count for count, _ in streams])
        return {
            "plain_request": median_low(plain),
            "stream_without_chunks": whole - (CHUNKS - 1) * chunk,
            "stream_chunk": chunk,
        }

    def _plain(self) -> int:
        before = self._calls()
        self._ask(stream=False)
        answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
        self._upstream.request().sendall(answer + ANSWER.encode())
        if b'"whole"' not in read_message(self._client):
            raise AssertionError("the answer is another one")
        return self._calls() - before

    def _stream(self) -> tuple[int, list[int]]:
        """Return the calls of a whole stream, and of each chunk after the first."""
        before = self._calls()
        self._ask(stream=True)
        provider = self._upstream.request()
        counts = []
        for number in range(CHUNKS):
            content = framed(CHUNK % (f'{{"content":"t{number:03}"}}', "null"))
            provider.sendall(content if number else STREAM_HEAD + content)
            read_until(self._client, b"t%03d" % number)
            counts.append(self._calls())
        end = framed(CHUNK % ("{}", '"stop"')) + framed(USAGE) + framed("data: [DONE]\n\n") + b"0\r\n\r\n"
        provider.sendall(end)
        read_until(self._client, b"0\r\n\r\n")
        return self._calls() - before, [after - at for at, after in pairwise(counts)]

    def _ask(self, *, stream: bool) -> None:
        body = json.dumps(
            {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How many calls?"}], "stream": stream}
        ).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: llm-api\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {CALLER_KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._client.sendall(head.encode() + body)


@contextmanager
def counted_service() -> Iterator[Counting]:
    """Run the service with keys, limits, request log, metrics, ledger and traces of which none is sampled."""
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as listener:
        folder = Path(name)
        place = Place(f"127.0.0.1:{listener.getsockname()[1]}", folder, None)
        settings = {**own_settings(place, 0), "readiness": {"mode": "off"}}
        (folder / "llm-api.yaml").write_text(json.dumps(settings))
        environment = {
            "LLM_API_CONFIG": str(folder / "llm-api.yaml"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
            "OTEL_TRACES_SAMPLER": "traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0",
        }
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.hotpath.counted", "serve"],
            env=clean_environment(environment),
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        watchdog = threading.Timer(START_TIMEOUT_S, child.kill)
        watchdog.start()
        try:
            address = _said(child, "API").removeprefix("http://").partition(":")
            watchdog.cancel()
            with (
                socket.create_connection((address[0], int(address[2])), SOCKET_TIMEOUT_S) as client,
                closing(Upstream(listener)) as upstream,
            ):
                yield Counting(client, upstream, lambda: _ask_calls(child))
        finally:
            watchdog.cancel()
            child.kill()
            child.communicate()


def _ask_calls(child: "subprocess.Popen[str]") -> int:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return int(_said(child, "calls"))


def _said(child: "subprocess.Popen[str]", label: str) -> str:
    assert child.stdout is not None
    for line in child.stdout:
        name, _, value = line.strip().partition(" ")
        if name == label:
            return value.strip()
    raise RuntimeError(f"the service ended with status {child.wait()} before it said {label!r}")


def recorded() -> dict[str, dict[str, int]]:
    """Return what is recorded, by the version of Python."""
    found: dict[str, dict[str, int]] = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    return found


def main() -> None:
    """Record the counts of this version of Python."""
    with counted_service() as counting:
        found = dict(counting.measure())
    RECORDED.write_text(json.dumps(dict(sorted({**recorded(), VERSION: found}.items())), indent=2) + os.linesep)
    print(f"{VERSION}: {found}")


if __name__ == "__main__":
    main()
