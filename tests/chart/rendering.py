"""What helm makes of the chart with some values, as objects; or why it refuses them."""

import functools
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.chart.api_server import api_server
from tests.chart.tools import find

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "llm-api"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
KUBERNETES = "1.34.0"
TIMEOUT_S = 60

Object = dict[str, Any]


class Refused(Exception):  # noqa: N818 - it reads as what happened
    """Helm refused the values."""


def render(values: Mapping[str, Any] | None = None, *files: Path) -> list[Object]:
    """Render the release ``try``; raise ``Refused`` with helm's own words."""
    return list(yaml.safe_load_all(render_text(json.dumps(values or {}), *files)))


def render_over(live: Sequence[Object], values: Mapping[str, Any] | None = None) -> list[Object]:
    """Render as for an upgrade, on a cluster where these objects are."""
    with api_server([_owned(item) for item in live]) as address:
        text = _template(
            json.dumps(values or {}), "--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", address
        )
    return list(yaml.safe_load_all(text))


def _owned(item: Object) -> Object:
    """Mark an object as of the release: of another's helm 4 takes no notice but to fail."""
    labels = {"app.kubernetes.io/managed-by": "Helm"}
    annotations = {"meta.helm.sh/release-name": "try", "meta.helm.sh/release-namespace": "default"}
    metadata = item["metadata"]
    annotations |= metadata.get("annotations", {})
    return {**item, "metadata": {**metadata, "labels": labels, "annotations": annotations}}


@functools.cache
def render_text(values: str = "{}", *files: Path) -> str:
    """Return what helm prints."""
    return _template(values, *(option for file in files for option in ("-f", str(file))))


def render_as(release: str, values: Mapping[str, Any] | None = None) -> list[Object]:
    """Render a release of another name."""
    return list(yaml.safe_load_all(_template(json.dumps(values or {}), release=release)))


def _template(values: str, *options: str, release: str = "try") -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as given:
        given.write(values)
        given.flush()
        chart = (str(CHART), "--kube-version", KUBERNETES)
        return run("helm", "template", release, *chart, *options, "-f", given.name)


def run(name: str, *arguments: str, stdin: str | None = None) -> str:
    """Run a tool to its end; return what it prints."""
    program = find(name)
    assert program is not None
    command = [program, *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def example(path: Path) -> list[Object]:
    """Render an example; what is meant for on top of another one, on top of it."""
    below = [CHART / "examples" / "laptop.yaml"] if path.name == "laptop-openai.yaml" else []
    return render(None, *below, path)


def one(objects: list[Object], kind: str, name: str = "try-llm-api") -> Object:
    """Return the object of a kind and name."""
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    assert len(found) == 1, [(item["kind"], item["metadata"]["name"]) for item in objects]
    return found[0]


def kinds(objects: list[Object]) -> set[str]:
    """Return the kinds."""
    return {item["kind"] for item in objects}


def settings(objects: list[Object]) -> Object:
    """Return the service's settings in the ConfigMap."""
    (found,) = (item for item in objects if item["kind"] == "ConfigMap" and "config.yaml" in item["data"])
    tree: Object = yaml.safe_load(found["data"]["config.yaml"])
    return tree


def pod(objects: list[Object], name: str = "try-llm-api", kind: str = "Deployment") -> Object:
    """Return a workload's pod template."""
    template: Object = one(objects, kind, name)["spec"]["template"]
    return template


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Go through the specs of all pods."""
    for item in objects:
        if item["kind"] == "Pod":
            yield item["metadata"]["name"], item["spec"]
        elif item["kind"] in {"Deployment", "StatefulSet", "Job"}:
            yield item["metadata"]["name"], item["spec"]["template"]["spec"]
