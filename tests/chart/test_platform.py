"""What platform engineers set for every object or pod that they run, and what their clusters take for granted."""

import re
from typing import Any

import pytest
import yaml

from tests.chart.rendering import Object, kinds, one, pod, pods, render, render_as, render_text, settings
from tests.chart.test_kubernetes_schemas import EVERYTHING

SECRETS = {"callers": {"existingSecret": "callers"}}
ALL: dict[str, Any] = {**EVERYTHING, **SECRETS, "redis": {"enabled": True, "password": {"existingSecret": "redis"}}}
WORKLOADS = {"Deployment", "StatefulSet"}
WITH_JOBS = WORKLOADS | {"Job"}
STORE = "try-llm-api-redis"


def templates(objects: list[Object]) -> list[Object]:
    return [item["spec"]["template"] for item in objects if item["kind"] in WITH_JOBS]


def test_common_labels_are_on_everything_and_select_nothing() -> None:
    given = {"app.kubernetes.io/part-of": "assistant", "cost-centre": "42"}
    objects = render({**ALL, "commonLabels": given})
    for item in [*objects, *templates(objects)]:
        assert given.items() <= item["metadata"]["labels"].items(), item["metadata"]
    assert "cost-centre" not in yaml.safe_dump([_without_metadata(item) for item in objects])


def _without_metadata(tree: Any) -> Any:
    match tree:
        case dict():
            return {key: _without_metadata(value) for key, value in tree.items() if key != "metadata"}
        case list():
            return [_without_metadata(item) for item in tree]
    return tree


def test_what_volumes_are_claimed_by_cannot_change() -> None:
    """The API server refuses another volumeClaimTemplate, labels and all."""
    (claim,) = one(render(ALL), "StatefulSet", "try-llm-api-redis")["spec"]["volumeClaimTemplates"]
    assert claim["metadata"] == {"name": "data"}


def test_labels_of_a_pods_own_win() -> None:
    labels = pod(render({"commonLabels": {"team": "a", "tier": "x"}, "podLabels": {"team": "b"}}))["metadata"]["labels"]
    assert (labels["team"], labels["tier"]) == ("b", "x")


def test_common_annotations_are_on_everything_beside_those_of_its_own() -> None:
    common = {"commonAnnotations": {"owner": "platform", "level": "low"}}
    objects = render({**ALL, **common, "serviceAccount": {"annotations": {"level": "high"}}})
    assert all(item["metadata"]["annotations"]["owner"] == "platform" for item in objects)
    assert one(objects, "ServiceAccount")["metadata"]["annotations"]["level"] == "high"
    assert one(objects, "Pod", "try-llm-api-test")["metadata"]["annotations"]["helm.sh/hook"] == "test"


@pytest.mark.parametrize(
    ("repository", "image"),
    [
        ("llm-api", "mirror.example:5000/llm-api:1"),
        ("team/llm-api", "mirror.example:5000/team/llm-api:1"),
        ("ghcr.io/team/llm-api", "mirror.example:5000/team/llm-api:1"),
        ("localhost/llm-api", "mirror.example:5000/llm-api:1"),
        ("registry:5000/llm-api", "mirror.example:5000/llm-api:1"),
    ],
)
def test_a_mirror_takes_the_place_of_a_registry(repository: str, image: str) -> None:
    given = {"image": {"repository": repository, "tag": "1"}, "global": {"imageRegistry": "mirror.example:5000"}}
    assert pod(render(given))["spec"]["containers"][0]["image"] == image


def test_every_image_comes_from_the_mirror_with_its_credentials() -> None:
    given = {"imageRegistry": "mirror.example", "imagePullSecrets": ["hub", {"name": "mirror"}], "theirs": {"a": 1}}
    objects = render({**ALL, "extraContainers": [], "extraInitContainers": [], "global": given})
    found = list(pods(objects))
    assert {name for name, _ in found} >= {"try-llm-api", "try-llm-api-worker", "try-llm-api-redis", "try-llm-api-test"}
    for name, spec in found:
        assert all(container["image"].startswith("mirror.example/") for container in spec["containers"]), name
        assert spec["imagePullSecrets"] == [{"name": "hub"}, {"name": "mirror"}, {"name": "registry"}], name


