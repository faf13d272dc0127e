"""What people look at: the playground at ``/`` and the interactive documentation, all served from here."""

from http import HTTPStatus
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.types import Scope
from typing_extensions import override

PLAYGROUND = Path(__file__).parent.parent / "playground"
DOCS_ASSETS = Path(fastapi_offline.__file__).parent / "static"
"""Swagger UI as the package ships it, so that the documentation works without the internet."""

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self' ws: wss:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HARDENING = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
DOCS_HEADERS = {**_HARDENING, "Content-Security-Policy": "frame-ancestors 'none'"}
"""Swagger UI starts from a script in the page, so its policy forbids only framing."""
PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    **_HARDENING,
    "Cache-Control": "no-cache",
}
PLAYGROUND_FILES = frozenset({".css", ".js", ".svg"})
"""What the page is made of, beside itself."""


class PlaygroundFiles(StaticFiles):
    """The page's parts, asked for again after an upgrade, so that old and new ones are never mixed."""

    @override
    async def get_response(self, path: str, scope: Scope) -> Response:
        if Path(path).suffix not in PLAYGROUND_FILES:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        response = await super().get_response(path, scope)
        response.headers.update(PAGE_HEADERS)
        return response


def add_docs(app: FastAPI) -> None:
    """Serve ``/docs``. Not ReDoc, which fetches its maker's logo from elsewhere."""
    router = APIRouter(include_in_schema=False)
    openapi_url = app.openapi_url or "/openapi.json"

    @router.get("/docs")
    async def docs() -> Response:
        page = get_swagger_ui_html(
            openapi_url=openapi_url,
            title=f"{app.title}: API",
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon.png",
        )
        page.headers.update(DOCS_HEADERS)
        return page

    app.include_router(router)
    app.mount("/docs/assets", StaticFiles(directory=DOCS_ASSETS), name="docs-assets")


def add_playground(app: FastAPI) -> None:
    """Serve the playground at ``/``."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def playground() -> Response:
        return FileResponse(PLAYGROUND / "index.html", headers=PAGE_HEADERS)

    app.include_router(router)
    app.mount("/playground", PlaygroundFiles(directory=PLAYGROUND), name="playground")
