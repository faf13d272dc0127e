"""What an upgrade does to a release that is there: nothing, unless something was changed."""

import base64
from typing import Any

import pytest

from tests.chart.rendering import Object, one, pod, render, render_over

REDIS = {"url": "redis://store:6379/0"}
ON = {"enabled": True}
API, WORKER = "try-llm-api", "try-llm-api-worker"
SCALED: dict[str, dict[str, Any]] = {
    "HorizontalPodAutoscaler": {"autoscaling": {**ON, "minReplicas": 3}},
    "KEDA": {"autoscaling": {"minReplicas": 3}, "keda": {**ON, "serverAddress": "http://prometheus:9090"}},
}


def deployment(name: str, replicas: int, **annotations: str) -> Object:
    metadata = {"name": name, "annotations": annotations}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {"replicas": replicas}}


def autoscaler(of: str, by: str) -> Object:
    name = f"keda-hpa-{of}" if by == "KEDA" else of
    return {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name}}


def secret(name: str, uid: str = "1", **data: str) -> Object:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "uid": uid}, "data": encoded}


def values(scaler: str) -> dict[str, Any]:
    return {"redis": REDIS, **SCALED[scaler], "worker": {**ON, "autoscaling": {**ON, "minReplicas": 3}}}


@pytest.mark.parametrize("name", [API, WORKER])
@pytest.mark.parametrize("scaler", SCALED)
def test_a_fleet_keeps_its_size_when_it_is_scaled_from_now_on(scaler: str, name: str) -> None:
    """Left out, the number of the release before would be removed, and the API server would make it 1."""
    found = one(render_over([deployment(name, 7)], values(scaler)), "Deployment", name)
    assert found["spec"]["replicas"] == 7
    # In all releases that follow Helm would still remove it.
    kept = deployment(name, 9, **found["metadata"]["annotations"])
    again = one(render_over([kept, autoscaler(name, scaler)], values(scaler)), "Deployment", name)
    assert again["spec"]["replicas"] == 9
    assert again["metadata"]["annotations"] == found["metadata"]["annotations"]


@pytest.mark.parametrize("name", [API, WORKER])
@pytest.mark.parametrize("scaler", SCALED)
def test_a_fleet_below_the_least_begins_with_that(scaler: str, name: str) -> None:
    assert one(render_over([deployment(name, 1)], values(scaler)), "Deployment", name)["spec"]["replicas"] == 3


@pytest.mark.parametrize("name", [API, WORKER])
@pytest.mark.parametrize("scaler", SCALED)
def test_a_fleet_that_was_always_scaled_is_left_to_its_autoscaler(scaler: str, name: str) -> None:
    live = [deployment(name, 7), autoscaler(name, scaler)]
    for objects in (render_over(live, values(scaler)), render_over([], values(scaler)), render(values(scaler))):
        found = one(objects, "Deployment", name)
        assert "replicas" not in found["spec"]
        assert "annotations" not in found["metadata"]


def test_a_fleet_that_is_no_longer_scaled_gets_its_number() -> None:
    kept = deployment(API, 7, **{"llm-api/replicas": "kept"})
    found = one(render_over([kept, autoscaler(API, "autoscaling")], {"redis": REDIS, "replicas": 4}), "Deployment")
    assert found["spec"]["replicas"] == 4
    assert "annotations" not in found["metadata"]


OWN = {"redis": ON, "worker": ON}
GIVEN = {"redis": {**ON, "password": {"existingSecret": "mine"}}, "worker": ON}
ELSEWHERE = {"redis": {"existingSecret": "mine", "existingSecretKey": "password"}, "worker": ON}
USERS = [("Deployment", API), ("Deployment", WORKER)]
STORE = ("StatefulSet", "try-llm-api-redis")


def templates(live: list[Object], given: dict[str, Any]) -> dict[tuple[str, str], Object]:
    """Return the pod templates that change with the password: another one makes new pods."""
    objects = render_over([secret("try-llm-api-callers", key="k"), *live], given)
    workloads = [*USERS, STORE] if given["redis"].get("enabled") else USERS
    return {(kind, name): pod(objects, name, kind) for kind, name in workloads}


@pytest.mark.parametrize(
    ("name", "given"),
    [("try-llm-api-redis", OWN), ("mine", GIVEN), ("mine", ELSEWHERE)],
    ids=["made", "given", "elsewhere"],
)
def test_another_password_restarts_who_has_it_and_the_same_one_nobody(name: str, given: dict[str, Any]) -> None:
    first = templates([secret(name, password="first")], given)
    assert templates([secret(name, password="first", other="entry")], given) == first
    second = templates([secret(name, password="second")], given)
    assert all(second[workload] != template for workload, template in first.items())


@pytest.mark.parametrize("password", ["password-000094", "password-000238"])
def test_what_stands_for_a_password_is_a_word(password: str) -> None:
    """Their hashes begin with 1776435414 and 910e801017, which some parsers of YAML take for numbers."""
    made = templates([secret("try-llm-api-redis", password=password)], OWN)[STORE]
    assert made["metadata"]["annotations"]["llm-api/redis"].startswith("sha256-")


def test_the_simulator_does_not_restart_for_a_password() -> None:
    simulator = [
        pod(render_over([secret("try-llm-api-redis", password=word)], OWN), "try-llm-api-simulator")
        for word in ("first", "second")
    ]
    assert simulator[0] == simulator[1]


def test_the_first_upgrade_restarts_nothing() -> None:
    """The password that the installation made is known to the pods that it made."""
    installed = render_over([], OWN)
    made = [secret(item["metadata"]["name"], **item["stringData"]) for item in installed if item["kind"] == "Secret"]
    upgraded = render_over(made, OWN)
    assert [item for item in upgraded if item["kind"] != "Secret"] == [
        item for item in installed if item["kind"] != "Secret"
    ]
    assert one(upgraded, "Secret", STORE[1]) == one(installed, "Secret", STORE[1])


def test_the_password_of_another_is_not_told_by_its_hash() -> None:
    """A short one could be found by trying: what it is hashed with is known only to who may read it anyway."""
    one_uid, other_uid = (templates([secret("mine", uid, password="short")], GIVEN)[STORE] for uid in ("1", "2"))
    assert one_uid["metadata"]["annotations"] != other_uid["metadata"]["annotations"]
