"""What people look at: the playground at ``/`` and the interactive documentation, all served from here."""

from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.responses import FileResponse, Response

PLAYGROUND = Path(__file__).parent.parent / "playground"
DOCS_ASSETS = Path(fastapi_offline.__file__).parent / "static"
"""Swagger UI and ReDoc as the package ships them, so that the documentation works without the internet."""

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self' ws: wss:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_docs(app: FastAPI) -> None:
    """Serve ``/docs`` and ``/redoc``."""
    router = APIRouter(include_in_schema=False)
    openapi_url = app.openapi_url or "/openapi.json"

    @router.get("/docs")
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url=openapi_url,
            title=f"{app.title}: API",
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon.png",
        )

    @router.get("/redoc")
    async def redoc() -> Response:
        return get_redoc_html(
            openapi_url=openapi_url,
            title=f"{app.title}: API",
            redoc_js_url="/docs/assets/redoc.standalone.js",
            redoc_favicon_url="/docs/assets/favicon.png",
            with_google_fonts=False,
        )

    app.include_router(router)
    app.mount("/docs/assets", StaticFiles(directory=DOCS_ASSETS), name="docs-assets")


def add_playground(app: FastAPI) -> None:
    """Serve the playground at ``/``."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def playground() -> Response:
        return FileResponse(PLAYGROUND / "index.html", headers=PAGE_HEADERS)

    app.include_router(router)
    app.mount("/playground", StaticFiles(directory=PLAYGROUND), name="playground")
