"""Who may import whom. A new arrow fails here; if it is right, the table changes, and the commit says why."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICE = ROOT / "service"

EDGE = {"domain", "errors", "config"}
ENGINE = EDGE | {"telemetry", "providers.base", "auth.base", "admission.base", "accounting", "resilience", "queueing"}
ALLOWED: dict[str, set[str]] = {
    "config": set(),
    "errors": set(),
    "domain": {"errors"},
    "telemetry": EDGE,
    "accounting": EDGE,
    "resilience": EDGE,
    "admission": EDGE | {"telemetry", "storage.redis"},
    "queueing": EDGE | {"telemetry", "admission.base"},
    "providers": EDGE | {"telemetry"},
    "storage": EDGE | {"telemetry"},
    "auth": EDGE | {"telemetry"},
    "engine": ENGINE,
    "resources": EDGE | {"engine", "auth", "telemetry"},
    "api": EDGE | {"engine", "auth", "telemetry", "resources", "webhooks.address"},
    "reloading": {"config", "telemetry"},
    "webhooks": EDGE,
    "worker": EDGE | {"engine", "telemetry", "webhooks"},
    "wiring": EDGE
    | {"engine", "auth", "telemetry", "resources", "reloading", "providers", "storage", "admission", "worker"}
    | {"api.job_routes", "api.job_state", "webhooks"},
    "shutdown": {"engine", "config", "telemetry"},
    "app": {"api", "wiring", "resources", "shutdown", "config", "telemetry", "errors"},
    "asgi": {"app", "config", "wiring"},
    "serving": {"app", "wiring", "shutdown", "config", "errors", "telemetry"},
    "usage_command": {"config", "domain", "engine", "wiring"},
    "simulator": set(),
    "playground": set(),
    "cli": {"app", "serving", "simulator", "wiring", "config", "errors", "auth", "telemetry"},
    "__main__": {"cli", "serving"},
}
"""Room → rooms that it may import; a dotted name allows that module alone. ``service`` itself holds the version."""


def _modules() -> list[Path]:
    return sorted(SERVICE.rglob("*.py"))


def _room(module: str) -> str:
    return module.partition(".")[0]


def _imported(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("service."):
            found.add(node.module.removeprefix("service."))
        elif isinstance(node, ast.ImportFrom) and node.module == "service":
            found.update(alias.name for alias in node.names if _is_room(alias.name))
        elif isinstance(node, ast.Import):
            found.update(
                alias.name.removeprefix("service.") for alias in node.names if alias.name.startswith("service.")
            )
    return found


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    room = path.relative_to(SERVICE).with_suffix("").parts[0]
    if room == "__init__":
        room = "service"
    tree = ast.parse(path.read_text())
    allowed = ALLOWED.get(room, set())
    wrong = {
        module
        for module in _imported(tree)
        if _room(module) != room and _room(module) not in allowed and module not in allowed
    }
    assert not wrong, f"{room} may not import {sorted(wrong)}"


def _is_room(name: str) -> bool:
    return (SERVICE / name).is_dir() or (SERVICE / f"{name}.py").is_file()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from service import wiring, __version__", {"wiring"}),
        ("from service import domain", {"domain"}),
        ("from service.api.ws import router", {"api.ws"}),
        ("import service.app", {"app"}),
    ],
)
def test_every_form_of_import_is_seen(line: str, found: set[str]) -> None:
    assert _imported(ast.parse(line)) == found


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_absolute(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text()))
    assert not [node.lineno for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_stand_at_the_top(path: Path) -> None:
    inner = [
        node.lineno
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not inner, f"imports inside functions at lines {inner}"


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_middleware_that_breaks_streams(path: Path) -> None:
    source = path.read_text()
    assert "BaseHTTPMiddleware" not in source
    assert "@app.middleware" not in source


def test_only_providers_know_vendors() -> None:
    vendors = {"openai", "anthropic", "xllamacpp"}
    for path in _modules():
        imported = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        }
        room = path.relative_to(SERVICE).parts[0]
        assert not (imported & vendors) or room == "providers", path


def test_every_room_is_in_the_table() -> None:
    rooms = {path.relative_to(SERVICE).with_suffix("").parts[0] for path in _modules()} - {"__init__"}
    assert rooms == set(ALLOWED)
