"""Makes the JSON schemas beside this file, by which kubeconform checks what the chart renders, without the network.

Run by hand when a release of Kubernetes or of a custom resource is added:

    python tests/chart/schemas/make.py --kubernetes 1.34=v1.34.0-local-strict/_definitions.json --crd httproutes.yaml …

The definitions come from the package kubernetes-validate, which has them from Kubernetes' OpenAPI; those of custom
resources from the projects that define them. README.md names the versions.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
Node = dict[str, Any]

KINDS = {
    "io.k8s.api.apps.v1.Deployment": "apps/v1",
    "io.k8s.api.apps.v1.StatefulSet": "apps/v1",
    "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler": "autoscaling/v2",
    "io.k8s.api.batch.v1.Job": "batch/v1",
    "io.k8s.api.core.v1.ConfigMap": "v1",
    "io.k8s.api.core.v1.Pod": "v1",
    "io.k8s.api.core.v1.Secret": "v1",
    "io.k8s.api.core.v1.Service": "v1",
    "io.k8s.api.core.v1.ServiceAccount": "v1",
    "io.k8s.api.networking.v1.Ingress": "networking.k8s.io/v1",
    "io.k8s.api.networking.v1.NetworkPolicy": "networking.k8s.io/v1",
    "io.k8s.api.policy.v1.PodDisruptionBudget": "policy/v1",
}
"""What the chart renders, and the apiVersion that it says."""
DROPPED = {"description", "format", "default", "example", "externalDocs"}


def kubernetes(version: str, path: Path) -> None:
    """Write a schema for each kind, with the definitions that it needs and no others."""
    definitions = json.loads(path.read_text())
    definitions = definitions.get("$defs") or definitions["definitions"]
    for name, api_version in KINDS.items():
        kind = name.rpartition(".")[2]
        needed = _closure(name, definitions)
        document: Node = {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "allOf": [{"$ref": f"#/definitions/{name}"}],
            "required": ["apiVersion", "kind", "metadata"],
            "properties": {"apiVersion": {"enum": [api_version]}, "kind": {"enum": [kind]}},
            "definitions": {item: _bare(definitions[item]) for item in sorted(needed)},
        }
        document["definitions"][name]["properties"].pop("status", None)
        group = api_version.replace("/", "-").replace(".k8s.io", "")
        _write(HERE / f"v{version}" / f"{kind.lower()}-{group}.json", document)


def custom(path: Path) -> None:
    """Write a schema for each version of a custom resource."""
    definition = yaml.safe_load(path.read_text())["spec"]
    kind = definition["names"]["kind"].lower()
    for version in definition["versions"]:
        schema = _bare(version["schema"]["openAPIV3Schema"], close=True)
        schema["properties"].pop("status", None)
        schema["properties"]["metadata"] = {"type": "object"}
        _write(HERE / "custom" / f"{definition['group']}_{kind}_{version['name']}.json", schema)


def _closure(name: str, definitions: Node) -> set[str]:
    found = {name}
    waiting: list[Any] = [
        {key: value for key, value in definitions[name].get("properties", {}).items() if key != "status"}
    ]
    while waiting:
        match waiting.pop():
            case dict() as node:
                target = str(node.get("$ref", "")).rpartition("/")[2]
                if target and target not in found:
                    found.add(target)
                    waiting.append(definitions[target])
                waiting += node.values()
            case list() as items:
                waiting += items
    return found


def _bare(node: Any, *, close: bool = False) -> Any:
    """Leave out what no validator needs; close the objects of a custom resource, as the API server does by pruning."""
    if isinstance(node, list):
        return [_bare(item, close=close) for item in node]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("$ref"), str):
        return {"$ref": f"#/definitions/{node['$ref'].rpartition('/')[2]}"}
    kept: Node = {}
    for key, value in node.items():
        if key in {"properties", "patternProperties"}:
            kept[key] = {name: _bare(item, close=close) for name, item in value.items()}
        elif key not in DROPPED and not key.startswith("x-kubernetes-"):
            kept[key] = _bare(value, close=close)
    open_ended = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if close and "properties" in node and node.get("type") == "object" and not open_ended:
        kept["additionalProperties"] = False
    return kept


def _write(path: Path, document: Node) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, separators=(",", ":"), sort_keys=True) + "\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubernetes", action="append", default=[], metavar="VERSION=FILE")
    parser.add_argument("--crd", action="append", default=[], type=Path)
    parsed = parser.parse_args()
    for given in parsed.kubernetes:
        version, _, path = given.partition("=")
        kubernetes(version, Path(path))
    for path in parsed.crd:
        custom(path)


if __name__ == "__main__":
    main()
