"""The settings that the chart writes, read by the service that they are for."""

import hashlib
import re
from pathlib import Path

import pytest
import yaml

from service.config import load_settings
from service.config.store_address import checked_store_address
from tests.chart.rendering import CHART, EXAMPLES, ROOT, Object, example, one, pod, render, settings

CHANGES = {
    "config": {
        "providers": {"openai": {"kind": "openai", "limits": {"tokens_per_minute": 100_000_000}}},
        "admission": {"queue_max": 5},
        "streams": {"keepalive_s": 2.5},
    },
    "providerKeys": {"openai": {"existingSecret": "s", "keys": ["a", "b"]}},
}


def read(tree: Object, folder: Path) -> None:
    """Let the service read them, with files where a pod would have its Secrets."""
    text = yaml.safe_dump(tree).replace("/run/secrets", str(folder))
    for provider in tree["providers"].values():
        for name in provider.get("key_files", []):
            path = Path(name.replace("/run/secrets", str(folder)))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"sk-{path.name}\n")
    if "keys_file" in tree["auth"]:
        (folder / "callers").mkdir()
        (folder / "callers" / "keys").write_text(f"alice:sha256:{hashlib.sha256(b'x').hexdigest()}\n")
    file = folder / "config.yaml"
    file.write_text(text)
    loaded = load_settings({}, {"LLM_API_CONFIG": str(file), "REDIS_URL": "redis://store:6379/0"})
    assert loaded.profile == "production"
    assert loaded.auth.enabled
    assert loaded.server.host == "0.0.0.0"  # noqa: S104 - in a pod
    assert loaded.models


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_service_takes_those_of_every_example(path: Path, tmp_path: Path) -> None:
    read(settings(example(path)), tmp_path)


def test_the_ca_of_redis_is_where_its_address_says() -> None:
    path = CHART / "examples" / "redis-tls.yaml"
    (address,) = re.findall(r"url=(rediss://\S+)'", path.read_text())
    (named,) = re.findall(r"ssl_ca_certs=(\S+)", address)
    spec = pod(example(path))["spec"]
    (mount,) = (mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "redis-ca")
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "redis-ca")
    (entry,) = volume["secret"]["items"]
    assert named == f"{mount['mountPath']}/{entry['path']}"
    # The service takes it, but for the certificate, which is not here.
    with pytest.raises(ValueError, match="certificates and keys that can be read"):
        checked_store_address(address)
    (egress,) = (
        rule for rule in one(example(path), "NetworkPolicy")["spec"]["egress"] if rule["ports"][0]["port"] == 6380
    )
    assert "to" not in egress


def test_the_service_takes_the_defaults(tmp_path: Path) -> None:
    read(settings(render()), tmp_path)


def test_numbers_arrive_as_they_were_written(tmp_path: Path) -> None:
    tree = settings(render(CHANGES))
    assert tree["providers"]["openai"]["limits"]["tokens_per_minute"] == 100_000_000
    assert tree["streams"] == {"keepalive_s": 2.5}
    read(tree, tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "k8s").rglob("config.yaml")), ids=lambda path: path.parent.name)
def test_the_service_takes_those_in_k8s(path: Path, tmp_path: Path) -> None:
    read(yaml.safe_load(path.read_text()), tmp_path)
