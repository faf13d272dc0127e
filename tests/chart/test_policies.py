"""Pod Security, level restricted, and what else holds for every pod, whatever is set."""

from pathlib import Path

import pytest

from tests.chart.rendering import EXAMPLES, example, pods, render


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_pod_of_every_example_is_restricted(path: Path) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted."""
    found = list(pods(example(path)))
    assert found
    for name, spec in found:
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name
        allowed = {
            "configMap",
            "csi",
            "downwardAPI",
            "emptyDir",
            "ephemeral",
            "persistentVolumeClaim",
            "projected",
            "secret",
        }
        assert all((volume.keys() - {"name"}) <= allowed for volume in spec.get("volumes", [])), name
        for container in spec["containers"] + spec.get("initContainers", []):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert not context.get("privileged"), name
            assert all("hostPort" not in port for port in container.get("ports", [])), name


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_container_has_requests_and_a_limit_on_memory_but_none_on_the_cpu(path: Path) -> None:
    for name, spec in pods(example(path)):
        for container in spec["containers"]:
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys(), name
            assert "memory" in resources["limits"], name
            assert "cpu" not in resources["limits"], name


def test_openshift_chooses_the_users() -> None:
    found = list(pods(render({"runAsUser": None, "redis": {"enabled": True}})))
    assert len(found) == 4
    for name, spec in found:
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & spec["securityContext"].keys(), name
