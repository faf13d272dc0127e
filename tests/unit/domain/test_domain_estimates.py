"""How long a request is taken to be: everything in it that a model reads counts."""

from typing import Any

import pytest

from service.domain.estimates import AUDIO_TOKENS, DOCUMENT_TOKENS, IMAGE_TOKENS, input_size, tokens_in
from service.domain.generation import (
    Dialect,
    GenerationRequest,
    ImagePart,
    Message,
    Part,
    TextPart,
    Tool,
    ToolCall,
    ToolResult,
    WireBody,
)


def asked(*parts: Part, **more: Any) -> GenerationRequest:
    return GenerationRequest("m", (Message("user", parts),), **more)


def test_text_counts_by_its_bytes() -> None:
    assert input_size(asked(TextPart("abc"), TextPart("ä€"))) == 3 + 5


def test_tools_count_with_name_description_and_parameters() -> None:
    schema = {"type": "object", "properties": {"a": {"description": "d" * 1_000}}}
    none = input_size(asked(tools=(Tool("x", None, {}),)))
    whole = input_size(asked(tools=(Tool("x" * 11, "y" * 102, schema),)))
    assert none < 20
    assert 1_000 + 11 + 102 < whole < 1_200
    assert input_size(asked(tools=(Tool("x", None, {}),) * 3)) == 3 * none


def test_size_of_a_tool_is_counted_once() -> None:
    parameters: dict[str, Any] = {"type": "object"}
    tool = Tool("x", "y", parameters)
    size = tool.size_bytes
    parameters["more"] = "z" * 100
    assert tool.size_bytes == size


@pytest.mark.parametrize("unsendable", ["\ud800", 2**70])
def test_tool_that_no_provider_gets_counts_for_nothing(unsendable: object) -> None:
    assert input_size(asked(tools=(Tool("x", "y", {"default": unsendable}),))) == 0


@pytest.mark.parametrize(
    "image", [ImagePart(url="https://x/y.png"), ImagePart(media_type="image/png", data="A" * 500_000)]
)
def test_image_counts_the_same_whatever_its_form(image: ImagePart) -> None:
    assert tokens_in(input_size(asked(image, image))) == 2 * IMAGE_TOKENS


def test_calls_and_results_of_tools_count() -> None:
    assert input_size(asked(ToolCall("id", "name", '{"a":1}'), ToolResult("id", "result"))) == 4 + 7 + 6


@pytest.mark.parametrize("field", ["functions", "response_format", "output_config", "output_format"])
def test_what_else_a_model_reads_of_a_vendors_body_counts(field: str) -> None:
    body = {"messages": [], field: {"schema": "x" * 1_000}}
    assert input_size(asked(TextPart("abcd"), wire=WireBody(Dialect.OPENAI, body))) == 4 + len('{"schema":""}') + 1_000


def test_fields_that_no_model_reads_do_not_count() -> None:
    body = {"messages": [], "metadata": {"x": "y" * 1_000}, "response_format": None, "functions": [2**70]}
    assert input_size(asked(TextPart("abcd"), wire=WireBody(Dialect.OPENAI, body))) == 4


# What a vendor's body holds beside the parts that all vendors have.

LONG = "x" * 4_000
BASE64 = "A" * 400_000


def of_body(dialect: Dialect, *content: Any, role: str = "user", **more: Any) -> int:
    """Return the tokens of a message with such pieces, of which nothing is a part."""
    body = {"messages": [{"role": "user", "content": "plain"}, {"role": role, "content": list(content), **more}]}
    return tokens_in(input_size(asked(wire=WireBody(dialect, body))))


def source(kind: str, **more: str) -> dict[str, Any]:
    return {"type": "document", "source": {"type": kind, **more}}


