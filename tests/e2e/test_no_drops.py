"""Pods come and go under load, and nobody notices: no request fails, no stream is cut."""

import pytest

from tests.e2e.cluster import Namespace
from tests.e2e.fleet import REQUESTS_PER_S, STREAMS, fleet
from tests.e2e.loading import Told, under_load

pytestmark = pytest.mark.timeout(1800)


def assert_nobody_noticed(told: Told) -> None:
    assert told.failed == {}, told.summary
    assert told.complete("streams") >= STREAMS
    assert told.complete("requests") >= REQUESTS_PER_S * 10


def test_three_updates_in_a_row(namespace: Namespace) -> None:
    namespace.install(fleet(3))
    with under_load(namespace) as told:
        for number in range(3):
            namespace.install(fleet(3, podAnnotations={"update": str(number)}))
        namespace.only_pods(3)
    assert_nobody_noticed(told)


def test_scaling_down_from_five_to_two(namespace: Namespace) -> None:
    namespace.install(fleet(5))
    with under_load(namespace) as told:
        namespace.kubectl("scale", "deployment", "try-llm-api", "--replicas=2")
        namespace.only_pods(2)
    assert_nobody_noticed(told)


def test_a_pod_deleted_with_its_grace(namespace: Namespace) -> None:
    namespace.install(fleet(3))
    with under_load(namespace) as told:
        namespace.kubectl("delete", "pod", namespace.pods()[0]["metadata"]["name"], "--wait")
        namespace.only_pods(3)
    assert_nobody_noticed(told)


def test_the_drain_of_a_node(namespace: Namespace) -> None:
    nodes = namespace.cluster.kubectl("get", "nodes", "-o", "name").split()
    if len(nodes) < 2:
        pytest.skip("with one node, what is evicted has nowhere to go")
    namespace.install(fleet(3))
    node = namespace.pods()[0]["spec"]["nodeName"]
    with under_load(namespace) as told:
        try:
            namespace.cluster.kubectl(
                "drain",
                node,
                "--pod-selector=app.kubernetes.io/component=api",
                "--delete-emptydir-data",
                "--timeout=300s",
            )
        finally:
            namespace.cluster.kubectl("uncordon", node)
        namespace.only_pods(3)
    assert_nobody_noticed(told)


def test_without_time_to_notice_the_load_would_tell(namespace: Namespace) -> None:
    """The check on the check: a pod that refuses new work as soon as it is told to stop does lose requests."""
    namespace.install({**fleet(3), "termination": {"preStopSeconds": 0, "delaySeconds": 0}})
    with under_load(namespace) as told:
        # One pod after the other: which requests meet a pod before its endpoint is gone is a matter of chance.
        for pod in namespace.pods():
            namespace.kubectl("delete", "pod", pod["metadata"]["name"], "--wait")
            namespace.only_pods(3)
    assert told.failed, told.summary
