"""Characters cut in two by a server whose strings are UTF-16."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.generation import FinishReason
from service.errors import UpstreamInvalid
from service.providers.openai import OpenAIDecoder
from service.providers.surrogates import SurrogateJoiner
from service.providers.wire import SchemaError


def _event(content: str, finish_reason: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "delta": {"content": content}, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def _units(text: str) -> list[str]:
    """Cut a text into UTF-16 code units, halves of characters among them."""
    encoded = text.encode("utf-16-le")
    return [encoded[at : at + 2].decode("utf-16-le", "surrogatepass") for at in range(0, len(encoded), 2)]


@given(st.text(min_size=1))
def test_text_streamed_by_the_code_unit_arrives_whole(text: str) -> None:
    decoder = OpenAIDecoder(provider="p", include_usage=False, input_bytes=0, choices=1)
    chunks = [decoder.feed(_event(unit)) for unit in _units(text)]
    chunks.append(decoder.feed(_event("", "stop")))
    assert decoder.failure is None
    assert "".join(chunk.text for chunk in chunks if chunk is not None) == text
    raw = b"".join(chunk.raw for chunk in chunks if chunk is not None)
    events = [json.loads(line.removeprefix("data: ")) for line in raw.decode().split("\n\n") if line]
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == text


def test_halves_of_two_choices_are_not_mixed_up() -> None:
    decoder = OpenAIDecoder(provider="p", include_usage=False, input_bytes=0, choices=2)
    first, second = _units("😀"), _units("🎈")
    pieces = [_event(first[0]), _event(second[0], index=1), _event(second[1], index=1), _event(first[1])]
    chunks = [chunk for chunk in map(decoder.feed, pieces) if chunk is not None]
    texts = {choice: "".join(d.text for c in chunks for d in c.deltas if d.choice == choice) for choice in (0, 1)}
    assert texts == {0: "😀", 1: "🎈"}


@pytest.mark.parametrize("pieces", [["\ude00"], ["\ud83d", "a"], ["a\ud83db"]])
def test_half_a_character_is_an_invalid_answer(pieces: list[str]) -> None:
    decoder = OpenAIDecoder(provider="p", include_usage=False, input_bytes=0, choices=1)
    for piece in pieces:
        decoder.feed(_event(piece))
    assert isinstance(decoder.failure, UpstreamInvalid)


def test_a_text_that_ends_with_half_a_character_is_not_finished() -> None:
    decoder = OpenAIDecoder(provider="p", include_usage=False, input_bytes=0, choices=1)
    decoder.feed(_event("\ud83d"))
    chunk = decoder.feed(_event("", FinishReason.STOP))
    assert isinstance(decoder.failure, UpstreamInvalid), chunk
    assert not decoder.finished


def test_what_is_not_json_stays_an_error() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        SurrogateJoiner().join(b"{")
    with pytest.raises(SchemaError):
        SurrogateJoiner().join(b'["\\udc00"]')
