"""How long a request is taken to be: everything in it that a model reads counts."""

from typing import Any

import pytest

from service.domain.estimates import IMAGE_TOKENS, input_size, tokens_in
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
