"""kube-score: no finding without a written reason."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.chart.rendering import EXAMPLES, example
from tests.chart.tools import find

NEEDS = ("helm", "kube-score")

REASONS = {
    "container-ephemeral-storage-request-and-limit": "the root is read-only, /tmp is bounded, logs are rotated",
    "container-image-pull-policy": "tags of releases do not move; Always makes a registry's outage ours",
    "deployment-has-host-podantiaffinity": "spread evenly over zones and nodes by topologySpreadConstraints instead",
    "deployment-replicas": "one pod without Redis, which is the default for trying it out",
    "pod-networkpolicy": "off by default: who may call is the cluster's business; production examples have it",
    "pod-probes-identical": "of the simulator and Redis, which depend on nothing that could make them unready",
    "statefulset-has-servicename": "one pod, behind a cluster IP that stays when the pod is replaced",
    "container-security-context-user-group-id": "999 is the user of Valkey's and Redis' images",
}
"""By check: why what it says is left as it is."""
ONLY_ON = {
    "container-security-context-user-group-id": {"try-llm-api-redis"},
    "pod-probes-identical": {"try-llm-api-redis", "try-llm-api-simulator"},
    "statefulset-has-servicename": {"try-llm-api-redis"},
}
"""Objects for which a reason holds, where it is not all."""
COMPLAINTS = {1, 5}
"""Grades: critical and warning."""


NO_CPU_LIMIT = "--ignore-container-cpu-limit"
"""A limit on the CPU throttles the event loop, and with it every stream of the pod."""


def findings(objects: str) -> set[tuple[str, str, str]]:
    """Return check, object and summary of each complaint."""
    command = [str(find("kube-score")), "score", "--kubernetes-version", "v1.34", NO_CPU_LIMIT, "-o", "json", "-"]
    # It fails when it finds something, which is no failure to run.
    done = subprocess.run(command, input=objects, capture_output=True, text=True, timeout=60, check=False)
    return {
        (check["check"]["id"], scored["object_meta"]["name"], comment["summary"])
        for scored in json.loads(done.stdout)
        for check in scored["checks"]
        if not check["skipped"] and check["grade"] in COMPLAINTS
        for comment in check["comments"]
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_nothing_is_found_without_a_reason(path: Path) -> None:
    found = findings(yaml.dump_all(example(path)))
    unexplained = {
        (check, name, summary)
        for check, name, summary in found
        if check not in REASONS or name not in ONLY_ON.get(check, {name})
    }
    assert unexplained == set()


def test_every_reason_is_needed() -> None:
    found = {check for path in EXAMPLES for check, _, _ in findings(yaml.dump_all(example(path)))}
    assert REASONS.keys() - found == set()
