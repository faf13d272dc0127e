"""Installing on an empty namespace that enforces Pod Security "restricted", and taking it away again."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.cluster import CHART, NAME, ROOT, Namespace, eventually

pytestmark = pytest.mark.timeout(900)

QUESTION = {"prompt": "What is the capital of France?"}


def ask(address: str, key: str) -> dict[str, Any]:
    answer = httpx.post(f"{address}/generate", json=QUESTION, headers={"Authorization": f"Bearer {key}"}, timeout=30)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_the_defaults_are_ready_pass_helm_test_and_answer(namespace: Namespace) -> None:
    notes = namespace.install()
    assert f"get secret {NAME}-callers" in notes
    namespace.helm_test()
    with namespace.reached() as address:
        assert ask(address, namespace.caller_key())["text"]
        assert httpx.post(f"{address}/generate", json=QUESTION, timeout=30).status_code == 401
        # The metrics are not in the Service.
        assert httpx.get(f"{address}/metrics", timeout=30).status_code == 404


def test_an_upgrade_keeps_the_key_that_was_made_and_what_has_not_changed(namespace: Namespace) -> None:
    namespace.install()
    key, pods = namespace.caller_key(), {pod["metadata"]["name"] for pod in namespace.pods()}
    namespace.install()
    assert namespace.caller_key() == key
    assert {pod["metadata"]["name"] for pod in namespace.pods()} == pods


def test_uninstalling_leaves_nothing(namespace: Namespace) -> None:
    before = namespace.everything()
    namespace.install()
    assert namespace.everything() > before
    namespace.uninstall()
    eventually(lambda: namespace.everything() == before)


def test_uninstalling_leaves_the_volume_of_redis_and_nothing_else(namespace: Namespace) -> None:
    before = namespace.everything()
    # Without waiting: not every cluster that this runs on makes volumes.
    namespace.install({"redis": {"enabled": True}}, wait=False)
    eventually(lambda: any(name.startswith("persistentvolumeclaim/") for name in namespace.everything()))
    namespace.uninstall()
    eventually(lambda: namespace.everything() - before == {f"persistentvolumeclaim/data-{NAME}-redis-0"})


def test_kubectl_apply_installs_the_same(namespace: Namespace) -> None:
    overlay = ROOT / "k8s" / "overlays" / "simulator"
    namespace.kubectl("apply", "-k", str(overlay))
    for deployment in ("llm-api", "llm-api-simulator"):
        namespace.kubectl("rollout", "status", f"deployment/{deployment}", "--timeout=300s")
    with namespace.reached("service/llm-api") as address:
        assert ask(address, "known-to-everybody-0123")["text"]
    namespace.kubectl("delete", "-k", str(overlay), "--wait")


@pytest.mark.parametrize("path", sorted((CHART / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_api_server_takes_every_example(path: Path, namespace: Namespace) -> None:
    """Unknown and ill-typed fields are errors there; kinds that the cluster does not know are left out."""
    versions = namespace.cluster.kubectl("api-versions").split()
    below = ["-f", str(CHART / "examples" / "laptop.yaml")] if path.stem == "laptop-openai" else []
    text = namespace.cluster.helm("template", "try", str(CHART), "--kube-version", "1.34.0", *below, "-f", str(path))
    known = [item for item in yaml.safe_load_all(text) if item["apiVersion"] in versions]
    assert known
    # A pod is admitted only where its service account exists.
    namespace.apply(*(item for item in known if item["kind"] == "ServiceAccount"))
    answer = namespace.kubectl(
        "apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=yaml.safe_dump_all(known)
    )
    assert answer.count("(server dry run)") == len(known)
    assert "would violate PodSecurity" not in answer
