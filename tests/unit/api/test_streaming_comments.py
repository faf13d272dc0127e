"""The comment that breaks a silence is nothing to a reader: real decoders give the same events with it as without."""

import itertools
from collections.abc import Callable, Sequence

import pytest
from anthropic._streaming import SSEDecoder as AnthropicDecoder
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder as OpenAIDecoder

from service.api.keepalive import COMMENT
from tests.support.readers import parse_events

Event = tuple[str | None, str, str | None]
"""Its name, its data and the id that counts then."""
Decode = Callable[[Sequence[bytes]], list[Event]]


def with_openai(pieces: Sequence[bytes]) -> list[Event]:
    """Decode as the ``openai`` SDK does."""
    return [(event.event, event.data, event.id) for event in OpenAIDecoder().iter_bytes(iter(pieces))]


def with_anthropic(pieces: Sequence[bytes]) -> list[Event]:
    """Decode as the ``anthropic`` SDK does."""
    return [(event.event, event.data, event.id) for event in AnthropicDecoder().iter_bytes(iter(pieces))]


def with_httpx_sse(pieces: Sequence[bytes]) -> list[Event]:
    """Decode as httpx-sse does."""
    return [(event.event, event.data, event.id) for event in parse_events(pieces)]


DECODERS = [with_openai, with_anthropic, with_httpx_sse]
every_decoder = pytest.mark.parametrize("decode", DECODERS)

FRAMES = [
    b"data: Hello\n\n",
    b"data: two\ndata: lines\n\n",
    b"event: usage\ndata: {}\n\n",
    b'data: {"choices":[]}\n\ndata: {"choices":[1]}\n\n',
    b"id: str_abc:7\ndata: x\n\n",
    b"id: str_abc:8\nevent: error\ndata: {}\n\n",
]


@every_decoder
@given(
    written=st.lists(st.sampled_from([*FRAMES, COMMENT, COMMENT]), max_size=12),
    places=st.lists(st.integers(0, 400), max_size=6),
)
def test_comments_between_events_change_nothing(decode: Decode, written: list[bytes], places: list[int]) -> None:
    wire = b"".join(written)
    cuts = sorted({0, len(wire), *(place for place in places if place < len(wire))})
    pieces = [wire[start:end] for start, end in itertools.pairwise(cuts)]
    assert decode(pieces) == decode([b"".join(frame for frame in written if frame is not COMMENT)])


@every_decoder
def test_the_events_are_those_that_were_written(decode: Decode) -> None:
    wire = [COMMENT, b"id: s:1\ndata: a\n\n", COMMENT, COMMENT, b"id: s:2\nevent: usage\ndata: b\n\n", COMMENT]
    assert [(data, id_) for _, data, id_ in decode(wire)] == [("a", "s:1"), ("b", "s:2")]


def test_a_blank_line_behind_the_comment_would_be_an_event_without_data_to_an_sdk() -> None:
    events = with_openai([b"id: s:1\ndata: a\n\n", COMMENT + b"\n"])
    assert events == [(None, "a", "s:1"), (None, "", "s:1")]


def test_the_comment_is_one_line() -> None:
    assert COMMENT == b": keep-alive\n"
