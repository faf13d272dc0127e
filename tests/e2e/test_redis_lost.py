"""The pod of Redis is killed under load: requests go on, limits are kept locally, and all of it heals by itself."""

import time

import httpx
import pytest

from tests.e2e.cluster import NAME, Namespace, eventually, is_ready
from tests.e2e.fleet import fleet
from tests.e2e.loading import under_load

pytestmark = pytest.mark.timeout(900)

LONGEST_S = 5.0
"""The simulator takes 0.9 s; whoever waits for much longer waited for Redis."""
LIMITS = {"auth": {"default_limits": {"requests_per_minute": 1_000_000}}}
"""So that every request has to do with Redis."""


def local_limits(namespace: Namespace) -> float:
    """Sum llm_api_rate_limiter_local over the pods."""
    total = 0.0
    for pod in namespace.pods():
        program = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9090/metrics').read().decode())"
        text = namespace.kubectl("exec", pod["metadata"]["name"], "--", "python", "-c", program)
        lines = (line.split() for line in text.splitlines() if line.startswith("llm_api_rate_limiter_local"))
        total += sum(float(value) for _, value in lines)
    return total


def test_no_request_hangs_or_fails_and_limits_are_shared_again(namespace: Namespace) -> None:
    namespace.install(fleet(2, config=LIMITS))
    store = f"statefulset/{NAME}-redis"
    with under_load(namespace, streams=20) as told:
        # Killed, and not let come back before all pods have seen that it is away.
        namespace.kubectl("scale", store, "--replicas=0")
        namespace.kubectl("delete", "pod", f"{NAME}-redis-0", "--grace-period=0", "--force", "--ignore-not-found")
        eventually(lambda: local_limits(namespace) == 2, 60)
        namespace.kubectl("scale", store, "--replicas=1")
        eventually(lambda: [*map(is_ready, namespace.pods("redis"))] == [True])
        back_at = time.monotonic()
        eventually(lambda: local_limits(namespace) == 0, 60)
        print(f"limits were shared again {time.monotonic() - back_at:.1f} s after the store was ready")
    assert told.failed == {}, told.summary
    assert told.summary["longest_request_s"] < LONGEST_S
    assert all(pod["status"]["containerStatuses"][0]["restartCount"] == 0 for pod in namespace.pods())
    with namespace.reached() as address:
        assert httpx.get(f"{address}/ready", timeout=10).json()["ready"] is True
