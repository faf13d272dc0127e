"""Load on a release from a pod beside it, and what became of it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.cluster import NAME, WAIT_S, Namespace, eventually
from tests.e2e.fleet import REQUESTS_PER_S, STREAM_TOKENS, STREAMS

PROGRAM = Path(__file__).parent / "load" / "load.py"
LONGEST_S = 3600


@dataclass(slots=True)
class Told:
    """What the load tells when the block is over."""

    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> dict[str, dict[str, int]]:
        """What did not end as it should, by kind and how; empty if nothing."""
        found = {
            kind: {ending: count for ending, count in self.summary[kind].items() if ending != "complete"}
            for kind in ("streams", "requests")
        }
        return {kind: endings for kind, endings in found.items() if endings}

    def complete(self, kind: str) -> int:
        """Return how many of a kind ended well."""
        return int(self.summary[kind].get("complete", 0))


@contextmanager
def under_load(
    namespace: Namespace,
    *,
    streams: int = STREAMS,
    requests_per_s: float = REQUESTS_PER_S,
    stream_tokens: int = STREAM_TOKENS,
    pod: str = "load",
) -> Iterator[Told]:
    """Keep the load up for the block: all of it runs when the block begins, and has ended when the block is over."""
    environment = {
        "ADDRESS": f"http://{NAME}:8000",
        "STREAMS": str(streams),
        "STREAM_TOKENS": str(stream_tokens),
        "REQUESTS_PER_S": str(requests_per_s),
        "SECONDS": str(LONGEST_S),
    }
    namespace.apply(*_objects(pod, namespace.image, environment))
    namespace.kubectl("wait", "pod", pod, "--for=condition=Ready", f"--timeout={WAIT_S}s")
    told = Told()
    try:
        yield told
        namespace.kubectl("exec", pod, "--", "sh", "-c", "kill -TERM 1")
        eventually(lambda: namespace.get("pod", pod)["status"]["phase"] in {"Succeeded", "Failed"})
        log = namespace.kubectl("logs", pod).splitlines()
        assert log, "the load ended without a word"
        told.summary = json.loads(log[-1])
        print(json.dumps(told.summary))
    finally:
        namespace.kubectl("delete", "pod", pod, "--ignore-not-found", "--grace-period=1")


def _objects(name: str, image: str, environment: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    program = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {PROGRAM.name: PROGRAM.read_text()},
    }
    key = {"name": "CALLER_KEY", "valueFrom": {"secretKeyRef": {"name": f"{NAME}-callers", "key": "key"}}}
    container = {
        "name": "load",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", f"/load/{PROGRAM.name}"],
        "env": [{"name": variable, "value": value} for variable, value in environment.items()] + [key],
        # The streams begin within 5 s: by then all of them run.
        "readinessProbe": {"exec": {"command": ["true"]}, "initialDelaySeconds": 8},
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "program", "mountPath": "/load"}],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/component": "load"}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "program", "configMap": {"name": name}}],
        },
    }
    return program, pod
