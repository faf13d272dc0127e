"""skaffold.yaml, held against the schema of its release: skaffold itself is not run by these tests."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from load.scenario import read_scenario
from tests.chart.rendering import ROOT, one, run

SCHEMA = Path(__file__).parent / "schemas" / "skaffold-v4beta13.json"
NEEDS = ("helm",)


@pytest.fixture
def configuration() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((ROOT / "skaffold.yaml").read_text())
    return tree


def test_it_fits_the_schema(configuration: dict[str, Any]) -> None:
    jsonschema_rs.validate(json.loads(SCHEMA.read_text()), configuration)


def test_the_schema_would_find_a_misspelt_name(configuration: dict[str, Any]) -> None:
    configuration["deploy"]["helm"]["releases"][0]["setValue"] = {}
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(json.loads(SCHEMA.read_text()), configuration)


def test_what_it_names_is_there(configuration: dict[str, Any]) -> None:
    for artifact in configuration["build"]["artifacts"]:
        assert (
            f" AS {artifact['docker'].get('target', 'build')}\n"
            in (ROOT / artifact["context"] / "Dockerfile").read_text()
        )
    (release,) = configuration["deploy"]["helm"]["releases"]
    assert all((ROOT / path).is_file() for path in release["valuesFiles"])
    (patch,) = next(profile for profile in configuration["profiles"] if profile["name"] == "openai")["patches"]
    assert all((ROOT / path).is_file() for path in patch["value"])


def test_the_chart_takes_what_it_sets(configuration: dict[str, Any]) -> None:
    (release,) = configuration["deploy"]["helm"]["releases"]
    dev = next(profile for profile in configuration["profiles"] if profile["name"] == "dev")
    values = dict(release["setValues"])
    values |= {patch["path"].rpartition("/")[2]: patch["value"] for patch in dev["patches"]}
    assert set(release["setValueTemplates"]) == {
        f"{of}image.{what}" for of in ("", "loadTest.") for what in ("repository", "tag")
    }
    for of, name in (("", "llm-api"), ("loadTest.", "llm-api-load")):
        values |= {f"{of}image.repository": f"registry.example/{name}", f"{of}image.tag": f"1@sha256:{'a' * 64}"}
    options = [option for name, value in values.items() for option in ("--set", f"{name}={value}")]
    files = [option for path in release["valuesFiles"] for option in ("-f", str(ROOT / path))]
    text = run(
        "helm", "template", "llm-api", str(ROOT / release["chartPath"]), "--kube-version", "1.34.0", *files, *options
    )
    objects = list(yaml.safe_load_all(text))
    container = one(objects, "Deployment", "llm-api")["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["sh", "-c"]
    assert len(container["args"]) == 1
    assert container["args"][0].endswith("--port 8000")
    assert container["image"] == f"registry.example/llm-api:1@sha256:{'a' * 64}"


def test_verify_knows_the_key_that_the_release_takes(configuration: dict[str, Any]) -> None:
    (release,) = configuration["deploy"]["helm"]["releases"]
    (verify,) = configuration["verify"]
    key = next(item["value"] for item in verify["container"]["env"] if item["name"] == "LOAD_API_KEY")
    assert (
        release["setValues"]["config.auth.keys.everybody.key"] == f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    )


def test_verify_asks_the_release_for_what_it_has(configuration: dict[str, Any]) -> None:
    (verify,) = configuration["verify"]
    assert verify["container"]["image"] in {artifact["image"] for artifact in configuration["build"]["artifacts"]}
    options = dict(argument.partition("=")[::2] for argument in verify["container"]["args"])
    assert options["--host"] == "http://llm-api:8000"
    # As in the image, whose folder is /app.
    scenario = read_scenario(ROOT / Path(options["--scenario"]).relative_to("/app"))
    assert not {"jobs_poll", "jobs_stream"} & scenario.mix.keys(), "the release has no Redis, in which jobs are"
    assert scenario.duration_s + scenario.timeout_s < verify["timeout"]
