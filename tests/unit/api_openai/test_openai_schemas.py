from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from service.api.openai.schemas import ChatCompletionRequest, EmbeddingsRequest


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("model", "", ("model",)),
        ("messages", [], ("messages",)),
        ("messages", [{"role": "robot", "content": "x"}], ("messages", 0, "role")),
        ("messages", [{"role": "user", "content": 5}], ("messages", 0, "content")),
        ("messages", [{"role": "user", "content": [{"text": "x"}]}], ("messages", 0, "content", 0, "type")),
        ("messages", [{"role": "user", "content": "\ud800"}], ()),
        ("temperature", 2.5, ("temperature",)),
        ("temperature", "1", ("temperature",)),
        ("max_tokens", 0, ("max_tokens",)),
        ("n", 129, ("n",)),
        ("stop", ["a", "b", "c", "d", "e"], ("stop",)),
        ("stream", "yes", ("stream",)),
        ("tool_choice", 5, ("tool_choice",)),
        ("tools", [{"type": "function", "function": {"name": ""}}], ("tools", 0, "function", "name")),
    ],
)
def test_a_wrong_field_is_named_by_its_path(field: str, value: object, where: tuple[str | int, ...]) -> None:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}], field: value}
    text = orjson.dumps(body) if where else b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}'
    with pytest.raises(ValidationError) as caught:
        ChatCompletionRequest.model_validate_json(text)
    assert [error["loc"] for error in caught.value.errors()] == [where]


@pytest.mark.parametrize("value", ["text", ["a", "b"], [1, 2], [[1, 2], [3]]])
def test_the_vendors_four_kinds_of_input_are_taken(value: Any) -> None:
    assert EmbeddingsRequest.model_validate_json(orjson.dumps({"model": "m", "input": value})).input == value


@pytest.mark.parametrize(
    "value", ["", [], [""], ["a", 1], [1, [2]], [[]], [1.5], [True], None, {}, ["x"] * 2_049, [-1], [[1], ["a"]]]
)
def test_any_other_input_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        EmbeddingsRequest.model_validate_json(orjson.dumps({"model": "m", "input": value}))
    assert [error["loc"] for error in caught.value.errors()] == [("input",)]
