"""Background jobs in pods of their own: killed, replaced and scaled, they lose none."""

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.cluster import NAME, Failed, Namespace, eventually
from tests.e2e.fleet import fleet

pytestmark = pytest.mark.timeout(1800)

WORKER = f"{NAME}-worker"
JOBS = int(os.environ.get("LLM_API_E2E_JOBS", "300"))
PACE = ["--ttft-ms", "200", "--gap-ms", "50"]
"""With twenty tokens an answer takes 1.2 s."""
CONCURRENCY = 4
KILLS = 4
SUBMITTERS = 8


def working(replicas: int, **worker: Any) -> dict[str, Any]:
    return fleet(
        1,
        simulator={"args": PACE},
        config={"jobs": {"concurrency": CONCURRENCY, "lease_s": 10}},
        worker={"enabled": True, "replicas": replicas, **worker},
        metrics={"annotations": True},
    )


def submit(address: str, key: str, count: int) -> list[str]:
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:

        def one(number: int) -> str:
            body = {"prompt": f"Job {number}.", "model": "gpt-4o-mini", "max_tokens": 20}
            answer = client.post("/generate/async", json=body)
            assert answer.status_code == 202, answer.text
            job_id: str = answer.json()["job_id"]
            return job_id

        with ThreadPoolExecutor(SUBMITTERS) as pool:
            return list(pool.map(one, range(count)))


def ended(
    address: str, key: str, ids: list[str], meanwhile: Callable[[], object] = lambda: None
) -> list[dict[str, Any]]:
    """Wait until all have ended; tell how."""
    states: dict[str, dict[str, Any]] = {}
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
        while len(states) < len(ids):
            meanwhile()
            for job_id in ids:
                if job_id not in states:
                    state = client.get(f"/generate/async/{job_id}").json()
                    if state["status"] == "pending":
                        break  # those behind it are pending too, but for a few
                    states[job_id] = state
            time.sleep(0.5)
    return [states[job_id] for job_id in ids]


def calls(namespace: Namespace) -> int:
    with namespace.reached(f"service/{NAME}-simulator", 9000) as address:
        lines = httpx.get(
            f"{address}/ledger", params={"format": "jsonl", "limit": 100_000}, timeout=60
        ).text.splitlines()
    # What readiness asks is not streamed.
    return sum(1 for line in lines if json.loads(line)["stream"])


def test_killed_and_replaced_workers_lose_no_job_and_run_few_twice(namespace: Namespace) -> None:
    namespace.install(working(3))
    killed: list[float] = []

    def kill_now_and_then() -> None:
        if len(killed) < KILLS and (not killed or time.monotonic() - killed[-1] > 8):
            pod = namespace.pods("worker")[0]["metadata"]["name"]
            namespace.kubectl("delete", "pod", pod, "--grace-period=0", "--force")
            killed.append(time.monotonic())

    with namespace.reached() as address:
        key = namespace.caller_key()
        states = ended(address, key, submit(address, key, JOBS), kill_now_and_then)
    assert {state["status"] for state in states} == {"complete"}
    extra = calls(namespace) - JOBS
    again = sum(state["attempts"] - 1 for state in states)
    print(json.dumps({"jobs": JOBS, "kills": len(killed), "begun_again": again, "extra_calls": extra}))
    assert len(killed) == KILLS
    assert 0 <= extra <= KILLS * CONCURRENCY
    assert extra <= again


def test_an_update_of_workers_gives_its_jobs_back_and_runs_none_twice(namespace: Namespace) -> None:
    namespace.install(working(2))
    with namespace.reached() as address:
        key = namespace.caller_key()
        ids = submit(address, key, JOBS // 3)
        namespace.kubectl("rollout", "restart", f"deployment/{WORKER}")
        states = ended(address, key, ids)
        namespace.kubectl("rollout", "status", f"deployment/{WORKER}", "--timeout=300s")
    assert {(state["status"], state["attempts"]) for state in states} == {("complete", 1)}
    # An answer takes 1.2 s and a stop waits for longer, so not even a call was given up.
    assert calls(namespace) == len(ids)


def test_workers_are_scaled_out_while_jobs_wait(namespace: Namespace) -> None:
    try:
        namespace.cluster.kubectl("get", "--raw", "/apis/custom.metrics.k8s.io/v1beta1")
    except Failed:
        pytest.skip("this cluster serves no custom metrics")
    namespace.install(working(1, autoscaling={"enabled": True, "minReplicas": 1, "maxReplicas": 4, "waitSeconds": 10}))
    with namespace.reached() as address:
        key = namespace.caller_key()
        ids = submit(address, key, JOBS)
        begun_at = time.monotonic()
        eventually(lambda: int(namespace.get("deployment", WORKER)["spec"]["replicas"]) >= 2, 120)
        print(f"scaled out {time.monotonic() - begun_at:.0f} s after the jobs had come")
        states = ended(address, key, ids)
    assert {state["status"] for state in states} == {"complete"}
