"""Reading server-sent events: any split of the bytes gives the same events."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import UpstreamInvalid
from service.providers.event_stream import Event, EventReader


def read(*pieces: bytes) -> list[Event]:
    reader = EventReader(provider="fake")
    return [event for piece in pieces for event in reader.feed(piece)]


def data_of(*pieces: bytes) -> list[bytes]:
    return [event.data for event in read(*pieces)]


def test_usual_event_is_handed_on_verbatim() -> None:
    assert read(b'data: {"a":1}\n\n') == [Event(b"", b'{"a":1}', b'data: {"a":1}\n\n')]


def test_named_event_keeps_its_name_in_the_raw_bytes() -> None:
    assert read(b"event: ping\ndata: 1\n\n") == [Event(b"ping", b"1", b"event: ping\ndata: 1\n\n")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_of_the_standard_is_understood_and_becomes_lf(end: bytes) -> None:
    stream = end.join([b"event: x", b"data: 1", b"", b"data: 2", b"", b""])
    assert read(stream) == [Event(b"x", b"1", b"event: x\ndata: 1\n\n"), Event(b"", b"2", b"data: 2\n\n")]


def test_crlf_split_between_two_reads_is_one_line_end() -> None:
    assert data_of(b"data: 1\r", b"\n\r", b"\ndata: 2\r", b"\n", b"\r\n") == [b"1", b"2"]


def test_byte_order_mark_is_skipped_even_when_split() -> None:
    assert data_of(b"\xef", b"\xbb", b"\xbfdata: 1\n\n") == [b"1"]


def test_data_lines_are_joined_and_one_leading_space_is_taken() -> None:
    assert data_of(b"data: a\ndata:b\ndata:  c\ndata\n\n") == [b"a\nb\n c\n"]


def test_comments_and_events_without_data_are_no_events() -> None:
    assert data_of(b": keep-alive\n\n", b"event: x\n\n", b"id: 4\n\n", b"\n\n\ndata: 1\n\n\n\n") == [b"1"]


def test_comment_inside_an_event_is_left_out_of_the_raw_bytes() -> None:
    assert read(b": hi\ndata: 1\n\n")[0].raw == b"data: 1\n\n"


def test_field_names_that_only_begin_like_data_are_ignored() -> None:
    assert data_of(b"database: 1\ndata: 2\n\n") == [b"2"]


def test_event_that_is_not_ended_is_not_given() -> None:
    assert data_of(b"data: 1\n\ndata: 2\n") == [b"1"]


def test_event_that_grows_too_long_is_refused() -> None:
    reader = EventReader(provider="vllm", max_event_bytes=100)
    reader.feed(b"data: " + b"x" * 90)
    with pytest.raises(UpstreamInvalid, match="too long") as caught:
        reader.feed(b"x" * 20)
    assert caught.value.provider == "vllm"


LINES = st.sampled_from(
    [b"data: {}", b"data: \xc3\xa9", b"data:", b"data", b"event: x", b": c", b"", b"", b"id: 1", b"data: a:b", b"\xff"]
)
STREAMS = st.tuples(st.booleans(), st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"])))).map(
    lambda drawn: (b"\xef\xbb\xbf" if drawn[0] else b"") + b"".join(line + end for line, end in drawn[1])
)


@given(STREAMS, st.data())
def test_any_split_of_the_bytes_parses_alike(stream: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    pieces = [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])]
    assert read(*pieces) == read(stream)
    assert read(*(bytes([byte]) for byte in stream)) == read(stream)


@given(STREAMS)
def test_raw_bytes_parse_to_the_same_events_again(stream: bytes) -> None:
    events = read(stream)
    again = read(b"".join(event.raw for event in events))
    assert [(event.name, event.data) for event in again] == [(event.name, event.data) for event in events]
