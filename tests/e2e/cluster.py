"""A cluster and a namespace of it, through kubectl and helm as a person would use them."""

import base64
import json
import os
import re
import secrets
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "llm-api"
WAIT_S = 300
"""Whatever has not come by then does not come."""
RELEASE = "try"
NAME = "try-llm-api"

Object = dict[str, Any]


class Failed(Exception):  # noqa: N818 - it reads as what happened
    """A command failed; its own words."""


def run(command: list[str], *, stdin: str | None = None, timeout_s: float = WAIT_S + 60) -> str:
    """Run a command to its end; return what it prints."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise Failed(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster that KUBECONFIG names; KUBECTL and HELM may name other programs, with arguments."""

    kubectl_command: list[str] = field(default_factory=lambda: shlex.split(os.environ.get("KUBECTL", "kubectl")))
    helm_command: list[str] = field(default_factory=lambda: shlex.split(os.environ.get("HELM", "helm")))

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl."""
        return run([*self.kubectl_command, *arguments], stdin=stdin)

    def helm(self, *arguments: str) -> str:
        """Run helm."""
        return run([*self.helm_command, *arguments])

    @contextmanager
    def namespace(self, image: str) -> Iterator["Namespace"]:
        """Make a namespace for the block."""
        name = f"llm-api-e2e-{secrets.token_hex(3)}"
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(made))
        namespace = Namespace(self, name, image)
        try:
            # What every namespace gets comes a moment later.
            eventually(lambda: len(namespace.everything()) >= 2)
            yield namespace
        finally:
            # A namespace that has pods is looked at again after half of their grace period, whenever they have gone.
            namespace.kubectl("delete", "deployments,statefulsets", "--all", "--cascade=orphan")
            namespace.kubectl("delete", "replicasets,pods", "--all", "--grace-period=1", f"--timeout={WAIT_S}s")
            self.kubectl("delete", "namespace", name, f"--timeout={WAIT_S}s")


@dataclass(frozen=True, slots=True)
class Namespace:
    """One namespace, with one release in it."""

    cluster: Cluster
    name: str
    image: str
    """Name and tag."""

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in it."""
        return self.cluster.kubectl("--namespace", self.name, *arguments, stdin=stdin)

    def get(self, *arguments: str) -> Object:
        """Return what `kubectl get` finds."""
        found: Object = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def apply(self, *objects: Object) -> None:
        """Apply objects."""
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def install(self, values: Mapping[str, Any] | None = None, *, wait: bool = True) -> str:
        """Install the chart, or upgrade the release; return helm's words. All values are given each time."""
        repository, _, tag = self.image.rpartition(":")
        given = {"image": {"repository": repository, "tag": tag}, **(values or {})}
        waiting = ["--wait", f"--timeout={WAIT_S}s"] if wait else []
        command = [*self.cluster.helm_command, "upgrade", "--install", RELEASE, str(CHART), "--namespace", self.name]
        return run([*command, *waiting, "--values", "-"], stdin=json.dumps(given))

    def helm_test(self) -> None:
        """Run the chart's own test, which asks all three routes as long as it knows a key."""
        assert "Succeeded" in self.cluster.helm("test", RELEASE, "--namespace", self.name, f"--timeout={WAIT_S}s")

    def uninstall(self) -> None:
        """Take the release away; return when its pods are gone."""
        self.cluster.helm("uninstall", RELEASE, "--namespace", self.name, "--wait", f"--timeout={WAIT_S}s")

    def pods(self, component: str = "api") -> list[Object]:
        """Return the pods of a component, those that are ending included."""
        items: list[Object] = self.get("pods", "-l", f"app.kubernetes.io/component={component}")["items"]
        return items

    def only_pods(self, count: int) -> None:
        """Wait until so many pods serve, and those that were ending are gone."""
        eventually(lambda: len(self.pods()) == count and all(is_ready(pod) for pod in self.pods()))

    def caller_key(self) -> str:
        """Return the key that the chart made."""
        data = self.get("secret", f"{NAME}-callers")["data"]
        return base64.b64decode(data["key"]).decode()

    def everything(self) -> set[str]:
        """Name each object in it, but for events."""
        kinds = self.cluster.kubectl("api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
        listed = ",".join(kind for kind in kinds if not kind.startswith(("events", "pods.metrics")))
        return set(self.kubectl("get", listed, "-o", "name", "--ignore-not-found").split())

    @contextmanager
    def reached(self, target: str = f"service/{NAME}", port: int = 8000) -> Iterator[str]:
        """Forward a port to a service, or to a pod of a deployment, for the block; give its address here."""
        command = [*self.cluster.kubectl_command, "--namespace", self.name, "port-forward", target]
        with subprocess.Popen([*command, f":{port}"], stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                match = re.match(r"Forwarding from (127\.0\.0\.1:\d+)", process.stdout.readline())
                assert match is not None
                yield f"http://{match[1]}"
            finally:
                process.terminate()


def is_ready(pod: Object) -> bool:
    """Whether a pod is ready, and not about to end."""
    conditions = {item["type"]: item["status"] for item in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def eventually(holds: Callable[[], bool], within_s: float = WAIT_S) -> None:
    """Return as soon as something holds; fail if it does not in time. Only a real cluster forces this."""
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, f"not within {within_s} s"
        time.sleep(0.5)
