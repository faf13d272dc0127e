"""What readiness makes of a provider: a wrong key stalls an update and nothing else, an outage stalls nothing."""

import json

import httpx
import pytest

from tests.e2e.cluster import NAME, WAIT_S, Namespace, Object, eventually, is_ready
from tests.e2e.fleet import fleet

pytestmark = pytest.mark.timeout(900)

KEY = "known-to-the-simulator"


def provider_secret(name: str, key: str) -> Object:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"key": key}}


def values(secret: str) -> Object:
    return {
        "simulator": {"enabled": True, "args": ["--key", KEY]},
        "config": {
            "providers": {"simulator": {"kind": "simulator"}},
            "models": {"gpt-4o-mini": {"routes": [{"provider": "simulator"}]}},
        },
        "providerKeys": {"simulator": {"existingSecret": secret, "keys": ["key"]}},
    }


def generated(namespace: Namespace) -> int:
    with namespace.reached() as address:
        headers = {"Authorization": f"Bearer {namespace.caller_key()}"}
        body = {"prompt": "Hello.", "model": "gpt-4o-mini"}
        return httpx.post(f"{address}/generate", json=body, headers=headers, timeout=30).status_code


def readiness(namespace: Namespace, pod: str) -> Object:
    """Ask a pod that is not in the Service."""
    program = (
        "import urllib.request, urllib.error\n"
        "try: print(urllib.request.urlopen('http://127.0.0.1:8000/ready').read().decode())\n"
        "except urllib.error.HTTPError as error: print(error.read().decode())"
    )
    body: Object = httpx.Response(200, text=namespace.kubectl("exec", pod, "--", "python", "-c", program)).json()
    return body


def test_a_wrong_key_stalls_the_update_and_a_mended_one_lets_it_go_on(namespace: Namespace) -> None:
    namespace.apply(provider_secret("right", KEY), provider_secret("wrong", "refused"))
    namespace.install(values("right"))
    (old,) = (pod["metadata"]["name"] for pod in namespace.pods())
    namespace.install(values("wrong"), wait=False)
    eventually(lambda: len(namespace.pods()) == 2)
    (new,) = {pod["metadata"]["name"] for pod in namespace.pods()} - {old}
    namespace.kubectl(
        "wait", "pod", new, "--for=jsonpath={.status.containerStatuses[0].started}=true", f"--timeout={WAIT_S}s"
    )
    eventually(lambda: readiness(namespace, new)["status"] == "unready")
    assert "simulator" in readiness(namespace, new)["reason"]
    assert generated(namespace) == 200

    # An old pod that is lost meanwhile comes back with the settings that it had.
    namespace.kubectl("delete", "pod", old, "--wait")
    eventually(lambda: sum(map(is_ready, namespace.pods())) == 1)
    assert not next(is_ready(pod) for pod in namespace.pods() if pod["metadata"]["name"] == new)
    assert generated(namespace) == 200

    namespace.apply(provider_secret("wrong", KEY))
    namespace.kubectl("rollout", "status", f"deployment/{NAME}", f"--timeout={WAIT_S}s")
    namespace.only_pods(1)
    (pod,) = namespace.pods()
    assert pod["metadata"]["name"] == new
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    assert generated(namespace) == 200


def test_a_provider_that_is_down_leaves_all_pods_ready_and_callers_told_when_to_come_back(namespace: Namespace) -> None:
    namespace.install(fleet(2, config={"readiness": {"interval_s": 10}}))
    headers = {"Authorization": f"Bearer {namespace.caller_key()}"}
    body = {"prompt": "Hello.", "model": "gpt-4o-mini"}
    names = {pod["metadata"]["name"] for pod in namespace.pods()}
    seen: dict[str, int] = {}
    with namespace.reached() as address, httpx.Client(base_url=address, headers=headers, timeout=30) as client:
        assert client.post("/generate", json=body).status_code == 200
        namespace.kubectl("scale", f"deployment/{NAME}-simulator", "--replicas=0")
        eventually(lambda: not namespace.pods("simulator"))

        def is_told_to_wait() -> bool:
            answer = client.post("/generate", json=body)
            code = f"{answer.status_code} {answer.json()['code']}"
            seen[code] = seen.get(code, 0) + 1
            return code == "503 circuit_open" and int(answer.headers["retry-after"]) >= 1

        eventually(is_told_to_wait)
        eventually(lambda: all(readiness(namespace, name)["status"] == "degraded" for name in names))
        assert all("simulator" in readiness(namespace, name)["reason"] for name in names)
        assert client.get("/health").status_code == 200
        pods = namespace.pods()
        assert {pod["metadata"]["name"] for pod in pods} == names
        assert all(map(is_ready, pods))

        namespace.kubectl("scale", f"deployment/{NAME}-simulator", "--replicas=1")
        eventually(lambda: client.post("/generate", json=body).status_code == 200)
    pods = namespace.pods()
    assert {pod["metadata"]["name"] for pod in pods} == names
    assert all(pod["status"]["containerStatuses"][0]["restartCount"] == 0 for pod in pods)
    print(json.dumps({"answers_of_the_outage": seen}))
    assert set(seen) <= {"502 upstream_unavailable", "504 upstream_timeout", "503 circuit_open"}