def test_redis_can_be_pinned_by_digest() -> None:
    digest = "sha256:" + "c" * 64
    objects = render({"redis": {"enabled": True, "image": {"tag": "8", "digest": digest}}})
    (container,) = pod(objects, "try-llm-api-redis", "StatefulSet")["spec"]["containers"]
    assert container["image"] == f"docker.io/valkey/valkey:8@{digest}"


@pytest.mark.parametrize("field", ["dnsPolicy", "dnsConfig", "hostAliases", "runtimeClassName", "nodeSelector"])
def test_what_a_cluster_asks_of_pods_is_asked_of_all(field: str) -> None:
    for name, spec in pods(render(ALL)):
        assert spec[field] == ALL[field], name
    assert all(field not in spec for _, spec in pods(render()))


def test_more_containers_stand_beside_ours_and_their_templates_are_filled_in() -> None:
    more = {
        "extraInitContainers": [{"name": "first", "image": "first:{{ .Chart.AppVersion }}"}],
        "extraContainers": [{"name": "proxy", "image": "proxy:1", "args": ["{{ .Release.Name }}"]}],
        "extraVolumes": [{"name": "ca", "secret": {"secretName": "{{ .Release.Name }}-ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/run/{{ .Release.Name }}"}],
        "extraEnvFrom": [{"secretRef": {"name": "{{ .Release.Name }}-more"}}],
    }
    objects = render({**ALL, **more})
    for name in ("try-llm-api", "try-llm-api-worker"):
        spec = pod(objects, name)["spec"]
        assert [container["name"] for container in spec["containers"]] == [
            name.removeprefix("try-llm-").replace("api-", ""),
            "proxy",
        ]
        assert spec["containers"][1]["args"] == ["try"]
        assert spec["initContainers"][0]["image"] == "first:0.1.0"
        assert spec["volumes"][-1]["secret"] == {"secretName": "try-ca"}
        assert spec["containers"][0]["volumeMounts"][-1]["mountPath"] == "/run/try"
        assert spec["containers"][0]["envFrom"] == [{"secretRef": {"name": "try-more"}}]
    assert len(pod(objects, "try-llm-api-simulator")["spec"]["containers"]) == 1


def test_secrets_of_webhooks_are_mounted_as_files_that_can_be_replaced() -> None:
    objects = render({**ALL, "webhookSecrets": {"existingSecret": "webhooks", "keys": ["current", "next"]}})
    assert settings(objects)["webhooks"] == {
        "secret_files": ["/run/secrets/webhooks/current", "/run/secrets/webhooks/next"]
    }
    for name in ("try-llm-api", "try-llm-api-worker"):
        spec = pod(objects, name)["spec"]
        mount = {"name": "webhooks", "mountPath": "/run/secrets/webhooks", "readOnly": True}
        assert mount in spec["containers"][0]["volumeMounts"]
        (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "webhooks")
        assert volume["secret"]["secretName"] == "webhooks"
        assert volume["secret"]["items"] == [{"key": key, "path": key} for key in ("current", "next")]


def test_other_settings_of_webhooks_stay() -> None:
    given = {"webhookSecrets": {"existingSecret": "webhooks", "keys": ["a"]}, "config": {"webhooks": {"timeout_s": 5}}}
    assert settings(render(given))["webhooks"] == {"timeout_s": 5, "secret_files": ["/run/secrets/webhooks/a"]}


def test_everything_listens_on_ipv6_where_that_is_said() -> None:
    objects = render({"listenAddress": "::"})
    assert settings(objects)["server"]["host"] == "::"
    arguments = pod(objects, "try-llm-api-simulator")["spec"]["containers"][0]["args"]
    # Its server takes `::` for IPv6 alone: where addresses are of both kinds, IPv4's would find nobody.
    assert arguments[:3] == ["simulate", "--host", ""]


def test_a_service_takes_more_of_its_spec() -> None:
    more = {"ipFamilyPolicy": "RequireDualStack", "loadBalancerSourceRanges": ["10.0.0.0/8"]}
    spec = one(render({"service": {"type": "LoadBalancer", "spec": more}}), "Service")["spec"]
    assert more.items() <= spec.items()
    assert spec["type"] == "LoadBalancer"


def test_a_quota_on_the_cpu_can_be_met_by_every_pod() -> None:
    """Where a quota counts limits on the CPU, a pod without one is refused, the test's and Redis' too."""
    limited = {"resources": {"limits": {"cpu": "1", "memory": "256Mi"}}}
    parts = dict.fromkeys(("simulator", "worker", "tests"), limited)
    load = {**ALL["loadTest"], **limited, "masterResources": limited["resources"]}
    values = {
        **limited,
        **parts,
        "redis": {"enabled": True, **limited},
        "loadTest": load,
        "extraContainers": [],
        "extraInitContainers": [],
    }
    for name, spec in pods(render({**ALL, **values, "worker": {**ALL["worker"], **limited}})):
        assert all(container["resources"]["limits"]["cpu"] == "1" for container in spec["containers"]), name


def test_redis_without_a_volume_takes_no_more_of_its_node_than_it_would_of_that() -> None:
    spec = pod(render({"redis": {"enabled": True, "persistence": {"enabled": False}}}), STORE, "StatefulSet")["spec"]
    assert spec["volumes"] == [{"name": "data", "emptyDir": {"sizeLimit": "2Gi"}}]


def test_a_longer_grace_period_is_taken() -> None:
    spec = pod(render({"termination": {"gracePeriodSeconds": 900}}))["spec"]
    assert spec["terminationGracePeriodSeconds"] == 900


def test_nothing_is_random_where_every_secret_is_given() -> None:
    """What renders without asking the cluster, as Argo CD does, would change the release each time."""
    first = render(ALL)
    render_text.cache_clear()
    assert render(ALL) == first
    assert "Secret" not in kinds(first)


SELECTED = {"app.kubernetes.io/name": "llm-api", "app.kubernetes.io/instance": "try"}


def test_what_pods_are_selected_by_never_changes() -> None:
    """Of a Deployment and a StatefulSet the API server refuses another selector: no upgrade could ever be made."""
    selectors = {
        item["metadata"]["name"]: item["spec"]["selector"] for item in render(ALL) if item["kind"] in WORKLOADS
    }
    components = {
        "try-llm-api": "api",
        "try-llm-api-worker": "worker",
        "try-llm-api-simulator": "simulator",
        "try-llm-api-redis": "redis",
    }
    assert selectors == {
        name: {"matchLabels": {**SELECTED, "app.kubernetes.io/component": component}}
        for name, component in components.items()
    }


def test_two_releases_in_one_namespace_select_no_pod_of_each_other() -> None:
    ours, theirs = render_as("ours", ALL), render_as("theirs", ALL)
    labels = [template["metadata"]["labels"] for template in templates(theirs)]
    selectors = [found for item in ours for found in _selectors(item.get("spec", {}))]
    assert len(selectors) > 15
    assert not [s for s in selectors for found in labels if s.items() <= found.items()]


def test_two_releases_do_not_tell_of_each_others_trouble() -> None:
    """Each brings its alerts: without saying whose, everybody would be woken twice."""
    values = {"metrics": {"prometheusRule": {"enabled": True}}}
    ours, theirs = (_expressions(render_as(release, values)) for release in ("a", "b"))
    of_both = [f"{release}-llm-api{more}-5d8f9c7b6d-x7k2p" for release in "ab" for more in ("", "-worker")]
    assert len(ours) == len(theirs) > 100
    for own, other in zip(ours, theirs, strict=True):
        assert own != other or "llm_api_" not in own
        for pattern in re.findall(r'pod=~"([^"]+)"', own):
            assert [name for name in of_both if re.fullmatch(pattern, name)] == of_both[:2]


def _expressions(objects: list[Object]) -> list[str]:
    specs = [item["spec"] for item in objects if item["kind"] == "PrometheusRule"]
    return [rule["expr"] for spec in specs for group in spec["groups"] for rule in group["rules"]]


def _selectors(tree: Any) -> list[Object]:
    """Find what pods are selected by, but for namespaces and for everybody."""
    match tree:
        case {"matchLabels": dict() as labels}:
            return [labels]
        case {"selector": dict() as labels} if "matchLabels" not in labels:
            return [labels]
        case dict():
            return [found for value in tree.values() for found in _selectors(value)]
        case list():
            return [found for item in tree for found in _selectors(item)]
    return []
