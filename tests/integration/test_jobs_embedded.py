"""Background jobs outlive `serve` in development too, where the store is the embedded one."""

import signal
import time
from pathlib import Path

import httpx
import pytest
import yaml

from tests.support.command import running
from tests.support.live import simulating

pytestmark = pytest.mark.timeout(180)

PATIENCE_S = 60.0


def ended(client: httpx.Client, job_id: str) -> dict[str, object]:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        state: dict[str, object] = client.get(f"/generate/async/{job_id}").json()
        if state["status"] != "pending":
            return state
        assert time.monotonic() < deadline, state
        time.sleep(0.1)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_jobs_outlive_a_restart_of_serve(end: signal.Signals, tmp_path: Path) -> None:
    with simulating("--ttft-ms", "1500", "--gap-ms", "5") as upstream:
        config = tmp_path / "config.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "server": {"metrics_port": 0, "port": 0},
                    "embedded": {"cache_dir": str(tmp_path / "cache")},
                    "providers": {
                        "sim": {"kind": "openai", "base_url": f"{upstream}/v1", "keys": ["sk-0123456789abc"]}
                    },
                    "models": {"sim": {"routes": [{"provider": "sim"}]}},
                    "readiness": {"mode": "off"},
                    "jobs": {"concurrency": 1, "lease_s": 5, "drain_s": 0.1},
                }
            )
        )
        settings = {"LLM_API_CONFIG": str(config)}
        with running("serve", settings=settings) as serving:
            with httpx.Client(base_url=serving.address("API"), timeout=10) as client:
                ids = [
                    client.post("/generate/async", json={"prompt": "Hi", "model": "sim", "max_tokens": 9}).json()[
                        "job_id"
                    ]
                    for _ in range(3)
                ]
                done = ended(client, ids[0])
            # The embedded store writes once a second.
            time.sleep(1.2)
            serving.stop(end)
        with running("serve", settings=settings) as serving:
            with httpx.Client(base_url=serving.address("API"), timeout=10) as client:
                assert client.get(f"/generate/async/{ids[0]}").json() == done
                states = [ended(client, job_id) for job_id in ids]
            serving.stop(signal.SIGTERM)
    assert {state["status"] for state in states} == {"complete"}
    # A stop gives back what runs, a kill costs it an attempt.
    assert states[1]["attempts"] == (1 if end is signal.SIGTERM else 2)
