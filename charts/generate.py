"""Makes what is written down twice: the chart's schema and table of values, and k8s/ for those who use kubectl alone.

``python charts/generate.py`` writes all of it; ``--check`` names what differs and fails. k8s/ takes helm: the one that
``HELM`` names, or the one on the PATH; without it, the rest is made. The tests hold the checkout to it.
"""
# ruff: noqa: INP001, T201 - a script, run by its path, which prints

import argparse
import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import override

# Python puts this file's folder on the path, not the one that `load` stands in.
sys.path.insert(0, str(Path(__file__).parents[1]))

from load.scenario import Scenario

CHARTS = Path(__file__).parent
CHART = CHARTS / "llm-api"
ROOT = CHARTS.parent
K8S = ROOT / "k8s"
SMOKE = CHART / "files" / "smoke.yaml"
"""What `helm test` runs as load: a chart holds its files itself."""

Node = dict[str, Any]
Files = dict[Path, str]

KUBERNETES = "1.34.0"
"""What k8s/ is rendered for; a helm that was built from its module takes itself for 1.20 otherwise."""

OVERLAYS = ("simulator", "production")
SETTINGS = "config.yaml"

NOT_TO_SET = {
    "ServerSettings": ("host", "port", "metrics_port", "metrics_host", "workers"),
    "DrainSettings": ("delay_s", "timeout_s"),
    "AdmissionSettings": ("replicas",),
    "JobSettings": ("worker",),
    "WebhookSettings": ("secrets", "secret_files"),
    "RedisSettings": ("url",),
    "AuthSettings": ("enabled", "keys_file"),
    "ProviderSettings": ("keys", "key_files"),
}
"""Settings that follow from the chart's own values, or that are secret and would stand in a ConfigMap."""
NO_SECTIONS = ("profile", "embedded")
"""The image is for production, which embeds nothing."""


def values_schema() -> str:
    """Return the text of values.schema.json."""
    tree = yaml.safe_load((CHARTS / "schema.yaml").read_text())
    definitions = tree.pop("$defs")
    comments = dict(value_comments())
    schema = _closed(tree, "", yaml.safe_load((CHART / "values.yaml").read_text()), comments)
    settings, theirs = _settings_schema()
    schema["required"].append("config")
    schema["properties"]["config"] = {"description": comments["config"], **settings}
    scenario, parts = _scenario_schema()
    schema["properties"]["loadTest"]["properties"]["scenario"] = {
        "description": comments["loadTest.scenario"],
        **scenario,
    }
    # A chart above this one shares it with all of its charts.
    schema["properties"]["global"]["additionalProperties"] = True
    document = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart llm-api",
        **schema,
        "$defs": definitions
        | {f"settings{name}": node for name, node in theirs.items()}
        | {f"load{name}": node for name, node in parts.items()},
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _closed(tree: Node, path: str, defaults: Node, comments: dict[str, str]) -> Node:
    """Make a schema of nested names: anything else is refused, and so is a null in place of what is needed."""
    properties: Node = {}
    required = [name for name, node in tree.items() if _is_needed(node, defaults[name])]
    for name, node in tree.items():
        place = f"{path}.{name}" if path else name
        if _is_schema(node):
            # Beside a reference, draft 7 knows no description.
            properties[name] = {"allOf": [node]} if "$ref" in node else dict(node)
        else:
            properties[name] = _closed(node, place, defaults[name], comments)
        if place in comments:
            properties[name] = {"description": comments[place], **properties[name]}
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


def _is_needed(node: Node, default: object) -> bool:
    """Tell whether a value must be there: Helm takes away what is set to null, with its default."""
    if not _is_schema(node):
        return True
    kind = node.get("type")
    return default not in ("", None, []) and not isinstance(default, dict) and not (kind and "null" in kind)


def _is_schema(node: Node) -> bool:
    words = ("$ref", "anyOf", "enum", "propertyNames")
    return any(word in node for word in words) or isinstance(node.get("type"), str | list)


def _settings_schema() -> tuple[Node, Node]:
    """Return the service's schema without what a chart must not set, and its definitions."""
    service = json.loads((ROOT / "docs" / "configuration.schema.json").read_text())
    definitions = service.pop("$defs")
    for name, fields in NOT_TO_SET.items():
        for field in fields:
            del definitions[name]["properties"][field]
    for section in NO_SECTIONS:
        del service["properties"][section]
    hashed = {
        "type": "string",
        "pattern": "^sha256:[0-9a-f]{64}$",
        "description": "In a Secret, a key may stand in clear.",
    }
    definitions["KeySettings"]["properties"]["key"] = hashed
    keys = definitions["AuthSettings"]["properties"]["keys"]
    definitions["AuthSettings"]["properties"]["keys"] = {
        "type": "object",
        "additionalProperties": {"anyOf": [{"$ref": "#/$defs/KeySettings"}, hashed]},
        "description": keys["description"],
    }
    unused = set(definitions) - _referenced(service, definitions)
    kept = {name: _translated(node) for name, node in definitions.items() if name not in unused}
    return {
        key: value
        for key, value in _translated(service).items()
        if key in {"type", "properties", "additionalProperties"}
    }, kept


