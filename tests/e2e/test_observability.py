"""What the chart brings for Prometheus and Grafana, on an API server that knows the kinds, and the metrics behind."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.cluster import NAME, ROOT, Cluster, Namespace

pytestmark = pytest.mark.timeout(600)

ON = {"enabled": True}
SHOWN = {"prometheusRule": ON, "dashboards": ON}
GROUP = "monitoring.coreos.com"
PLURALS = {"ServiceMonitor": "servicemonitors", "PodMonitor": "podmonitors", "PrometheusRule": "prometheusrules"}


@pytest.fixture
def operator_kinds(cluster: Cluster) -> Iterator[None]:
    """Teach the API server the operator's kinds, unless it knows them; nothing acts on them."""
    known = cluster.kubectl("get", "crds", "-o", "name")
    made = [kind for kind, plural in PLURALS.items() if f"/{plural}.{GROUP}" not in known]
    for kind in made:
        cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(_definition(kind)))
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{PLURALS[kind]}.{GROUP}", "--timeout=60s")
    try:
        yield
    finally:
        for kind in made:
            cluster.kubectl("delete", "crd", f"{PLURALS[kind]}.{GROUP}")


def test_rules_monitors_and_dashboards_are_accepted_and_their_metrics_exist(
    namespace: Namespace, operator_kinds: None
) -> None:
    del operator_kinds
    namespace.install({"metrics": {"podMonitor": ON, **SHOWN}})
    assert len(namespace.get("podmonitors")["items"]) == 1
    namespace.install({"metrics": {"serviceMonitor": ON, **SHOWN}})
    rules = namespace.get("prometheusrules")["items"]
    monitors = namespace.get("servicemonitors,podmonitors")["items"]
    boards = [item for item in namespace.get("configmaps")["items"] if "-dashboard-" in item["metadata"]["name"]]
    assert (len(rules), len(monitors), len(boards)) == (2, 1, 3)
    expressions = [rule["expr"] for item in rules for group in item["spec"]["groups"] for rule in group["rules"]]
    assert len(expressions) > 100
    with namespace.reached() as address:
        key = namespace.caller_key()
        answer = httpx.post(f"{address}/generate", json={"prompt": "Hi"}, headers={"x-api-key": key}, timeout=30)
        assert answer.status_code == 200
    with namespace.reached(f"service/{NAME}-metrics", 9090) as address:
        text = httpx.get(f"{address}/metrics", timeout=30).text
    exposed = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    named = {name for expression in expressions for name in re.findall(r"\bllm_api_\w+\b(?!:)", expression)}
    assert len(named) > 20
    assert {name for name in named if not exposed & {name, re.sub(r"_(bucket|sum|count|total)$", "", name)}} == set()


def _definition(kind: str) -> dict[str, Any]:
    """Make the definition of a kind from the schema by which the chart's tests validate it."""
    path = ROOT / "tests" / "chart" / "schemas" / "custom" / f"{GROUP}_{kind.lower()}_v1.json"
    schema = _structural(json.loads(path.read_text("utf-8")))
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": kind, "listKind": f"{kind}List", "plural": PLURALS[kind], "singular": kind.lower()}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURALS[kind]}.{GROUP}"},
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
    }


def _structural(schema: Any) -> Any:
    """Say a JSON Schema as the API server takes it: it prunes what is not named, and knows no union of types."""
    if isinstance(schema, list):
        return [_structural(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    union = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(union, list) and {item.get("type") for item in union} == {"integer", "string"}:
        return {"x-kubernetes-int-or-string": True}
    made = {name: _structural(value) for name, value in schema.items()}
    if made.get("additionalProperties") is False:
        del made["additionalProperties"]
    return made