@pytest.mark.parametrize(
    ("piece", "tokens"),
    [
        (source("text", media_type="text/plain", data=LONG), 1_003),
        (source("content", content=LONG), 1_000),
        (source("base64", media_type="application/pdf", data=BASE64), DOCUMENT_TOKENS),
        (source("url", url="https://x/y.pdf"), DOCUMENT_TOKENS),
        (source("file", file_id="file_1"), DOCUMENT_TOKENS),
        ({**source("url", url="https://x/y.pdf"), "title": "abcd"}, DOCUMENT_TOKENS + 1),
        ({"type": "thinking", "thinking": LONG, "signature": BASE64}, 1_000),
        ({"type": "redacted_thinking", "data": LONG}, 1_000),
        ({"type": "server_tool_use", "id": "id", "name": "find", "input": {"query": LONG, "most": 5}}, 1_001),
        (
            {"type": "search_result", "source": "here", "title": "this", "content": [{"type": "text", "text": LONG}]},
            1_002,
        ),
        ({"type": "image", "source": {"type": "file", "file_id": "file_1"}}, IMAGE_TOKENS),
        ({"type": "brand_new", "type_of": {"type": ["x"], "y": None}, "more": "\u00e4bc"}, 1),
    ],
)
def test_anthropics_blocks_count_that_nobody_else_has(piece: dict[str, Any], tokens: int) -> None:
    assert of_body(Dialect.ANTHROPIC, piece) == tokens
    result = {"type": "tool_result", "tool_use_id": "id", "content": [{"type": "text", "text": LONG}, piece]}
    assert of_body(Dialect.ANTHROPIC, result) == tokens, "the text of a result is a part"


def test_images_in_results_of_tools_count() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}}
    result = {"type": "tool_result", "tool_use_id": "id", "content": [image, image]}
    assert of_body(Dialect.ANTHROPIC, result, result) == 4 * IMAGE_TOKENS
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BASE64}"}}
    assert of_body(Dialect.OPENAI, image, role="tool") == IMAGE_TOKENS


@pytest.mark.parametrize(
    ("piece", "tokens"),
    [
        (
            {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{BASE64}"}},
            DOCUMENT_TOKENS,
        ),
        ({"type": "file", "file": {"file_id": "file-1"}}, DOCUMENT_TOKENS),
        ({"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}, AUDIO_TOKENS),
        ({"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{BASE64}"}}, AUDIO_TOKENS),
        ({"type": "picture", "at": f"data:image/png;base64,{BASE64}"}, IMAGE_TOKENS),
        ({"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{BASE64}"}}, DOCUMENT_TOKENS),
        ({"type": "note", "text": f"data: {LONG}"}, 1_002),
    ],
)
def test_openais_parts_count_that_nobody_else_has(piece: dict[str, Any], tokens: int) -> None:
    assert of_body(Dialect.OPENAI, piece) == tokens


def test_calls_of_tools_that_are_no_functions_count() -> None:
    custom = {"type": "custom", "id": "id", "custom": {"name": "code", "input": LONG}}
    function = {"type": "function", "id": "id", "function": {"name": "add", "arguments": LONG}}
    assert of_body(Dialect.OPENAI, role="assistant", tool_calls=[custom, function]) == 1_001


def test_field_that_only_the_other_vendor_has_may_hold_anything() -> None:
    assert of_body(Dialect.ANTHROPIC, role="assistant", tool_calls=5) == 0


@pytest.mark.parametrize(
    ("dialect", "pieces"),
    [
        (Dialect.ANTHROPIC, [{"type": "image", "source": {"type": "url", "url": "u"}}]),
        (Dialect.ANTHROPIC, [{"type": "tool_use", "id": "id", "name": "n", "input": {"a": "b"}}]),
        (Dialect.ANTHROPIC, [{"type": "tool_result", "tool_use_id": "id", "content": "text"}, {"type": "tool_result"}]),
        (Dialect.OPENAI, [{"type": "image_url", "image_url": {"url": "u"}}, {"type": "refusal", "refusal": "no"}]),
    ],
)
def test_what_is_a_part_does_not_count_twice(dialect: Dialect, pieces: list[dict[str, Any]]) -> None:
    assert of_body(dialect, {"type": "text", "text": "abcd"}, *pieces) == 0


def test_no_depth_of_a_body_is_too_much() -> None:
    piece: Any = "abcd"
    for _ in range(100_000):
        piece = [piece]
    assert of_body(Dialect.OPENAI, {"type": "new", "deep": piece}) == 1
