"""The framing of our own event streams: every text comes back, whatever the reader's pieces."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from service.api.sse import DONE, TextFraming, json_event, text_event
from service.domain.generation import Chunk, Delta, FinishReason, Usage
from service.errors import InvalidRequest
from tests.support.readers import parse_events, read_events

AWKWARD = [
    "\n",
    "\r",
    "\r\n",
    "\u2028",
    "\u2029",
    "\x85",
    "\x00",
    " ",
    "[DONE]",
    "data: ",
    "event: error",
    ":",
    "\ufeff",
]
texts = st.lists(st.one_of(st.sampled_from(AWKWARD), st.text(max_size=8)), max_size=6).map("".join)


@st.composite
def cut(draw: st.DrawFn, wire: bytes) -> list[bytes]:
    places = sorted({0, len(wire), *draw(st.lists(st.integers(0, len(wire)), max_size=8))})
    return [wire[start:end] for start, end in itertools.pairwise(places)]


@given(st.lists(texts, max_size=6), st.data())
def test_any_texts_come_back_exactly_and_end_once(pieces: list[str], data: st.DataObject) -> None:
    framing = TextFraming(request_id="r", model="m")
    wire = b"".join(framing.chunk(Chunk(deltas=(Delta(text=piece),))) for piece in pieces)
    wire += framing.chunk(Chunk(deltas=(Delta(finish_reason=FinishReason.STOP),), usage=Usage(1, 2))) + framing.end()
    read = read_events(parse_events(data.draw(cut(wire))))
    assert (read.text, read.terminals) == ("".join(pieces), ["done"])


@given(texts)
def test_no_text_looks_like_an_end_or_a_failure(text: str) -> None:
    events = parse_events([text_event(text)])
    assert all(event.event in {"message", "text"} for event in events)
    assert not any(event.event == "message" and event.data == "[DONE]" for event in events)
    assert all(event.id == "" and event.retry is None for event in events)


@given(texts)
def test_an_event_is_whole_so_that_each_write_ends_one(text: str) -> None:
    wire = text_event(text)
    assert wire == b"" or wire.endswith(b"\n\n")
    assert parse_events([wire, DONE])[-1].data == "[DONE]"


@given(st.dictionaries(st.text(), texts))
def test_a_json_event_is_one_event_whatever_is_in_it(payload: dict[str, str]) -> None:
    (event,) = parse_events([json_event("usage", payload)])
    assert (event.event, event.json()) == ("usage", payload)


def test_a_failure_is_an_error_event_and_no_end() -> None:
    framing = TextFraming(request_id="r", model="m")
    framing.chunk(Chunk(deltas=(Delta(text="x"),)))
    (event,) = parse_events([framing.failure(InvalidRequest.at("a\r\nb", "c\nd"))])
    assert event.event == "error"
    assert (event.json()["request_id"], event.json()["errors"][0]["field"]) == ("r", "a\r\nb")


def test_other_choices_are_not_in_the_text() -> None:
    framing = TextFraming(request_id="r", model="m")
    assert framing.chunk(Chunk(deltas=(Delta(choice=1, text="x"),))) == b""
    both = Chunk(deltas=(Delta(text="a"), Delta(choice=1, text="x"), Delta(text="b")))
    assert framing.chunk(both) == b"data: ab\n\n"


def test_without_figures_the_usage_says_so() -> None:
    framing = TextFraming(request_id="r", model="m")
    framing.chunk(Chunk(deltas=(Delta(finish_reason=FinishReason.LENGTH),)))
    usage = parse_events([framing.end()])[0].json()
    assert usage["prompt_tokens"] is usage["completion_tokens"] is usage["estimated"] is None
    assert usage["finish_reason"] == "length"
