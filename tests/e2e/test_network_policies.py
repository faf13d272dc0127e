"""Network policies admit what is needed and keep a stranger out, where the cluster enforces them."""

import pytest

from tests.e2e.cluster import NAME, Failed, Namespace, Object, eventually
from tests.e2e.fleet import fleet

pytestmark = pytest.mark.timeout(900)

PORTS = {"api": (NAME, 8000), "simulator": (f"{NAME}-simulator", 9000), "redis": (f"{NAME}-redis", 6379)}


def pod(namespace: Namespace, name: str, labels: dict[str, str]) -> Object:
    """Return one that does nothing, to ask from."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "idle",
                    "image": namespace.image,
                    "command": ["sleep", "3600"],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }


def reaches(namespace: Namespace, name: str, host: str, port: int) -> bool:
    program = f"import socket; socket.create_connection(({host!r}, {port}), 3)"
    try:
        namespace.kubectl("exec", name, "--", "python", "-c", program)
    except Failed:
        return False
    return True


def test_only_who_is_named_gets_in_and_the_service_still_works(namespace: Namespace) -> None:
    namespace.apply(pod(namespace, "stranger", {}), pod(namespace, "gateway", {"role": "gateway"}))
    namespace.install(fleet(1))
    namespace.kubectl("wait", "pod", "stranger", "gateway", "--for=condition=Ready", "--timeout=120s")
    assert reaches(namespace, "stranger", *PORTS["api"])
    if reaches(namespace, "stranger", *PORTS["redis"]):
        pytest.skip("this cluster does not enforce network policies: the one of Redis is always there")

    allowed = [{"podSelector": {"matchLabels": {"role": "gateway"}}}]
    namespace.install(fleet(1, networkPolicy={"enabled": True, "from": allowed}))
    eventually(lambda: not reaches(namespace, "stranger", *PORTS["api"]), 30)
    assert not reaches(namespace, "stranger", *PORTS["simulator"])
    assert reaches(namespace, "gateway", *PORTS["api"])
    assert not reaches(namespace, "gateway", *PORTS["redis"])
    # New pods get ready, and a question is answered: DNS, the simulator and Redis are reached.
    namespace.install(fleet(1, networkPolicy={"enabled": True, "from": allowed}, podAnnotations={"again": "1"}))
    namespace.helm_test()
