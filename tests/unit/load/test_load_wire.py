"""What load's decoders make of an answer is the same at any split of its bytes."""

import json
import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import httptools
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from load.wire.answers import EventStream, OpenAIStream, WholeAnswer
from load.wire.connection import Connection
from load.wire.websocket import SocketAnswer, frame

_OURS = (
    b": keep-alive\n\ndata: gr\xc3\xbc\xc3\x9fe\n\n: one\n: two\ndata: \xf0\x9f\x98\x80\n\n"
    b"event: text\ndata: a\ndata: b\n\n"
    b'event: usage\ndata: {"completion_tokens": 3, "finish_reason": "stop"}\n\ndata: [DONE]\n\n'
)
_OPENAI = (
    'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
    'data: {"choices": [{"delta": {"content": "grüße 😀"}}]}\n\n: keep-alive\n\n'
    'data: {"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}\n\n'
    'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'
    'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\ndata: [DONE]\n\n'
).encode()
_MESSAGES = [
    {"type": "delta", "text": "grüße 😀"},
    {"type": "delta", "text": ""},
    {"type": "delta", "text": "x" * 300},
    {"type": "usage", "completion_tokens": 2, "finish_reason": "stop"},
    {"type": "done"},
]
_cuts = st.lists(st.integers(0, 2_000), max_size=40)


class _Peer:
    """Keeps what a decoder sends back."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.sent.append(data)


def _pieces(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    ends = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[start:end] for start, end in pairwise(ends)]


def _http(body: bytes, cuts: Sequence[int] = (), status: int = 200) -> bytes:
    """Frame a body as chunks that end at `cuts`."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in _pieces(body, cuts))
    return b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % (status, chunks)


def _feed(decoder: WholeAnswer | SocketAnswer, pieces: Sequence[bytes]) -> list[bool]:
    return [decoder.feed(piece, float(at_s)) for at_s, piece in enumerate(pieces)]


def _server_frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    size = len(payload)
    length = bytes([size]) if size < 126 else struct.pack("!BH", 126, size)
    return bytes([(0x80 if final else 0) | opcode]) + length + payload


def _socket_answer() -> tuple[SocketAnswer, _Peer]:
    peer = _Peer()
    return SocketAnswer(cast("Connection", peer)), peer


@given(chunked=_cuts, read=_cuts, crlf=st.booleans())
def test_a_stream_of_ours_is_read_alike_at_any_split(chunked: list[int], read: list[int], crlf: bool) -> None:  # noqa: FBT001
    body = _OURS.replace(b"\n", b"\r\n") if crlf else _OURS
    answer = EventStream()
    whole = _feed(answer, _pieces(_http(body, chunked), read))
    assert whole == [False] * (len(whole) - 1) + [True]
    assert (len(answer.times), answer.done, answer.error) == (3, True, None)
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.usage.finish_reason) == (3, "stop")


@given(chunked=_cuts, read=_cuts, crlf=st.booleans())
def test_a_stream_of_openais_is_read_alike_at_any_split(chunked: list[int], read: list[int], crlf: bool) -> None:  # noqa: FBT001
    answer = OpenAIStream()
    _feed(answer, _pieces(_http(_OPENAI.replace(b"\n", b"\r\n") if crlf else _OPENAI, chunked), read))
    assert (len(answer.times), answer.done, answer.error, answer.reusable) == (2, True, None, True)
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.usage.finish_reason) == (2, "stop")


@given(read=_cuts)
def test_an_error_in_mid_stream_is_kept_with_what_came_before_it(read: list[int]) -> None:
    ours, openais = EventStream(), OpenAIStream()
    _feed(ours, _pieces(_http(b'data: a\n\nevent: error\ndata: {"code": "x"}\n\n'), read))
    first = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    _feed(openais, _pieces(_http(first + b'data: {"error": {"code": "x"}}\n\n'), read))
    for answer in (ours, openais):
        assert (len(answer.times), answer.done, answer.error) == (1, False, b'{"code": "x"}')


def test_content_has_the_moment_at_which_its_last_byte_was_read() -> None:
    answer = EventStream()
    head, _, rest = _http(b"data: a\n\ndata: b\n\ndata: [DONE]\n\n").partition(b"data: b\n")
    _feed(answer, [head, b"data: b\n", rest])
    assert (list(answer.times), answer.ended_s) == ([0, 2], 2)


def test_a_stream_that_is_cut_is_not_whole() -> None:
    answer = EventStream()
    assert not any(_feed(answer, [_http(_OURS)[:-5]]))
    assert (answer.eof(), answer.reusable) == (False, False)


def test_a_refusal_is_no_stream() -> None:
    answer = EventStream()
    _feed(answer, [_http(b"data: a\n\n", status=503)])
    assert (answer.status, bytes(answer.body), len(answer.times)) == (503, b"data: a\n\n", 0)


def test_what_is_no_http_and_no_json_is_told() -> None:
    with pytest.raises(httptools.HttpParserError):
        _feed(WholeAnswer(), [b"SSH-2.0\r\n\r\n"])
    with pytest.raises(httptools.HttpParserError) as told:
        _feed(OpenAIStream(), [_http(b"data: {\n\n")])
    assert isinstance(told.value.__context__, msgspec.DecodeError)


@given(fragments=_cuts, read=_cuts, ping=st.booleans())
def test_a_socket_is_read_alike_at_any_fragments_and_split(fragments: list[int], read: list[int], ping: bool) -> None:  # noqa: FBT001
    answer, peer = _socket_answer()
    frames = b""
    for message in _MESSAGES:
        payloads = _pieces(json.dumps(message, ensure_ascii=False).encode(), fragments)
        for index, payload in enumerate(payloads):
            frames += _server_frame(0 if index else 1, payload, final=index == len(payloads) - 1)
            frames += _server_frame(9, b"hi") if ping else b""
    frames += _server_frame(10, b"")
    whole = _feed(answer, _pieces(frames, read))
    assert whole[-1]
    assert (len(answer.times), answer.done, answer.error) == (2, True, None)
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.usage.finish_reason) == (2, "stop")
    assert set(peer.sent) == ({frame(10, b"hi")} if ping else set())


@given(fragments=_cuts)
def test_an_error_on_a_socket_is_kept_whole(fragments: list[int]) -> None:
    answer, _ = _socket_answer()
    error = b'{"type": "error", "code": "overloaded"}'
    payloads = _pieces(error, fragments)
    for index, payload in enumerate(payloads):
        answer.feed(_server_frame(0 if index else 1, payload, final=index == len(payloads) - 1), 1)
    assert (answer.done, answer.error, answer.ended_s) == (False, error, 1)


def test_a_socket_that_is_closed_before_its_end_is_a_failure() -> None:
    answer, _ = _socket_answer()
    with pytest.raises(ConnectionResetError):
        answer.feed(_server_frame(8, b"\x03\xe9"), 0)
