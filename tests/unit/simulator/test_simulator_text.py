"""Texts as functions of a digest, and how texts fall into tokens."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.simulator.anthropic_write import write_stream
from service.simulator.asks import Ask, Tool, compose
from service.simulator.directives import Directives
from service.simulator.text import count_tokens, cut_at_stop, split_pieces, write_json, write_text


def ask(*texts: str, **more: Any) -> Ask:
    return Ask(model="sim", texts=list(texts), last_user_text=texts[-1], input_tokens=1, **more)


def text_of(asked: Ask, *, seed: int = 0, model: str = "sim", **directives: Any) -> str:
    answer = compose(asked, model, Directives(**directives), seed=seed, output_tokens=40)
    return "".join(answer.choices[0].pieces)


def test_an_answer_is_a_function_of_seed_model_and_messages() -> None:
    first = text_of(ask("user", "hello"))
    assert text_of(ask("user", "hello")) == first
    others = [
        text_of(ask("user", "hello"), seed=1),
        text_of(ask("user", "hello"), model="gpt-4o"),
        text_of(ask("user", "hello!")),
        text_of(ask("system", "hello")),
    ]
    assert first not in others
    assert len(set(others)) == len(others)


def test_the_text_of_a_call_is_the_same_in_every_release() -> None:
    assert text_of(ask("user", "hello"), tokens=9) == "Idle harbor: Begins between runs under each,"


@given(st.integers(0, 2**64 - 1), st.integers(0, 300))
def test_a_text_has_as_many_tokens_as_asked_and_begins_alike_at_any_length(number: int, tokens: int) -> None:
    pieces = write_text(number, tokens)
    assert len(pieces) == tokens
    assert write_text(number, tokens + 50)[:tokens] == pieces
    assert all(pieces)


def test_a_text_longer_than_the_tape_goes_on() -> None:
    assert len(write_text(12345, 100_000)) == 100_000


@given(st.text(), st.one_of(st.none(), st.integers(1, 7)))
def test_pieces_join_to_their_text(text: str, piece_chars: int | None) -> None:
    pieces = split_pieces(text, piece_chars)
    assert "".join(pieces) == text
    assert all(pieces)
    if piece_chars is None:
        assert count_tokens(text) == len(pieces)
    else:
        assert all(len(piece) == piece_chars for piece in pieces[:-1])


def test_carriage_return_and_line_feed_fall_apart() -> None:
    assert split_pieces("a\r\nb") == ["a", "\r", "\n", "b"]


@given(st.text(), st.text(max_size=5000))
def test_an_echo_returns_exactly_the_rest(rest: str, before: str) -> None:
    asked = ask("user", before, "user", f"echo:{rest}", max_tokens=1)
    assert text_of(asked) == rest


@given(st.lists(st.text("abc", min_size=1, max_size=3)), st.lists(st.text("abc", min_size=1, max_size=2), max_size=4))
def test_a_text_ends_before_the_first_stop_string(pieces: list[str], stop: list[str]) -> None:
    text = "".join(pieces)
    kept, found = cut_at_stop(pieces, tuple(stop))
    places = [text.find(string) for string in stop if string in text]
    assert "".join(kept) == (text[: min(places)] if places else text)
    assert (found is None) == (not places)
    assert all(kept)


def test_max_tokens_cuts_and_says_so() -> None:
    cut = compose(ask("user", "x", max_tokens=5), "sim", Directives(), seed=0, output_tokens=40)
    assert (cut.output_tokens, cut.choices[0].finish) == (5, "length")
    whole = compose(ask("user", "x", max_tokens=40), "sim", Directives(), seed=0, output_tokens=40)
    assert (whole.output_tokens, whole.choices[0].finish) == (40, "stop")


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 12},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 3, "maximum": 5},
        "chance": {"type": "number", "minimum": 0, "maximum": 1},
        "alert": {"type": ["boolean", "null"]},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        "kind": {"const": "forecast"},
    },
    "required": ["city"],
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
}


@given(st.integers(0, 2**64 - 1))
def test_json_fits_its_schema(number: int) -> None:
    text = write_json(SCHEMA, number)
    value = orjson.loads(text)
    assert len(value["city"]) >= 12
    assert value["unit"] in ("celsius", "fahrenheit")
    assert 3 <= value["days"] <= 5
    assert 0 <= value["chance"] <= 1
    assert isinstance(value["alert"], bool)
    assert [type(tag) for tag in value["tags"]] == [str, str]
    assert value["kind"] == "forecast"
    assert write_json(SCHEMA, number) == text


TOOLS = (Tool("get_weather", SCHEMA), Tool("get_time", {"type": "object"}))


@pytest.mark.parametrize(
    ("message", "choice", "called"),
    [
        ("please use get_time now", "auto", ["get_time"]),
        ("get_time and get_weather", "auto", ["get_weather", "get_time"]),
        ("hello", "auto", []),
        ("hello", "required", ["get_weather"]),
        ("hello", "=get_time", ["get_time"]),
        ("get_time", "none", []),
    ],
)
def test_tools_are_called_when_forced_or_named(message: str, choice: str, called: list[str]) -> None:
    asked = ask("user", message, tools=TOOLS, tool_choice=choice)
    answer = compose(asked, "sim", Directives(), seed=0, output_tokens=10)
    calls = answer.choices[0].calls
    assert [call.name for call in calls] == called
    assert answer.choices[0].finish == ("tools" if called else "stop")
    for call in calls:
        assert isinstance(orjson.loads("".join(call.fragments)), dict)


@pytest.mark.parametrize(("tool", "written"), [("get_time", ""), ("get_weather", None)])
def test_call_without_arguments_is_streamed_by_anthropic_as_empty_text(tool: str, written: str | None) -> None:
    asked = ask("user", "hello", tools=TOOLS, tool_choice=f"={tool}")
    answer = compose(asked, "sim", Directives(), seed=0, output_tokens=10)
    script = write_stream(asked, answer, "1", with_usage=True)
    events = [orjson.loads(frame.split(b"data: ")[1].split(b"\n")[0]) for frame, _ in script.frames]
    pieces = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert pieces, "the vendor sends one even where there is nothing to say"
    if written is None:
        assert orjson.loads("".join(pieces)) == orjson.loads("".join(answer.choices[0].calls[0].fragments))
    else:
        assert "".join(pieces) == written