def _scenario_schema() -> tuple[Node, Node]:
    """Return the schema of a run of load, and its definitions; an empty one is that which the chart brings."""
    tree = Scenario.model_json_schema()
    definitions = {name: _translated(node, "load") for name, node in tree.pop("$defs").items()}
    # The chart says whom to ask.
    del tree["properties"]["host"]
    tree["properties"]["arrivals"] = _by_kind(tree["properties"]["arrivals"])
    needed = {"if": {"minProperties": 1}, "then": {"required": tree.pop("required")}}
    return {**_translated({k: v for k, v in tree.items() if k != "description"}, "load"), **needed}, definitions


def _by_kind(union: Node) -> Node:
    """Hold what has a kind against the schema of that kind alone: of all of them, a message would name each."""
    kinds = {kind: {"$ref": place} for kind, place in union["discriminator"]["mapping"].items()}
    return {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": sorted(kinds)}},
        "allOf": [{"if": {"properties": {"kind": {"const": kind}}}, "then": node} for kind, node in kinds.items()],
    }


def _referenced(node: Any, definitions: Node) -> set[str]:
    found: set[str] = set()
    waiting = [node]
    while waiting:
        match waiting.pop():
            case dict() as tree:
                name = str(tree.get("$ref", "")).rpartition("/")[2]
                if name and name not in found:
                    found.add(name)
                    waiting.append(definitions[name])
                waiting += tree.values()
            case list() as items:
                waiting += items
    return found


