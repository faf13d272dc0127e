"""No value is accepted and then dropped in silence: each one changes what is rendered, where its feature is on."""

import json
from typing import Any

import pytest
import yaml

from tests.chart.rendering import CHART, ROOT, Refused, render_text

KEY = {"auth": {"keys": {"alice": {"key": "sha256:" + "0" * 64}}}}
"""Otherwise each rendering would make another key."""
ON: dict[str, Any] = {"enabled": True}
NETWORK = {"networkPolicy": ON}
REDIS = {"redis": {"existingSecret": "store"}}
CONTEXTS: list[dict[str, Any]] = [
    {"config": KEY},
    {
        "config": KEY,
        "redis": ON,
        "autoscaling": ON,
        "httpRoute": {**ON, "parentRefs": [{"name": "public"}]},
        "ingress": {**ON, "hosts": ["a.example"]},
        "networkPolicy": ON,
        "metrics": {"serviceMonitor": ON, "prometheusRule": ON, "dashboards": ON},
    },
    {
        "config": KEY,
        **REDIS,
        **NETWORK,
        "keda": {**ON, "serverAddress": "http://p:9090"},
        "metrics": {"podMonitor": ON},
    },
    {"config": KEY, "loadTest": {**ON, "callerKeySecret": "load"}},
    {"callers": {"existingSecret": "mine"}, "tests": {"callerKeySecret": "mine"}, "serviceAccount": {"create": False}},
]
"""What is on; a value has to do something in one of them."""

OTHER: dict[str, Any] = {
    "autoscaling.behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}},
    "autoscaling.metrics": [
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 1}}}
    ],
    "command": ["other"],
    "config": {"auth": {"ticket_ttl_s": 5}},
    "configUpdates": "live",
    "dnsConfig": {"searches": ["corp.example"]},
    "dnsPolicy": "Default",
    "extraContainers": [{"name": "a", "image": "b"}],
    "extraEnv": [{"name": "A", "value": "b"}],
    "extraEnvFrom": [{"configMapRef": {"name": "a"}}],
    "extraInitContainers": [{"name": "a", "image": "b"}],
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}],
    "extraVolumeMounts": [{"name": "a", "mountPath": "/a"}],
    "extraVolumes": [{"name": "a", "emptyDir": {}}],
    "global.imagePullSecrets": ["registry"],
    "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a.example"]}],
    "httpRoute.hostnames": ["b.example"],
    "httpRoute.parentRefs": [{"name": "other"}],
    "image.digest": "sha256:" + "b" * 64,
    "image.pullPolicy": "Always",
    "ingress.hosts": ["b.example"],
    "ingress.tls": [{"hosts": ["a.example"]}],
    "keda.fallbackReplicas": 7,
    "keda.serverAddress": "http://q:9090",
    "listenAddress": "::",
    "loadTest.args": ["--rate", "9"],
    "loadTest.image.digest": "sha256:" + "b" * 64,
    "loadTest.image.pullPolicy": "Always",
    "loadTest.scenario": {
        "name": "a",
        "arrivals": {"kind": "closed", "steps": [{"concurrency": 2, "duration_s": 1}]},
        "mix": {"stream": 1},
    },
    "loadTest.masterResources": {"limits": {"memory": "999Mi"}},
    "networkPolicy.providerPorts": [8443],
    "priorityClassName": "high",
    "providerKeys": {"openai": {"existingSecret": "a", "keys": ["b"]}},
    "redis.existingSecret": "other",
    "redis.image.digest": "sha256:" + "b" * 64,
    "redis.image.pullPolicy": "Always",
    "redis.maxmemory": "1gb",
    "redis.persistence.size": "9Gi",
    "redis.url": "redis://other:6379",
    "replicas": 2,
    "runAsUser": 1234,
    "service.type": "NodePort",
    "termination.gracePeriodSeconds": 999,
    "topologySpreadConstraints": [{"maxSkew": 2, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule"}],
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "webhookSecrets.keys": ["other"],
}
"""Another value than the default, where its type does not say one."""
WITH: dict[str, dict[str, Any]] = {
    "callers.key": {"callers": {"existingSecret": "mine"}},
    "providerKeys": {"config": {**KEY, "providers": {"openai": {"kind": "openai"}}}},
    "replicas": REDIS,
    "simulator.enabled": {"config": {**KEY, "providers": {"openai": {"kind": "openai"}}}},
    "tests.model": {"config": KEY},
    "redis.existingSecretKey": REDIS,
    "webhookSecrets.existingSecret": {"webhookSecrets": {"existingSecret": "mine", "keys": ["a"]}},
    "webhookSecrets.keys": {"webhookSecrets": {"existingSecret": "mine", "keys": ["a"]}},
}
"""What it takes besides."""


def leaves(tree: dict[str, Any], above: str = "") -> list[str]:
    words = {"$ref", "anyOf", "enum", "propertyNames"}
    found = []
    for name, node in tree.items():
        leaf = bool(words & node.keys()) or isinstance(node.get("type"), str | list)
        found += [above + name] if leaf else leaves(node, f"{above}{name}.")
    return found


SCHEMA = yaml.safe_load((ROOT / "charts" / "schema.yaml").read_text())
del SCHEMA["$defs"]
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())


def other(name: str) -> Any:
    """Return a value that is not the default."""
    if name in OTHER:
        return OTHER[name]
    value = DEFAULTS
    for part in name.split("."):
        value = value[part]
    last = name.rpartition(".")[2]
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return "7s" if last.endswith(("Timeout", "interval")) else "other"
        case list():
            return ["other"] if last in {"args", "command", "pullSecrets"} else [{"podSelector": {}}]
        case dict():
            return {
                "resources": {"limits": {"memory": "999Mi"}},
                "startup": {"failureThreshold": 99},
                "liveness": {"failureThreshold": 99},
                "readiness": {"failureThreshold": 99},
                "affinity": {"nodeAffinity": {}},
            }.get(last, {"a": "b"})
        case _:
            raise AssertionError(f"{name}: say in OTHER what else it can be")


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for name, value in above.items():
        result[name] = (
            merged(result[name], value) if isinstance(value, dict) and isinstance(result.get(name), dict) else value
        )
    return result


def changes_something(context: dict[str, Any], change: dict[str, Any]) -> bool:
    try:
        return render_text(json.dumps(context)) != render_text(json.dumps(merged(context, change)))
    except Refused:
        return False  # it does not go together with the context, which another one does


@pytest.mark.parametrize("name", leaves(SCHEMA))
def test_each_value_changes_what_is_rendered(name: str) -> None:
    contexts = [merged({"config": KEY}, WITH[name])] if name in WITH else CONTEXTS
    # What is on in a context is switched off there.
    others = [True, False] if name.endswith(".enabled") else [other(name)]
    assert any(changes_something(context, nested(name, value)) for context in contexts for value in others)


def nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    tree: dict[str, Any] = value
    return tree
