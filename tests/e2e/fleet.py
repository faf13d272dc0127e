"""Values of a small fleet with a Redis, for tests in which pods come and go; and how much is asked of it meanwhile."""

import os
from typing import Any

STREAMS = int(os.environ.get("LLM_API_E2E_STREAMS", "100"))
REQUESTS_PER_S = float(os.environ.get("LLM_API_E2E_REQUESTS_PER_S", "50"))
STREAM_TOKENS = 100
"""At the simulator's pace below, ten seconds."""
PACE = ["--ttft-ms", "100", "--gap-ms", "100"]


def fleet(replicas: int | None = None, **more: Any) -> dict[str, Any]:
    """Return the values. The Redis is of the cluster's own making where no registry is reachable."""
    given = os.environ.get("LLM_API_E2E_REDIS_IMAGE", "docker.io/valkey/valkey:8.1.4-alpine")
    repository, _, tag = given.rpartition(":")
    values = {
        "longestStreamSeconds": 60,
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "simulator": {"args": PACE},
        "redis": {
            "enabled": True,
            "image": {"repository": repository, "tag": tag},
            "command": [os.environ.get("LLM_API_E2E_REDIS_COMMAND", "valkey-server")],
            "persistence": {"enabled": False},
        },
        **more,
    }
    return values if replicas is None else {"replicas": replicas, **values}
