"""Reading a JSON body: after authentication, in one validating step, with every fault named by its field."""

import time
from collections.abc import Mapping
from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError

from service.api.errors import invalid_request
from service.errors import InvalidRequest

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, model: type[M]) -> M:
    """Read and validate the body; raise ``InvalidRequest`` that names each wrong field, or ``RequestTooLarge``."""
    body = await request.body()
    request.scope["received_at"] = time.monotonic()
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_context=False, include_input=False)) from None


async def read_fields(request: Request) -> Mapping[str, Any]:
    """Read the body as the caller wrote it, unknown fields included; call it after :func:`read_body`."""
    try:
        fields = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise InvalidRequest.at("body", f"not JSON: {error}", kind="json_invalid") from None
    if not isinstance(fields, dict):
        raise InvalidRequest.at("body", "must be a JSON object", kind="json_type")
    return fields


def documented_body(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """Describe the body in OpenAPI (a route's ``openapi_extra``), since FastAPI does not read it itself."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}
