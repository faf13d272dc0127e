"""Wrong values: each is refused, and the message names it."""

from typing import Any

import pytest

from tests.chart.rendering import Refused, render

REDIS = {"url": "redis://store:6379/0"}
OPENAI = {"providers": {"openai": {"kind": "openai"}}}
RUN: dict[str, Any] = {
    "name": "a",
    "arrivals": {"kind": "constant", "rate_per_s": 1, "duration_s": 1},
    "mix": {"stream": 1},
}

UNKNOWN_OR_IMPOSSIBLE: list[tuple[str, dict[str, Any]]] = [
    ("/replicas", {"replicas": 0}),
    ("/replicas", {"replicas": "two"}),
    ("replicaCount", {"replicaCount": 2}),
    ("/image/pullPolicy", {"image": {"pullPolicy": "Sometimes"}}),
    ("/image/digest", {"image": {"digest": "abc"}}),
    ("/longestStreamSeconds", {"longestStreamSeconds": 0}),
    ("/termination/preStopSeconds", {"termination": {"preStopSeconds": -1}}),
    ("/service/port", {"service": {"port": 70000}}),
    ("/service/type", {"service": {"type": "ExternalName"}}),
    ("/simulator/enabled", {"simulator": {"enabled": "maybe"}}),
    ("/redis/url", {"redis": {"url": "store:6379"}}),
    ("/redis/url", {"redis": {"url": "redis://user:password@store:6379"}}),
    ("/resources/limits/memory", {"resources": {"limits": {"memory": "512 MB"}}}),
    ("/runAsUser", {"runAsUser": 0}),
    ("/probes/liveness", {"probes": {"liveness": {"httpGet": {"path": "/ready"}}}}),
    ("/podDisruptionBudget/maxUnavailable", {"podDisruptionBudget": {"maxUnavailable": 0}}),
    ("/rollout/maxSurge", {"rollout": {"maxSurge": 0}}),
    ("maxUnavailable", {"rollout": {"maxUnavailable": 1}}),
    ("/httpRoute/streamTimeout", {"httpRoute": {"streamTimeout": "forever"}}),
    ("/ingress/hosts/0", {"ingress": {"hosts": ["https://llm.example.com"]}}),
    ("/providerKeys/openai", {"config": OPENAI, "providerKeys": {"openai": {"key": "sk-1"}}}),
    ("/config/providers/openai/kind", {"config": {"providers": {"openai": {"kind": "opnai"}}}}),
    ("keys", {"config": {"providers": {"openai": {"kind": "openai", "keys": ["sk-in-a-configmap"]}}}}),
    ("/config/auth/keys/alice", {"config": {"auth": {"keys": {"alice": "a-key-in-clear-0123456789"}}}}),
    ("/config/readiness/mode", {"config": {"readiness": {"mode": "always"}}}),
    ("timeout_s", {"config": {"drain": {"timeout_s": 60}}}),
    ("modells", {"config": {"modells": {}}}),
    ("/nameOverride", {"nameOverride": "LLM_API"}),
    ("/commonLabels/team", {"commonLabels": {"team": "platform & co"}}),
    ("'-team'", {"commonLabels": {"-team": "platform"}}),
    ("/podLabels/team", {"podLabels": {"team": 5}}),
    ("/commonAnnotations/owner", {"commonAnnotations": {"owner": 5}}),
    ("/global/imageRegistry", {"global": {"imageRegistry": "https://mirror.example"}}),
    ("/global/imagePullSecrets/0", {"global": {"imagePullSecrets": [{"secret": "registry"}]}}),
    ("/listenAddress", {"listenAddress": "localhost"}),
    ("/dnsPolicy", {"dnsPolicy": "Cluster"}),
    ("/dnsConfig", {"dnsConfig": {"nameserver": "10.0.0.10"}}),
    ("/hostAliases/0", {"hostAliases": [{"ip": "10.0.0.1"}]}),
    ("/runtimeClassName", {"runtimeClassName": "gVisor"}),
    ("/priorityClassName", {"priorityClassName": "very high"}),
    ("/extraContainers/0", {"extraContainers": [{"name": "proxy"}]}),
    ("/extraInitContainers/0", {"extraInitContainers": [{"image": "first:1"}]}),
    ("/extraVolumeMounts/0", {"extraVolumeMounts": [{"name": "a"}]}),
    ("/extraObjects/0", {"extraObjects": [{"kind": "ConfigMap"}]}),
    ("/webhookSecrets", {"webhookSecrets": {"secrets": ["whsec_in-a-configmap"]}}),
    ("/webhookSecrets/keys/0", {"webhookSecrets": {"existingSecret": "a", "keys": ["no such/key"]}}),
    ("secret_files", {"config": {"webhooks": {"secret_files": ["/run/a"]}}}),
    ("/termination/gracePeriodSeconds", {"termination": {"gracePeriodSeconds": "5m"}}),
    ("/probes/readiness", {"probes": {"readiness": {"terminationGracePeriodSeconds": 5}}}),
    ("/probes/liveness/successThreshold", {"probes": {"liveness": {"successThreshold": 2}}}),
    ("/service/spec/selector", {"service": {"spec": {"selector": {"app": "mine"}}}}),
    ("/redis/image/digest", {"redis": {"image": {"digest": "latest"}}}),
    ("/tests/timeoutSeconds", {"tests": {"timeoutSeconds": 0}}),
    ("/loadTest/workers", {"loadTest": {"workers": 0}}),
    ("/loadTest/image/digest", {"loadTest": {"image": {"digest": "latest"}}}),
    ("/loadTest/args/1", {"loadTest": {"args": ["--rate", 20]}}),
    ("/loadTest/ttlSecondsAfterFinished", {"loadTest": {"ttlSecondsAfterFinished": -1}}),
    ("/loadTest/resultsClaim", {"loadTest": {"resultsClaim": "No Claim"}}),
    ("arrivals", {"loadTest": {"scenario": {"name": "a", "mix": {"stream": 1}}}}),
    ("'modell'", {"loadTest": {"scenario": {**RUN, "modell": "a"}}}),
    ("'host'", {"loadTest": {"scenario": {**RUN, "host": "http://elsewhere"}}}),
    ("'completions'", {"loadTest": {"scenario": {**RUN, "mix": {"completions": 1}}}}),
    ("/loadTest/scenario/arrivals/kind", {"loadTest": {"scenario": {**RUN, "arrivals": {"kind": "poison"}}}}),
    (
        "/loadTest/scenario/arrivals/rate_per_s",
        {"loadTest": {"scenario": {**RUN, "arrivals": {"kind": "poisson", "rate_per_s": 0, "duration_s": 1}}}},
    ),
    ("callerKey", {"loadTest": {"callerKey": "a-key-in-clear"}}),
    ("requests_per_minuet", {"config": {"auth": {"default_limits": {"requests_per_minuet": 5}}}}),
]


