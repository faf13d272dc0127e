"""A provider's key is replaced in its Secret under load: nobody notices, no pod restarts, each uses the new one."""

import hashlib
import json
import time
from typing import Any

import httpx
import pytest

from tests.e2e.cluster import NAME, Namespace, eventually
from tests.e2e.fleet import PACE, fleet
from tests.e2e.loading import under_load

pytestmark = pytest.mark.timeout(900)

OLD, NEW = "the-key-of-yesterday", "the-key-of-today"
KUBELET_S = 120
"""A kubelet looks at mounted Secrets once in its sync period, a minute, and up to half of that later."""


def secret(key: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "provider"}, "stringData": {"key": key}}


def key_in(namespace: Namespace, pod: str) -> str:
    return namespace.kubectl("exec", pod, "--", "cat", "/run/secrets/providers/simulator/key").strip()


def test_every_pod_uses_the_new_key_within_a_minute_of_having_it(namespace: Namespace) -> None:
    namespace.apply(secret(OLD))
    both = ["--key", OLD, "--key", NEW]
    namespace.install(
        fleet(
            3,
            simulator={"enabled": True, "args": PACE + both},
            config={
                "providers": {"simulator": {"kind": "simulator"}},
                "models": {"gpt-4o-mini": {"routes": [{"provider": "simulator"}]}},
            },
            providerKeys={"simulator": {"existingSecret": "provider", "keys": ["key"]}},
        )
    )
    pods = {pod["metadata"]["name"] for pod in namespace.pods()}
    with under_load(namespace, streams=10) as told:
        namespace.apply(secret(NEW))
        eventually(lambda: all(key_in(namespace, pod) == NEW for pod in pods), KUBELET_S)
        mounted_at = time.monotonic()
        with namespace.reached(f"service/{NAME}-simulator", 9000) as simulator:
            eventually(lambda: keys_of_latest(simulator) == {digest(NEW)}, 60)
        print(f"the new key alone is in use {time.monotonic() - mounted_at:.1f} s after the last pod had it")
    assert told.failed == {}, told.summary
    assert {pod["metadata"]["name"] for pod in namespace.pods()} == pods
    assert all(pod["status"]["containerStatuses"][0]["restartCount"] == 0 for pod in namespace.pods())


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def keys_of_latest(simulator: str) -> set[str]:
    """Return whose keys the next two seconds' calls come with; with three pods and the load, that is all of them."""
    last = httpx.get(f"{simulator}/ledger/summary", timeout=10).json()["last_id"]
    time.sleep(2)  # what is looked for is that something does not happen any more
    query = {"format": "jsonl", "since_id": last, "limit": 10_000}
    lines = httpx.get(f"{simulator}/ledger", params=query, timeout=10).text.splitlines()
    return {json.loads(line)["key"] for line in lines}
