"""What the chart makes of its values."""

import re
from typing import Any

import pytest
import yaml

from service import __version__
from service.telemetry.metrics import Metrics
from tests.chart.rendering import CHART, Object, kinds, one, pod, render, render_as, render_text, run, settings

pytestmark = pytest.mark.filterwarnings("error")

REDIS = {"url": "redis://store:6379/0"}
OPENAI = {"providers": {"openai": {"kind": "openai"}}}


def test_the_chart_installs_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_lint_finds_nothing() -> None:
    assert "0 chart(s) failed" in run("helm", "lint", "--strict", str(CHART), "--kube-version", "1.34.0")


def test_everything_about_a_stop_follows_from_the_longest_stream() -> None:
    objects = render({"longestStreamSeconds": 600, "termination": {"preStopSeconds": 7, "delaySeconds": 20}})
    spec = pod(objects)["spec"]
    assert settings(objects)["drain"] == {"delay_s": 20, "timeout_s": 600}
    assert spec["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 7}}}
    jobs, spare = 30, 30
    assert spec["terminationGracePeriodSeconds"] == 7 + 20 + 600 + jobs + spare


def test_a_longer_wait_for_jobs_makes_the_grace_period_longer() -> None:
    short, long = (
        pod(render({"config": {"jobs": {"drain_s": seconds}}}))["spec"]["terminationGracePeriodSeconds"]
        for seconds in (30, 90.5)
    )
    assert long - short == 61


def test_an_update_never_has_a_pod_missing() -> None:
    spec = one(render(), "Deployment")["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert spec["minReadySeconds"] == 5


def test_probes_ask_what_they_should() -> None:
    container = pod(render())["spec"]["containers"][0]
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    # A second, the default, has restarted busy processes of others.
    assert all(container[f"{kind}Probe"]["timeoutSeconds"] >= 2 for kind in paths)


def test_the_simulator_serves_as_long_as_no_provider_is_configured() -> None:
    tried = render()
    assert settings(tried)["providers"] == {
        "simulator": {"kind": "simulator", "base_url": "http://try-llm-api-simulator:9000/v1"}
    }
    assert one(tried, "Deployment", "try-llm-api-simulator")
    real = render({"config": OPENAI})
    assert settings(real)["providers"] == OPENAI["providers"]
    assert "models" not in settings(real)
    assert [item["metadata"]["name"] for item in real if item["kind"] == "Deployment"] == ["try-llm-api"]


def test_a_simulator_beside_a_real_provider_takes_no_models_from_it() -> None:
    models = {"sim": {"routes": [{"provider": "simulator"}]}, "gpt-4o": {"routes": [{"provider": "openai"}]}}
    found = settings(render({"simulator": {"enabled": True}, "config": {**OPENAI, "models": models}}))
    assert found["models"] == models
    assert set(found["providers"]) == {"openai", "simulator"}


def test_a_callers_key_is_made_only_where_there_is_none() -> None:
    made = one(render(), "Secret", "try-llm-api-callers")["stringData"]
    assert re.fullmatch(r"llm_[A-Za-z0-9]{40}", made["key"])
    assert made["keys"] == f"default:{made['key']}"
    assert "Secret" not in kinds(render({"callers": {"existingSecret": "mine"}}))
    hashed = {"config": {"auth": {"keys": {"alice": {"key": "sha256:" + "0" * 64}}}}}
    objects = render(hashed)
    assert "Secret" not in kinds(objects)
    assert "keys_file" not in settings(objects)["auth"]


def test_provider_keys_are_mounted_as_files_that_can_be_replaced() -> None:
    keys = {"openai": {"existingSecret": "vault", "keys": ["key-1", "key-2"]}}
    objects = render({"config": OPENAI, "providerKeys": keys})
    assert settings(objects)["providers"]["openai"]["key_files"] == [
        "/run/secrets/providers/openai/key-1",
        "/run/secrets/providers/openai/key-2",
    ]
    spec = pod(objects)["spec"]
    (mount,) = (mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "provider-openai")
    # The kubelet never replaces what is mounted by subPath.
    assert mount == {"name": "provider-openai", "mountPath": "/run/secrets/providers/openai", "readOnly": True}
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "provider-openai")
    assert volume["secret"]["secretName"] == "vault"
    assert volume["secret"]["items"] == [{"key": key, "path": key} for key in ("key-1", "key-2")]


def test_no_pod_has_a_secret_in_its_environment_but_the_address_of_redis() -> None:
    values = {
        "config": OPENAI,
        "providerKeys": {"openai": {"existingSecret": "vault", "keys": ["key"]}},
        "redis": {"existingSecret": "store"},
        "replicas": 3,
    }
    env = pod(render(values))["spec"]["containers"][0]["env"]
    assert [item["name"] for item in env if "valueFrom" in item] == ["REDIS_URL"]


def test_another_configuration_reaches_new_pods_alone() -> None:
    before, after = (
        render({"config": {"auth": {"default_limits": {"requests_per_minute": rate}}}}) for rate in (60, 120)
    )
    names = [
        next(v["configMap"]["name"] for v in pod(objects)["spec"]["volumes"] if v["name"] == "config")
        for objects in (before, after)
    ]
    assert names[0] != names[1]
    for name, objects in zip(names, (before, after), strict=True):
        assert one(objects, "ConfigMap", name)["immutable"] is True


@pytest.mark.parametrize(
    ("change", "rolls"),
    [
        ({"auth": {"default_limits": {"requests_per_minute": 60}}}, False),
        ({"models": {"gpt-4o": {"routes": [{"provider": "simulator"}]}}}, False),
        ({"readiness": {"interval_s": 30}}, True),
        ({"auth": {"ticket_ttl_s": 10}}, True),
    ],
)
def test_live_updates_roll_only_for_what_running_pods_do_not_take_over(change: dict[str, Any], *, rolls: bool) -> None:
    before = pod(render({"configUpdates": "live"}))
    after = pod(render({"configUpdates": "live", "config": change}))
    assert (before != after) is rolls


def test_a_release_without_changes_renders_the_same() -> None:
    known = {"callers": {"existingSecret": "mine"}}
    render_text.cache_clear()
    first = render(known)
    render_text.cache_clear()
    assert render(known) == first


def test_limits_during_an_outage_go_by_the_most_pods() -> None:
    assert settings(render({"replicas": 3, "redis": REDIS}))["admission"]["replicas"] == 3
    scaled = {"redis": REDIS, "autoscaling": {"enabled": True, "maxReplicas": 7}}
    assert settings(render(scaled))["admission"]["replicas"] == 7


@pytest.mark.parametrize("scaler", ["autoscaling", "keda"])
def test_what_is_scaled_names_no_number_of_its_own(scaler: str) -> None:
    address = {"serverAddress": "http://prometheus:9090"} if scaler == "keda" else {}
    values = {"redis": REDIS, scaler: {"enabled": True, **address}}
    assert "replicas" not in one(render(values), "Deployment")["spec"]


def test_pods_are_scaled_by_streams_then_requests_then_cpu() -> None:
    scaler = one(render({"redis": REDIS, "autoscaling": {"enabled": True}}), "HorizontalPodAutoscaler")["spec"]
    by_pods = {
        m["pods"]["metric"]["name"]: m["pods"]["target"]["averageValue"]
        for m in scaler["metrics"]
        if m["type"] == "Pods"
    }
    assert by_pods == {"llm_api_streams_active": "100", "llm_api_http_requests_in_flight": "150"}
    assert scaler["metrics"][-1]["containerResource"] == {
        "name": "cpu",
        "container": "api",
        "target": {"type": "Utilization", "averageUtilization": 80},
    }
    down = scaler["behavior"]["scaleDown"]
    assert down["stabilizationWindowSeconds"] == 300
    assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 120}]


