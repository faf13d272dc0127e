"""The path of a request, as routes know it."""

from starlette.types import Scope


def route_path(scope: Scope) -> str:
    """Return the path without the prefix under which a proxy publishes us (``--root-path``)."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    if prefix and path.startswith(prefix + "/"):
        return path.removeprefix(prefix)
    return path
