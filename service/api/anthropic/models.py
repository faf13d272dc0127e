"""The list of models in Anthropic's shape, for callers that send ``anthropic-version``."""

from collections.abc import Sequence
from typing import Any, Literal

import orjson
from pydantic import BaseModel

UNKNOWN_DATE = "1970-01-01T00:00:00Z"
"""The vendor's own value where a release date is not known (API reference, models)."""


class AnthropicModel(BaseModel):
    """A model that may be asked."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"] = "active"


class AnthropicModelPage(BaseModel):
    """One page of them."""

    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


def model_fields(name: str) -> dict[str, Any]:
    """Return one model."""
    return {"type": "model", "id": name, "display_name": name, "created_at": UNKNOWN_DATE, "lifecycle": "active"}


def model_page(names: Sequence[str], *, limit: int, after_id: str | None, before_id: str | None) -> bytes:
    """Return up to ``limit`` models: the first ones after ``after_id``, or the last ones before ``before_id``.

    A name that is not there gives an empty page.
    """
    if before_id is not None:
        rest = names[: _position(names, before_id, missing=0)]
        page = rest[-limit:]
    else:
        rest = names if after_id is None else names[_position(names, after_id, missing=len(names)) + 1 :]
        page = rest[:limit]
    return orjson.dumps(
        {
            "data": [model_fields(name) for name in page],
            "has_more": len(rest) > len(page),
            "first_id": page[0] if page else None,
            "last_id": page[-1] if page else None,
        }
    )


def _position(names: Sequence[str], name: str, *, missing: int) -> int:
    return names.index(name) if name in names else missing