def test_keda_takes_a_silent_prometheus_for_silent_and_not_for_zero() -> None:
    values = {"redis": REDIS, "keda": {"enabled": True, "serverAddress": "http://prometheus:9090"}}
    scaled = one(render(values), "ScaledObject")["spec"]
    queries = [t["metadata"] for t in scaled["triggers"] if t["type"] == "prometheus"]
    assert len(queries) == 2
    assert all(query["ignoreNullValues"] == "false" for query in queries)
    assert scaled["fallback"]["behavior"] == "currentReplicasIfHigher"


@pytest.mark.parametrize("release", ["try", "r" * 30, "r" * 33, "r" * 36, "r" * 38])
def test_kedas_queries_tell_the_pods_of_a_release_apart(release: str) -> None:
    scaled = {"worker": {"enabled": True, "autoscaling": {"enabled": True}}}
    keda = {"keda": {"enabled": True, "serverAddress": "http://prometheus:9090"}}
    objects = render_as(release, {"redis": REDIS, **scaled, **keda})
    api, worker = f"{release}-llm-api", f"{release}-llm-api-worker"
    pods_of = {
        name: [generated(f"{name}-{replica_set}-") for replica_set in ("5d8f9c7b6d", "7c9d")] for name in (api, worker)
    }
    pods_of["others"] = [generated(f"{api}-{more}-5d8f9c7b6d-") for more in ("simulator", "2", "worker-2")]
    pods_of["others"] += [f"{api}-redis-0", f"x{pods_of[api][0]}"]
    for name in (api, worker):
        (query, *more) = (
            trigger["metadata"]["query"]
            for trigger in one(objects, "ScaledObject", name)["spec"]["triggers"]
            if trigger["type"] == "prometheus"
        )
        patterns = {re.search(r'pod=~"([^"]+)"', text)[1] for text in (query, *more)}  # type: ignore[index]
        (pattern,) = patterns
        # Prometheus anchors its patterns at both ends.
        counted = {found for pods in pods_of.values() for found in pods if re.fullmatch(pattern, found)}
        assert counted == set(pods_of[name])


