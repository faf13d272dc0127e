"""What is written down twice says the same twice."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from tests.chart.rendering import CHART, ROOT, example, kinds, one, render, run, settings
from tests.chart.tools import find

NEEDS = ("helm", "kustomize")
GENERATE = ROOT / "charts" / "generate.py"
OVERLAYS = ("simulator", "production")


def test_schema_table_and_k8s_are_as_generated() -> None:
    done = subprocess.run(
        [sys.executable, str(GENERATE), "--check"],
        env={"HELM": str(find("helm")), "HOME": str(Path.home())},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"run `python charts/generate.py`; it would change:\n{done.stdout}{done.stderr}"


def test_every_value_has_a_comment_and_a_schema() -> None:
    spec = importlib.util.spec_from_file_location("generate", GENERATE)
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    described = {name for name, _ in generate.value_comments()}
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    tree = yaml.safe_load((ROOT / "charts" / "schema.yaml").read_text())
    del tree["$defs"]
    assert _leaves(tree, generate._is_schema) == described
    for name in described:
        value = values
        for part in name.split("."):
            assert part in value, name
            value = value[part]


def _leaves(tree: dict[str, Any], is_leaf: Callable[[dict[str, Any]], bool], above: str = "") -> set[str]:
    found: set[str] = set()
    for name, node in tree.items():
        place = f"{above}{name}"
        found |= {place} if is_leaf(node) else _leaves(node, is_leaf, f"{place}.")
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_builds_what_helm_renders(overlay: str) -> None:
    built = {(item["kind"], item["metadata"]["name"]): item for item in _built(f"overlays/{overlay}")}
    rendered = [
        item
        for item in yaml.safe_load_all(
            run(
                "helm",
                "template",
                "llm-api",
                str(CHART),
                "--kube-version",
                "1.34.0",
                "--no-hooks",
                "-f",
                str(ROOT / f"k8s/values/{overlay}.yaml"),
            )
        )
        if item["kind"] != "ConfigMap"
    ]
    names = {(item["kind"], item["metadata"]["name"]) for item in rendered}
    assert names <= built.keys()
    assert {kind for kind, _ in built.keys() - names} <= {"ConfigMap", "Secret"}
    for item in rendered:
        theirs = item.get("spec", item)
        ours = built[item["kind"], item["metadata"]["name"]]
        ours = ours.get("spec", ours)
        if item["kind"] == "Deployment":
            assert _pod_without_config(ours) == _pod_without_config(theirs)
        elif "spec" in item:
            assert ours == theirs


def _built(folder: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(run("kustomize", "build", str(ROOT / "k8s" / folder))))


def _pod_without_config(spec: dict[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = yaml.safe_load(yaml.safe_dump(spec))
    template = copied["template"]
    template["metadata"]["annotations"].pop("llm-api/settings", None)
    for label in ("helm.sh/chart", "app.kubernetes.io/managed-by"):
        template["metadata"]["labels"].pop(label, None)
    for volume in template["spec"]["volumes"]:
        if volume["name"] == "config":
            del volume["configMap"]["name"]
    return copied


def test_the_values_schema_is_a_schema_and_takes_the_defaults() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema_rs.meta.validate(schema)
    jsonschema_rs.validate(schema, yaml.safe_load((CHART / "values.yaml").read_text()))


def test_the_laptop_example_is_the_default_made_smaller() -> None:
    laptop = example(CHART / "examples" / "laptop.yaml")
    assert kinds(laptop) == kinds(render())
    assert settings(laptop)["providers"] == settings(render())["providers"]
    assert one(laptop, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] < 120
