"""The OpenAPI document: FastAPI's own, completed by what our routes do themselves."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from service.api.schemas import Problem

_BODY = ("requestBody", "content", "application/json", "schema")
VENDOR_PREFIX = "/v1/"
_OPEN_PATHS = frozenset({"/health", "/ready"})
"""Paths that need no credential."""


def completed_openapi(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """Return what ``app.openapi`` should be: bodies, problems and credentials described too."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            components = document.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(problem.pop("$defs", {}))
            schemas["Problem"] = problem
            components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    if path.startswith(VENDOR_PREFIX):
                        # FastAPI's own guess; there a wrong parameter is a 400 in the vendor's shape.
                        operation["responses"].pop("422", None)
                    if path not in _OPEN_PATHS:
                        operation["security"] = [{"bearer": []}]
                    body: Any = operation
                    for key in _BODY:
                        body = body.get(key) if isinstance(body, dict) else None
                    if isinstance(body, dict):
                        schemas.update(body.pop("$defs", {}))
            app.openapi_schema = document
        return app.openapi_schema

    return openapi
