"""``/health`` and ``/ready``: what Kubernetes asks. Neither needs a key, and neither waits for anything."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from service import __version__
from service.api.deps import Readiness
from service.api.responses import json_response

router = APIRouter(tags=["probes"])


class Health(BaseModel):
    """The process runs."""

    status: Literal["ok"] = "ok"
    version: str = __version__


class ReadyState(BaseModel):
    """Whether traffic should come."""

    ready: bool
    status: Literal["starting", "ready", "degraded", "unready"]
    reason: str | None = None


@router.get("/health", response_model=Health)
async def health() -> Response:
    """Say that the process runs. It asks nothing else: a provider's outage must not restart pods."""
    return json_response(Health())


@router.get(
    "/ready",
    response_model=ReadyState,
    responses={503: {"model": ReadyState, "description": "Not ready, and why"}},
)
async def ready(readiness: Readiness) -> Response:
    """Say whether traffic should come, from what the last minimal LLM call or real traffic showed."""
    verdict = readiness.verdict
    state = ReadyState(ready=verdict.ready, status=verdict.status, reason=verdict.reason)
    return json_response(state, status=200 if verdict.ready else 503)
