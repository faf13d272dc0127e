"""The application: lifespan, middleware order, error rendering, routers; nothing else."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypedDict

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from service import __version__
from service.api import chat, generate, health, jobs, pages, stream, streams, tickets, usage, ws
from service.api.anthropic.routes import router as anthropic_router
from service.api.direct import DirectRoutes
from service.api.errors import on_http_exception, on_service_error, on_validation_error
from service.api.middleware import IntakeMiddleware, RequestMiddleware
from service.api.openai.batches import router as openai_batches_router
from service.api.openai.files import router as openai_files_router
from service.api.openai.routes import router as openai_router
from service.api.openapi import completed_openapi
from service.config import Profile, Settings
from service.errors import ServiceError
from service.resources import Resources
from service.shutdown import drained_at_the_end
from service.wiring import open_resources

EXPOSED_HEADERS = (
    "Idempotency-Replayed",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Server-Timing",
    "Traceparent",
    "X-Request-ID",
    "X-Stream-ID",
)
"""What a page of an allowed origin may read beside the body."""

Opener = Callable[[Settings], AbstractAsyncContextManager[Resources]]


class State(TypedDict):
    """What the lifespan gives to every request."""

    resources: Resources


def create_app(settings: Settings, opener: Opener = open_resources) -> FastAPI:
    """Make the application. It opens nothing until its lifespan starts; a test passes another ``opener``."""
    app = _bare_app(settings, opener)
    # The last one added is the outermost: the id of a request is on every answer, CORS headers on every one but a
    # defect's, and the size is looked at before anything is read. Probes do not come so far.
    app.add_middleware(
        DirectRoutes,
        routers=(generate.router, chat.router, openai_router, anthropic_router),
        overrides=app.dependency_overrides,
    )
    app.add_middleware(
        IntakeMiddleware,
        max_body_bytes=settings.server.max_body_bytes,
        uploads={"/v1/files": settings.jobs.batch_file_bytes_max},
    )
    if settings.cors.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors.origins),
            allow_credentials=settings.cors.credentials,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=list(EXPOSED_HEADERS),
        )
    app.add_middleware(RequestMiddleware)
    app.add_middleware(health.ProbeMiddleware)
    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    for module in (generate, chat, stream, streams, jobs, tickets, usage, ws, health):
        app.include_router(module.router)
    app.include_router(openai_router)
    app.include_router(openai_files_router)
    app.include_router(openai_batches_router)
    app.include_router(anthropic_router)
    pages.add_docs(app)
    playground = settings.server.playground
    if playground or (playground is None and settings.profile is Profile.DEVELOPMENT):
        pages.add_playground(app)
    app.openapi = completed_openapi(app)  # type: ignore[method-assign] # FastAPI's documented way to extend it
    return app


def create_worker_app(settings: Settings, opener: Opener = open_resources) -> FastAPI:
    """Make what a worker of background jobs serves: probes, and nothing else."""
    app = _bare_app(settings, opener)
    app.add_middleware(RequestMiddleware)
    app.add_middleware(health.ProbeMiddleware)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.include_router(health.router)
    return app


def _bare_app(settings: Settings, opener: Opener) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        async with opener(settings) as resources, drained_at_the_end(resources.drain, resources.metrics):
            yield {"resources": resources}

    return FastAPI(
        title="llm-api",
        version=__version__,
        description="One production HTTP API in front of large language models.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
