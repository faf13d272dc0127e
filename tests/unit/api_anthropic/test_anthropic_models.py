import json
from typing import Any

from anthropic.types import ModelInfo

from service.api.anthropic.models import model_page

NAMES = ["a", "b", "c", "d"]


def page(limit: int = 20, after_id: str | None = None, before_id: str | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(model_page(NAMES, limit=limit, after_id=after_id, before_id=before_id))
    return answer


def test_pages_forward_cover_every_model_once() -> None:
    first = page(limit=3)
    second = page(limit=3, after_id=first["last_id"])
    assert [model["id"] for model in first["data"] + second["data"]] == NAMES
    assert (first["has_more"], second["has_more"]) == (True, False)


def test_pages_backward_end_before_the_given_one() -> None:
    answer = page(limit=2, before_id="d")
    assert [model["id"] for model in answer["data"]] == ["b", "c"]
    assert (answer["first_id"], answer["last_id"], answer["has_more"]) == ("b", "c", True)


def test_an_unknown_name_gives_an_empty_page() -> None:
    empty = {"data": [], "has_more": False, "first_id": None, "last_id": None}
    assert page(after_id="x") == empty
    assert page(before_id="x") == empty


def test_entries_are_what_the_sdk_reads() -> None:
    [model] = page(limit=1)["data"]
    assert ModelInfo.model_validate(model).display_name == "a"