@pytest.mark.parametrize(("name", "values"), UNKNOWN_OR_IMPOSSIBLE, ids=[name for name, _ in UNKNOWN_OR_IMPOSSIBLE])
def test_what_is_unknown_or_impossible_is_refused_by_name(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        render(values)
    message = str(refused.value)
    assert name in message
    assert "schema" in message, "it was refused, but not by the schema"


NOT_TOGETHER: list[tuple[str, str, dict[str, Any]]] = [
    ("replicas", "no Redis", {"replicas": 2}),
    ("replicas", "no Redis", {"autoscaling": {"enabled": True, "maxReplicas": 5}}),
    ("worker.enabled", "in Redis", {"worker": {"enabled": True}}),
    (
        "worker.autoscaling.minReplicas",
        "is 9",
        {
            "redis": REDIS,
            "worker": {"enabled": True, "autoscaling": {"enabled": True, "minReplicas": 9, "maxReplicas": 3}},
        },
    ),
    ("podLabels.app.kubernetes.io/name", "chart's own", {"podLabels": {"app.kubernetes.io/name": "mine"}}),
    ("commonLabels.app.kubernetes.io/instance", "chart's own", {"commonLabels": {"app.kubernetes.io/instance": "a"}}),
    ("commonLabels.llm-api/metrics", "chart's own", {"commonLabels": {"llm-api/metrics": "false"}}),
    ("webhookSecrets.keys", "missing", {"webhookSecrets": {"existingSecret": "webhooks"}}),
    ("webhookSecrets.existingSecret", "missing", {"webhookSecrets": {"keys": ["current"]}}),
    ("dnsConfig.nameservers", "dnsPolicy=None", {"dnsPolicy": "None"}),
    ("fullnameOverride", "begin with a letter", {"fullnameOverride": "1st"}),
    ("termination.gracePeriodSeconds", "255 s", {"termination": {"gracePeriodSeconds": 60}}),
    (
        "probes.liveness.terminationGracePeriodSeconds",
        "255 s",
        {"probes": {"liveness": {"terminationGracePeriodSeconds": 600}}},
    ),
    ("redis", "more than one", {"redis": {**REDIS, "enabled": True}}),
    ("autoscaling.enabled", "Take one", {"redis": REDIS, "autoscaling": {"enabled": True}, "keda": {"enabled": True}}),
    (
        "autoscaling.minReplicas",
        "is 9",
        {"redis": REDIS, "autoscaling": {"enabled": True, "minReplicas": 9, "maxReplicas": 3}},
    ),
    (
        "autoscaling",
        "no metric",
        {"redis": REDIS, "autoscaling": {"enabled": True, "streamsPerPod": 0, "requestsPerPod": 0, "cpuPercent": 0}},
    ),
    ("keda.serverAddress", "Prometheus", {"redis": REDIS, "keda": {"enabled": True}}),
    (
        "metrics.podMonitor.enabled",
        "twice",
        {"metrics": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}},
    ),
    ("httpRoute.parentRefs", "Gateway", {"httpRoute": {"enabled": True}}),
    (
        "loadTest.callerKeySecret",
        "Name a Secret",
        {"loadTest": {"enabled": True}, "callers": {"existingSecret": "callers"}},
    ),
    (
        "loadTest.scenario.mix.jobs_poll",
        "Redis",
        {"loadTest": {"enabled": True, "scenario": {**RUN, "mix": {"stream": 1, "jobs_poll": 1}}}},
    ),
    (
        "loadTest.timeoutSeconds",
        "1320 s",
        {
            "loadTest": {
                "enabled": True,
                "timeoutSeconds": 1300,
                "scenario": {
                    **RUN,
                    "arrivals": {"kind": "steps", "steps": [{"rate_per_s": 1, "duration_s": 299.5}] * 2},
                    "timeout_s": 120.5,
                },
            }
        },
    ),
    (
        "loadTest.timeoutSeconds",
        "4320 s",
        {"loadTest": {"enabled": True, "scenario": {**RUN, "arrivals": {**RUN["arrivals"], "duration_s": 3600}}}},
    ),
    ("ingress.hosts", "host name", {"ingress": {"enabled": True}}),
    ("config.providers", "no provider", {"simulator": {"enabled": False}}),
    (
        "config.models",
        "there is none",
        {"config": {"providers": {"vllm": {"kind": "openai", "base_url": "http://vllm:8000/v1"}}}},
    ),
    (
        "providerKeys.openai",
        "no config.providers.openai",
        {"providerKeys": {"openai": {"existingSecret": "s", "keys": ["k"]}}},
    ),
    (
        "config.models.a.routes",
        "no config.providers.b",
        {"config": {**OPENAI, "models": {"a": {"routes": [{"provider": "b"}]}}}},
    ),
]


@pytest.mark.parametrize(
    ("name", "why", "values"), NOT_TOGETHER, ids=[f"{name}: {why}" for name, why, _ in NOT_TOGETHER]
)
def test_what_does_not_fit_together_is_refused_with_a_sentence(name: str, why: str, values: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        render(values)
    sentence = str(refused.value)
    assert name in sentence
    assert why in sentence