def _translated(node: Any, room: str = "settings") -> Any:
    """Make draft 7 of a schema from Pydantic, without the words that only forms use."""
    if isinstance(node, list):
        return [_translated(item, room) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        return {"allOf": [{"$ref": f"#/$defs/{room}{name}"}]}
    kept = {
        key: _translated(value, room)
        for key, value in node.items()
        if key not in {"title", "format", "writeOnly", "default"}
    }
    if "patternProperties" in kept:
        # What fits no pattern is refused by the service; here, where the message can name it.
        kept["additionalProperties"] = False
    if "properties" in node:
        kept["properties"] = {key: _translated(value, room) for key, value in node["properties"].items()}
    return kept


def value_comments() -> Iterator[tuple[str, str]]:
    """Read values.yaml: the dotted name of each value, and the comment above it."""
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        stripped = line.strip()
        if stripped.startswith("# "):
            comment.append(stripped.removeprefix("# "))
            continue
        match = re.match(r"( *)([A-Za-z]\w*):", line)
        if match:
            indent = len(match[1])
            path = [(depth, name) for depth, name in path if depth < indent] + [(indent, match[2])]
            if comment:
                yield ".".join(name for _, name in path), " ".join(comment)
        comment = []


def values_table() -> str:
    """Return the table of the chart's README."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    lines = ["| value | default | meaning |", "|---|---|---|"]
    for name, comment in value_comments():
        value = values
        for part in name.split("."):
            value = value[part]
        default = "" if value in ("", None) else f"`{json.dumps(value, ensure_ascii=False)}`"
        lines.append(f"| `{name}` | {default} | {comment} |".replace("``", "`"))
    return "\n".join(lines) + "\n"


BEGIN, END = "<!-- values: made by charts/generate.py -->\n", "<!-- end of values -->\n"


def readme() -> str:
    """Return the chart's README with its table as it should be."""
    before, _, rest = (CHART / "README.md").read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n{values_table()}\n{END}{rest.partition(END)[2]}"


def kubernetes_files(helm: str) -> Files:
    """Return k8s/: a base, and what each overlay adds to it, all of it rendered by helm."""
    base, settings = _rendered(helm, K8S / "values" / "base.yaml")
    files: Files = {K8S / "base" / SETTINGS: settings}
    files |= {K8S / "base" / name: _yaml(item) for name, item in base.items()}
    files[K8S / "base" / "kustomization.yaml"] = _kustomization(
        resources=sorted(base), configMapGenerator=[{"name": CONFIG_NAME, "files": [SETTINGS]}]
    )
    for overlay in OVERLAYS:
        files |= _overlay(helm, overlay, base, settings)
    return files


CONFIG_NAME = "llm-api-config"


def _overlay(helm: str, overlay: str, base: Node, base_settings: str) -> Files:
    folder = K8S / "overlays" / overlay
    objects, settings = _rendered(helm, K8S / "values" / f"{overlay}.yaml")
    own = {name: item for name, item in objects.items() if name not in base}
    patches = []
    for name, item in base.items():
        target = {"kind": item["kind"], "name": item["metadata"]["name"]}
        if name not in objects:
            gone = {"apiVersion": item["apiVersion"], "kind": item["kind"], "metadata": {"name": target["name"]}}
            patches.append({"target": target, "patch": _yaml({"$patch": "delete"} | gone)})
        elif operations := list(_operations(item, objects[name], "")):
            patches.append({"target": target, "patch": _yaml(operations)})
    files: Files = {folder / name: _yaml(item) for name, item in own.items()}
    content: Node = {"resources": ["../../base", *sorted(own)], "patches": patches}
    if settings != base_settings:
        files[folder / SETTINGS] = settings
        content["configMapGenerator"] = [{"name": CONFIG_NAME, "behavior": "replace", "files": [SETTINGS]}]
    extra = K8S / "values" / f"{overlay}.kustomization.yaml"
    if extra.exists():
        content |= yaml.safe_load(extra.read_text())
    files[folder / "kustomization.yaml"] = _kustomization(**content)
    return files


def _rendered(helm: str, values: Path) -> tuple[Node, str]:
    """Return the objects by file name, without what is Helm's, and the settings."""
    command = [helm, "template", "llm-api", str(CHART), "--kube-version", KUBERNETES, "--no-hooks", "-f", str(values)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own chart
    if done.returncode:
        sys.exit(done.stderr)
    objects: Node = {}
    settings = ""
    for item in yaml.safe_load_all(done.stdout):
        _without_helm(item)
        if item["kind"] == "ConfigMap" and SETTINGS in item["data"]:
            settings = item["data"][SETTINGS]
            continue
        name = item["metadata"]["name"].removeprefix("llm-api").removeprefix("-")
        objects["-".join(filter(None, [name, item["kind"].lower()])) + ".yaml"] = item
    return objects, settings


def _without_helm(item: Node) -> None:
    labels = item["metadata"]["labels"]
    del labels["helm.sh/chart"], labels["app.kubernetes.io/managed-by"]
    spec = item.get("spec", {}).get("template", {})
    if spec:
        spec["metadata"].get("annotations", {}).pop("llm-api/settings", None)
        for volume in spec["spec"].get("volumes", []):
            if volume["name"] == "config":
                volume["configMap"]["name"] = CONFIG_NAME


def _operations(old: Any, new: Any, path: str) -> Iterator[Node]:
    """Tell what makes one of the other, as a JSON patch (RFC 6902); a list that differs is replaced whole."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new) == 1:
        # The one container of a pod: what differs in it says more than all of it.
        yield from _operations(old[0], new[0], f"{path}/0")
        return
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old != new:
            yield {"op": "replace", "path": path, "value": new}
        return
    for name in sorted(old.keys() | new.keys()):
        place = f"{path}/{name.replace('~', '~0').replace('/', '~1')}"
        if name not in new:
            yield {"op": "remove", "path": place}
        elif name not in old:
            yield {"op": "add", "path": place, "value": new[name]}
        else:
            yield from _operations(old[name], new[name], place)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such, and repeats what stands twice instead of pointing at it."""

    @override
    def ignore_aliases(self, data: Any) -> bool:
        """Never point."""
        del data
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _yaml(content: Any) -> str:
    return yaml.dump(copy.deepcopy(content), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def _kustomization(**content: Any) -> str:
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    return "# Made by charts/generate.py from k8s/values and the chart.\n" + _yaml(
        head | {k: v for k, v in content.items() if v}
    )


def find_helm() -> str | None:
    """Return the helm to use, if there is one."""
    return os.environ.get("HELM") or shutil.which("helm")


def wanted() -> tuple[Files, list[Path]]:
    """Return every file that is made, and the folders in which there is nothing else."""
    files = {
        CHART / "values.schema.json": values_schema(),
        CHART / "README.md": readme(),
        SMOKE: (ROOT / "load" / "scenarios" / "smoke.yaml").read_text(),
    }
    helm = find_helm()
    if helm is None:
        return files, []
    return files | kubernetes_files(helm), [K8S / "base", K8S / "overlays"]


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if anything differs")
    check = parser.parse_args().check
    if not check:
        # What k8s/ is rendered from has to pass the schema that is written with it.
        (CHART / "values.schema.json").write_text(values_schema())
        SMOKE.write_text((ROOT / "load" / "scenarios" / "smoke.yaml").read_text())
    files, folders = wanted()
    if not folders:
        print("k8s/ is left out: there is no helm", file=sys.stderr)
    stale = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path not in files]
    differing = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    for path in sorted(stale + differing):
        print(path.relative_to(ROOT))
    if check:
        return 1 if stale or differing else 0
    for path in stale:
        path.unlink()
    for path in differing:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
