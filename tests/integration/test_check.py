"""``llm-api check``: ten broken configurations, ten messages; one good one, printed without its secrets."""

import json
from pathlib import Path

import pytest
import yaml

from service.config import json_schema, reference_table
from tests.support.command import run

CANARY = "canary-0123456789-canary"

BROKEN = {
    "a port that is no number": ("server: {port: eighty}", "server.port"),
    "a misspelt name": ("server: {prot: 80}", "server.prot"),
    "an unknown kind of provider": ("providers: {p: {kind: vllm}}", "providers.p.kind"),
    "a route to nobody": (
        "providers: {p: {kind: simulator}}\nmodels: {m: {routes: [{provider: q}]}}",
        "models.m.routes.0.provider",
    ),
    "a short key": ("auth: {keys: {alice: short}}", "auth.keys.alice.key"),
    "a key file that is not there": ("providers: {p: {kind: openai, key_files: [/absent]}}", "providers.p.key_files.0"),
    "any origin with credentials": ('cors: {origins: ["*"], credentials: true}', "cors.credentials"),
    "no authentication for others": ("server: {host: 192.0.2.1}\nauth: {enabled: false}", "auth.enabled"),
    "production with nothing": ("profile: production", "providers"),
    "readiness asks a model that is not there": ("readiness: {model: gpt-9}", "readiness.model"),
    "a store of another kind": ("redis: {url: 'http://store'}", "redis.url"),
    "a price of no day": (
        """
        providers: {p: {kind: simulator}}
        models:
          m:
            routes: [{provider: p}]
            price_usd_per_million_tokens: {input: 1, output: 1, as_of: soon, source: s}
        """,
        "models.m.price_usd_per_million_tokens.as_of",
    ),
}


@pytest.mark.parametrize(("text", "setting"), BROKEN.values(), ids=BROKEN)
def test_broken_file_gives_a_message_that_names_the_setting(tmp_path: Path, text: str, setting: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    result = run("check", settings={"LLM_API_CONFIG": str(path)})
    assert result.returncode == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"{setting} (LLM_API_")
    assert all("): got " in line and "; takes " in line for line in lines)


def test_problems_are_given_to_programs_too() -> None:
    result = run("check", "--json", "--port", "eighty")
    assert result.returncode == 2
    assert json.loads(result.stdout)["problems"] == [
        {
            "setting": "server.port",
            "variable": "LLM_API_SERVER__PORT",
            "got": "'eighty'",
            "takes": "a valid integer",
        }
    ]


def test_good_configuration_is_printed_without_its_secrets(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"auth: {{keys: {{alice: {CANARY}-a}}}}\nserver: {{workers: 2}}")
    settings = {
        "LLM_API_CONFIG": str(path),
        "OPENAI_API_KEY": CANARY,
        "REDIS_URL": f"redis://:{CANARY}@store",
        "LLM_API_SERVER__PORT": "8001",
    }
    for option in ([], ["--json"]):
        result = run("check", *option, settings=settings)
        assert result.returncode == 0
        assert "canary" not in result.stdout + result.stderr
    plain = run("check", settings=settings)
    effective = yaml.safe_load(plain.stdout)
    assert effective["server"]["port"] == 8001
    assert effective["auth"]["keys"]["alice"]["key"] == "**********"
    assert list(effective["models"]) == ["gpt-4o-mini", "gpt-4o"]
    assert plain.stderr == ""


def test_schema_and_table_need_no_configuration() -> None:
    broken = {"LLM_API_PROFILE": "nonsense"}
    assert run("check", "--schema", settings=broken).stdout == json_schema()
    assert run("check", "--table", settings=broken).stdout == reference_table()