def generated(base: str) -> str:
    """Name a pod as the API server does: five characters behind what fits of the ReplicaSet's name and a dash."""
    return f"{base[:58]}x7k2p"


def test_a_gateway_sets_no_end_to_streams() -> None:
    route = one(render({"httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]}}), "HTTPRoute")["spec"]
    timeouts = {rule["matches"][0]["path"]["value"]: rule["timeouts"]["request"] for rule in route["rules"]}
    assert timeouts == {"/generate": "660s", "/": "0s"}


def test_metrics_are_in_no_service_that_users_are_routed_to() -> None:
    objects = render({"metrics": {"serviceMonitor": {"enabled": True}}})
    assert [port["name"] for port in one(objects, "Service")["spec"]["ports"]] == ["http"]
    assert one(objects, "Service", "try-llm-api-metrics")["spec"]["clusterIP"] == "None"


def test_redis_keeps_its_data_and_listens_to_this_release_alone() -> None:
    objects = render({"replicas": 2, "redis": {"enabled": True}})
    store = one(objects, "StatefulSet", "try-llm-api-redis")["spec"]
    assert store["volumeClaimTemplates"][0]["metadata"]["name"] == "data"
    policy = one(objects, "NetworkPolicy", "try-llm-api-redis")["spec"]
    (rule,) = policy["ingress"]
    (peer,) = rule["from"]
    assert peer["podSelector"]["matchLabels"] == {
        "app.kubernetes.io/name": "llm-api",
        "app.kubernetes.io/instance": "try",
    }
    assert peer["podSelector"]["matchExpressions"] == [
        {"key": "app.kubernetes.io/component", "operator": "In", "values": ["api", "worker"]}
    ]


@pytest.mark.parametrize("given", ["", "mine"])
def test_the_charts_own_redis_has_a_password(given: str) -> None:
    objects = render({"redis": {"enabled": True, "password": {"existingSecret": given}}})
    name = given or "try-llm-api-redis"
    made = [item["metadata"]["name"] for item in objects if item["kind"] == "Secret"]
    assert ("try-llm-api-redis" in made) is not bool(given)
    password = {"name": "REDIS_PASSWORD", "valueFrom": {"secretKeyRef": {"name": name, "key": "password"}}}
    ours = pod(objects)["spec"]["containers"][0]["env"]
    # What comes behind it in the environment can name it.
    assert ours[1:3] == [
        password,
        {"name": "REDIS_URL", "value": "redis://:$(REDIS_PASSWORD)@try-llm-api-redis:6379/0"},
    ]
    theirs = pod(objects, "try-llm-api-redis", "StatefulSet")["spec"]["containers"][0]
    assert theirs["env"] == [password]
    assert theirs["args"][-2:] == ["--requirepass", "$(REDIS_PASSWORD)"]


WORKER = {"replicas": 2, "redis": REDIS, "worker": {"enabled": True}}


def test_workers_have_pods_of_their_own_and_the_same_settings() -> None:
    objects = render({**WORKER, "podLabels": {"team": "a"}, "config": {"jobs": {"drain_s": 90}}})
    worker, api = (pod(objects, name) for name in ("try-llm-api-worker", "try-llm-api"))
    container = worker["spec"]["containers"][0]
    assert container["args"] == ["worker"]
    assert (container["image"], container["env"]) == tuple(
        api["spec"]["containers"][0][key] for key in ("image", "env")
    )
    assert worker["spec"]["volumes"] == api["spec"]["volumes"]
    assert worker["spec"]["terminationGracePeriodSeconds"] == 90 + 30
    assert worker["metadata"]["labels"]["team"] == "a"
    assert "lifecycle" not in container
    assert settings(objects)["jobs"] == {"drain_s": 90, "worker": False}
    assert "jobs" not in settings(render())
    # Limits that are kept locally are shared by all who ask.
    assert settings(objects)["admission"]["replicas"] == 2 + 2


def test_a_service_leads_to_no_worker() -> None:
    objects = render(WORKER)
    selector = one(objects, "Service")["spec"]["selector"]
    labels = pod(objects, "try-llm-api-worker")["metadata"]["labels"]
    assert not selector.items() <= labels.items()


def test_workers_are_scaled_by_how_long_jobs_wait() -> None:
    scaled = {**WORKER, "worker": {"enabled": True, "autoscaling": {"enabled": True, "waitSeconds": 20}}}
    objects = render(scaled)
    (metric,) = one(objects, "HorizontalPodAutoscaler", "try-llm-api-worker")["spec"]["metrics"]
    assert metric["pods"] == {
        "metric": {"name": "llm_api_jobs_oldest_wait_seconds"},
        "target": {"type": "AverageValue", "averageValue": "20"},
    }
    assert "replicas" not in one(objects, "Deployment", "try-llm-api-worker")["spec"]
    keda = {"keda": {"enabled": True, "serverAddress": "http://prometheus:9090"}}
    objects = render({**scaled, **keda})
    (trigger,) = one(objects, "ScaledObject", "try-llm-api-worker")["spec"]["triggers"]
    assert trigger["metadata"]["query"] == (
        'max(llm_api_jobs_oldest_wait_seconds{namespace="default",pod=~"try-llm-api-worker-[a-z0-9]+(-[a-z0-9]{5})?"})'
    )
    assert "HorizontalPodAutoscaler" not in kinds(objects)


def test_workers_may_be_evicted_one_by_one() -> None:
    budget = one(render(WORKER), "PodDisruptionBudget", "try-llm-api-worker")["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


def test_a_worker_is_reached_by_nobody_but_for_its_metrics() -> None:
    objects = render({**WORKER, "networkPolicy": {"enabled": True}})
    worker, api = (one(objects, "NetworkPolicy", name)["spec"] for name in ("try-llm-api-worker", "try-llm-api"))
    assert [rule["ports"][0]["port"] for rule in worker["ingress"]] == [9090]
    assert worker["egress"] == api["egress"]


@pytest.mark.parametrize("monitor", ["serviceMonitor", "podMonitor"])
def test_the_metrics_of_workers_are_read_too(monitor: str) -> None:
    objects = render({**WORKER, "metrics": {monitor: {"enabled": True}}})
    if monitor == "podMonitor":
        selector = one(objects, "PodMonitor")["spec"]["selector"]["matchLabels"]
    else:
        selector = one(objects, "Service", "try-llm-api-metrics")["spec"]["selector"]
    found = {
        item["metadata"]["name"]
        for item in objects
        if item["kind"] in {"Deployment", "StatefulSet"}
        and selector.items() <= item["spec"]["template"]["metadata"]["labels"].items()
    }
    assert found == {"try-llm-api", "try-llm-api-worker"}


def test_network_policies_admit_what_is_named_and_what_is_needed() -> None:
    gateway = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateways"}}}
    values = {
        "networkPolicy": {"enabled": True, "from": [gateway]},
        "redis": {"existingSecret": "store"},
        "config": OPENAI,
    }
    policy = one(render(values), "NetworkPolicy")["spec"]
    api, metrics = policy["ingress"]
    assert api["ports"] == [{"port": 8000, "protocol": "TCP"}]
    assert api["from"][0] == gateway
    assert metrics["ports"] == [{"port": 9090, "protocol": "TCP"}]
    ports = [port["port"] for rule in policy["egress"] for port in rule["ports"]]
    assert ports == [53, 53, 443, 6379]
    (anywhere,) = (rule for rule in policy["egress"] if rule["ports"][0]["port"] == 443)
    assert anywhere["to"][0]["ipBlock"]["except"] == ["169.254.169.254/32"]


def test_alerts_and_dashboards_name_metrics_that_exist(metric_names: set[str]) -> None:
    on = {"enabled": True}
    objects = render({"metrics": {"prometheusRule": on, "dashboards": on}})
    rules = str([item["spec"] for item in objects if item["kind"] == "PrometheusRule"])
    boards = [item for item in objects if item["kind"] == "ConfigMap" and "dashboard" in item["metadata"]["name"]]
    assert boards
    assert all(board["metadata"]["labels"]["grafana_dashboard"] == "1" for board in boards)
    named = set(
        re.findall(r"llm_api_[a-z_]+", rules + "".join(text for board in boards for text in board["data"].values()))
    )
    assert named - metric_names == set()


@pytest.fixture
def metric_names() -> set[str]:
    from prometheus_client import CollectorRegistry  # noqa: PLC0415 - only this test needs it

    registry = CollectorRegistry()
    Metrics(registry)
    return {name for collector in registry._collector_to_names.values() for name in collector}


def test_images_can_be_pinned_by_digest() -> None:
    digest = "sha256:" + "a" * 64
    container = pod(render({"image": {"repository": "registry.example/llm-api", "tag": "1", "digest": digest}}))[
        "spec"
    ]["containers"][0]
    assert container["image"] == f"registry.example/llm-api:1@{digest}"


def test_extra_objects_and_environment_are_templates() -> None:
    values = {
        "extraEnv": [{"name": "RELEASE", "value": "{{ .Release.Name }}"}],
        "extraObjects": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-more"}, "data": {}}
        ],
    }
    objects = render(values)
    assert {"name": "RELEASE", "value": "try"} in pod(objects)["spec"]["containers"][0]["env"]
    assert one(objects, "ConfigMap", "try-more")


ALL_COMPONENTS = {"redis": {"enabled": True}, "replicas": 2, "worker": {"enabled": True}}


def names(objects: list[Object]) -> set[tuple[str, str]]:
    return {(item["kind"], item["metadata"]["name"]) for item in objects}


@pytest.mark.parametrize(
    ("one_name", "other_name"),
    [("a" * 52 + "b", "a" * 52 + "c"), ("team-a.prod", "team-a-prod"), ("short", "shorter")],
)
def test_two_releases_share_no_name(one_name: str, other_name: str) -> None:
    assert not names(render_as(one_name, ALL_COMPONENTS)) & names(render_as(other_name, ALL_COMPONENTS))


def test_long_overrides_share_no_name() -> None:
    ours, theirs = (names(render({"fullnameOverride": "a" * 50 + end})) for end in "bc")
    assert not ours & theirs


def test_names_that_fit_are_left_as_they_are() -> None:
    assert ("Deployment", "a" * 38 + "-llm-api") in names(render_as("a" * 38))
    assert ("Deployment", "b" * 46) in names(render({"fullnameOverride": "b" * 46}))


def test_names_of_the_longest_release_fit_into_labels() -> None:
    for item in render_as("a" * 53, ALL_COMPONENTS):
        length = len(item["metadata"]["name"])
        # The controller adds a dash and a hash to a StatefulSet's name, and labels its pods with that.
        assert length + (11 if item["kind"] == "StatefulSet" else 0) <= 63 or item["kind"] == "ConfigMap"
