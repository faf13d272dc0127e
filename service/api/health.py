"""``/health`` and ``/ready``: what Kubernetes asks. Neither needs a key, and neither waits for anything."""

from typing import Final, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service import __version__
from service.api.deps import Readiness
from service.api.middleware import PROBES
from service.api.paths import route_path
from service.api.request_id import request_id_from
from service.api.responses import json_response
from service.engine.readiness import Verdict
from service.resources import Resources

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
    """Why it is not simply ready, provider by provider."""


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
    """Say whether traffic should come, from what minimal LLM calls or real traffic showed to any process."""
    verdict = readiness.verdict
    return json_response(_state(verdict), status=_status(verdict))


def _state(verdict: Verdict) -> ReadyState:
    return ReadyState(ready=verdict.ready, status=verdict.status, reason=verdict.reason)


def _status(verdict: Verdict) -> int:
    return 200 if verdict.ready else 503


_HEALTH: Final = (200, Health().model_dump_json().encode())


class ProbeMiddleware:
    """Answers probes in front of everything else: whatever the routes, limits and logs cost, they do not wait for it.

    It takes the plain ``GET`` that probes send. Any other method, a page of another origin and a process that stops get
    the same answers from the routes, by the long way.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._verdict: Verdict | None = None
        self._ready: tuple[int, bytes] = _HEALTH

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["method"] != "GET" or (path := route_path(scope)) not in PROBES:
            await self._app(scope, receive, send)
            return
        resources: Resources = scope["state"]["resources"]
        given = None
        for name, value in scope["headers"]:
            if name == b"origin":
                break
            if name == b"x-request-id":
                given = value
        else:
            if not resources.drain.stage:
                await self._answer(path, resources, request_id_from(given), send)
                return
        await self._app(scope, receive, send)

    async def _answer(self, path: str, resources: Resources, request_id: str, send: Send) -> None:
        status, body = _HEALTH if path == "/health" else self._rendered(resources.readiness.verdict)
        # Probes do count; they have no place among the durations, which objectives are set for.
        resources.metrics.http_requests.labels(path, "GET", str(status)).inc()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id.encode()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _rendered(self, verdict: Verdict) -> tuple[int, bytes]:
        if verdict is not self._verdict:
            self._verdict = verdict
            self._ready = (_status(verdict), _state(verdict).model_dump_json(exclude_none=True).encode())
        return self._ready
