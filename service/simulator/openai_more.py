"""OpenAI's smaller routes: embeddings and models."""

from array import array
from base64 import b64encode
from hashlib import shake_256
from typing import Any, Final

import orjson

from service.simulator.openai_errors import invalid, missing, model_not_found, not_json, wrong_type
from service.simulator.openai_read import read_model
from service.simulator.reading import read_object
from service.simulator.text import count_tokens

MODELS: Final = (
    ("gpt-4o", 1715367049),
    ("gpt-4o-mini", 1721172741),
    ("text-embedding-3-small", 1705948997),
    ("text-embedding-3-large", 1705953180),
    ("sim", 1704067200),
)
_DIMENSIONS: Final = {"text-embedding-3-large": 3072}
_USUAL_DIMENSIONS: Final = 1536
_MOST_INPUTS: Final = 2048


def list_models() -> bytes:
    """Return the body of GET /v1/models."""
    return orjson.dumps({"object": "list", "data": [_model(name, created) for name, created in MODELS]})


def get_model(name: str) -> bytes:
    """Return the body of GET /v1/models/{name}. Raises Refusal for one that is not listed."""
    for known, created in MODELS:
        if known == name:
            return orjson.dumps(_model(name, created))
    raise model_not_found(name)


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "system"}


class EmbeddingAsk:
    """One validated request for embeddings."""

    __slots__ = ("base64", "dimensions", "input_tokens", "inputs", "model")

    def __init__(self, body: bytes) -> None:
        data = read_object(body, not_json)
        self.model = read_model(data)
        self.inputs = _read_inputs(data)
        self.input_tokens = sum(count_tokens(x) if isinstance(x, str) else len(x) for x in self.inputs)
        encoding = data.get("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            raise invalid(
                f"Invalid value: '{encoding}'. Supported values are: 'float' and 'base64'.", param="encoding_format"
            )
        self.base64 = encoding == "base64"
        usual = _DIMENSIONS.get(self.model.partition(";")[0], _USUAL_DIMENSIONS)
        dimensions = data.get("dimensions") or usual
        if not isinstance(dimensions, int):
            raise wrong_type("dimensions", "an integer", dimensions)
        if not 0 < dimensions <= usual:
            raise invalid(
                f"Invalid value for 'dimensions' = {dimensions}. Must be between 1 and {usual}.", param="dimensions"
            )
        self.dimensions = dimensions

    def answer(self, seed: int) -> bytes:
        """Return the body of the answer."""
        data = []
        for index, entry in enumerate(self.inputs):
            vector = embed(f"{seed}\x00{self.model}\x00{entry}", self.dimensions)
            shown = b64encode(vector.tobytes()).decode() if self.base64 else list(vector)
            data.append({"object": "embedding", "index": index, "embedding": shown})
        usage = {"prompt_tokens": self.input_tokens, "total_tokens": self.input_tokens}
        return orjson.dumps({"object": "list", "data": data, "model": self.model, "usage": usage})


def _read_inputs(data: dict[str, Any]) -> list[str | list[int]]:
    given = data.get("input")
    if given is None:
        raise missing("input")
    if isinstance(given, str):
        inputs: list[Any] = [given]
    elif isinstance(given, list) and given and all(isinstance(entry, int) for entry in given):
        inputs = [given]
    elif isinstance(given, list):
        inputs = given
    else:
        raise wrong_type("input", "a string or an array", given)
    if not 0 < len(inputs) <= _MOST_INPUTS:
        raise invalid(f"'$.input' is invalid: it must have from 1 to {_MOST_INPUTS} entries.", param="input")
    for entry in inputs:
        if not entry or not isinstance(entry, str | list):
            raise invalid("'$.input' is invalid. Please check the API reference: an entry is empty.", param="input")
    return inputs


def embed(text: str, dimensions: int) -> "array[float]":
    """Return a vector of length 1 in 32-bit floats, a function of the text."""
    raw = array("h", shake_256(text.encode()).digest(2 * dimensions))
    length = sum(number * number for number in raw) ** 0.5 or 1.0
    return array("f", [number / length for number in raw])
