"""The short way to the routes that generate: past the framework's routing and dependencies, to the same functions.

Matching some thirty routes in turn and solving four dependencies costs about a fifth of a plain request. A route that
asks for nothing but what :data:`_GIVEN` lists can be called without either; whatever else it declares is documentation.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, get_type_hints

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.deps import AllResources, Generation, TimedContext, get_timed_context
from service.api.errors import render_error
from service.api.outcome import HAS_BEGUN
from service.api.paths import route_path
from service.errors import ServiceError
from service.resources import Resources

Endpoint = Callable[..., Awaitable[Response]]

_GIVEN: Mapping[str, Any] = {
    "request": Request,
    "resources": AllResources,
    "generation": Generation,
    "context": TimedContext,
    "return": Response,
}
"""What a function may ask for to be called directly, all of it."""


class DirectRoutes:
    """Calls the functions of such routes; everything else goes on to the framework.

    So does everything while dependencies are overridden, as tests do. It is the innermost middleware: what the others
    add to an answer is added here too.
    """

    def __init__(self, app: ASGIApp, *, routers: Iterable[APIRouter], overrides: Mapping[Any, Any]) -> None:
        """``overrides`` are the application's own, which may change."""
        self._app = app
        self._overrides = overrides
        self._routes = {
            (method, route.path): route
            for router in routers
            for route in direct_routes(router)
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        route = None
        if scope["type"] == "http" and not self._overrides:
            route = self._routes.get((scope["method"], route_path(scope)))
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        try:
            response = await _answer(route.endpoint, Request(scope, receive))
            await response(scope, receive, send)
        except ServiceError as error:
            if scope.get(HAS_BEGUN):
                raise
            await render_error(error, scope)(scope, receive, send)


async def _answer(endpoint: Endpoint, request: Request) -> Response:
    resources: Resources = request.state.resources
    return await endpoint(
        request=request,
        resources=resources,
        generation=resources.generation,
        context=await get_timed_context(request, resources),
    )


def direct_routes(router: APIRouter) -> list[APIRoute]:
    """Return the routes of a router that can be called directly: no parameters in the path, and what is given here."""
    return [
        route
        for route in router.routes
        if isinstance(route, APIRoute)
        and "{" not in route.path
        and not route.dependencies
        and get_type_hints(route.endpoint, include_extras=True) == _GIVEN
    ]
