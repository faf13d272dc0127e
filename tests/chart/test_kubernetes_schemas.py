"""Everything that is rendered, against the schemas of three releases of Kubernetes and of the custom resources."""

from pathlib import Path

import pytest
import yaml

from tests.chart.rendering import EXAMPLES, Refused, example, render, run

NEEDS = ("helm", "kubeconform")
SCHEMAS = Path(__file__).parent / "schemas"
RELEASES = sorted(path.name.removeprefix("v") for path in SCHEMAS.glob("v1.*"))
EVERYTHING = {
    "replicas": 2,
    "redis": {"enabled": True},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "public", "namespace": "gateways"}]},
    "ingress": {
        "enabled": True,
        "className": "some",
        "hosts": ["llm.example.com"],
        "tls": [{"hosts": ["llm.example.com"], "secretName": "tls"}],
    },
    "keda": {"enabled": True, "serverAddress": "http://prometheus:9090"},
    "networkPolicy": {"enabled": True, "metricsFrom": [{"namespaceSelector": {}}], "redisTo": [{"podSelector": {}}]},
    "metrics": {
        "annotations": True,
        "serviceMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True},
    },
    "image": {"pullSecrets": ["registry"]},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "llm", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "priorityClassName": "high",
    "extraEnv": [{"name": "A", "value": "b"}],
    "extraEnvFrom": [{"configMapRef": {"name": "more"}}],
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    "extraContainers": [{"name": "proxy", "image": "proxy:1"}],
    "extraInitContainers": [{"name": "first", "image": "first:1"}],
    "commonLabels": {"app.kubernetes.io/part-of": "assistant"},
    "commonAnnotations": {"example.com/owner": "platform"},
    "global": {"imageRegistry": "mirror.example:5000", "imagePullSecrets": ["hub", {"name": "mirror"}]},
    "listenAddress": "::",
    "dnsPolicy": "None",
    "dnsConfig": {"nameservers": ["10.0.0.10"], "options": [{"name": "ndots", "value": "2"}]},
    "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["provider.internal"]}],
    "runtimeClassName": "gvisor",
    "worker": {"enabled": True, "autoscaling": {"enabled": True}},
    "loadTest": {"enabled": True, "callerKeySecret": "load", "resultsClaim": "results"},
    "webhookSecrets": {"existingSecret": "webhooks", "keys": ["current", "next"]},
    "termination": {"gracePeriodSeconds": 900},
    "service": {
        "type": "LoadBalancer",
        "spec": {"ipFamilyPolicy": "PreferDualStack", "externalTrafficPolicy": "Local"},
    },
}


def kubeconform(release: str, documents: str) -> str:
    return run(
        "kubeconform", "-strict", "-summary", "-kubernetes-version", f"{release}.0",
        "-schema-location", f"{SCHEMAS}/v{release}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json",
        "-schema-location", f"{SCHEMAS}/custom/{{{{.Group}}}}_{{{{.ResourceKind}}}}_{{{{.ResourceAPIVersion}}}}.json",
        stdin=documents,
    )  # fmt: skip


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_valid(path: Path, release: str) -> None:
    objects = example(path)
    assert f"Valid: {len(objects)}, Invalid: 0, Errors: 0, Skipped: 0" in kubeconform(release, yaml.dump_all(objects))


@pytest.mark.parametrize("release", RELEASES)
def test_everything_at_once_is_valid(release: str) -> None:
    objects = render(EVERYTHING)
    assert len(objects) >= 29
    assert f"Valid: {len(objects)}, Invalid: 0, Errors: 0, Skipped: 0" in kubeconform(release, yaml.dump_all(objects))


@pytest.mark.parametrize("release", RELEASES)
def test_a_misplaced_field_would_be_found(release: str) -> None:
    objects = render()
    deployment = next(item for item in objects if item["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["strategy"] = deployment["spec"]["strategy"]
    with pytest.raises(Refused, match="strategy"):
        kubeconform(release, yaml.dump(deployment))
