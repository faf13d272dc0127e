"""As much of Kubernetes' API as helm's ``lookup`` asks for: discovery, and objects that are there."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from tests.support.http_server import answering

Object = dict[str, Any]

KINDS = {
    "api/v1": {
        "ConfigMap": "configmaps",
        "Pod": "pods",
        "Secret": "secrets",
        "Service": "services",
        "ServiceAccount": "serviceaccounts",
    },
    "apis/apps/v1": {"Deployment": "deployments", "ReplicaSet": "replicasets", "StatefulSet": "statefulsets"},
    "apis/autoscaling/v2": {"HorizontalPodAutoscaler": "horizontalpodautoscalers"},
    "apis/keda.sh/v1alpha1": {"ScaledObject": "scaledobjects"},
    "apis/networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies"},
    "apis/policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
}
"""What it knows: the plural by kind, by the group's path."""


@contextmanager
def api_server(objects: Sequence[Object], namespace: str = "default") -> Iterator[str]:
    """Serve these objects, all of them in one namespace; the address."""
    answers = _answers(objects, namespace)

    class Handler(BaseHTTPRequestHandler):
        """Answers from memory; what is not there is a 404, as helm expects."""

        def do_GET(self) -> None:
            """Answer."""
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            answer = answers.get(urlsplit(self.path).path.strip("/"), missing)
            body = json.dumps(answer).encode()
            self.send_response(404 if answer is missing else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with answering(Handler) as address:
        yield address


def _answers(objects: Sequence[Object], namespace: str) -> dict[str, Object]:
    groups = [path.split("/")[1:] for path in KINDS if path.startswith("apis/")]
    answers: dict[str, Object] = {
        "version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
        "api": {"kind": "APIVersions", "versions": ["v1"]},
        "apis": {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [
                {"name": name, "versions": [{"groupVersion": f"{name}/{version}", "version": version}]}
                for name, version in groups
            ],
        },
    }
    for path, kinds in KINDS.items():
        group = path.partition("/")[2]
        answers[path] = {
            "kind": "APIResourceList",
            "groupVersion": group,
            "resources": [{"name": plural, "kind": kind, "namespaced": True} for kind, plural in kinds.items()],
        }
        for kind, plural in kinds.items():
            listed = [item for item in objects if (item["apiVersion"], item["kind"]) == (group, kind)]
            place = f"{path}/namespaces/{namespace}/{plural}"
            answers[place] = {"kind": f"{kind}List", "apiVersion": group, "metadata": {}, "items": listed}
            answers |= {f"{place}/{item['metadata']['name']}": item for item in listed}
    return answers
