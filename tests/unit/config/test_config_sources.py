"""Where settings come from, and which source wins."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from service.config import ConfigError, Installed, ProviderKind, Settings, load_settings

NOTHING = Installed(embedded_model=False, embedded_store=False)
FILE = "LLM_API_CONFIG"


def load(
    environ: dict[str, str] | None = None, *, overrides: dict[str, Any] | None = None, installed: Installed = NOTHING
) -> Settings:
    return load_settings(overrides or {}, environ or {}, installed=installed)


def written(folder: Path, text: str) -> str:
    path = folder / "settings.yaml"
    path.write_text(text, "utf-8")
    return str(path)


def test_command_line_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = written(tmp_path, "server: {port: 1001, metrics_port: 1002, max_body_bytes: 5000, host: localhost}")
    environ = {FILE: file, "LLM_API_SERVER__PORT": "2001", "LLM_API_SERVER__METRICS_PORT": "2002"}
    server = load(environ, overrides={"server": {"port": "3001"}}).server
    assert (server.port, server.metrics_port, server.max_body_bytes) == (3001, 2002, 5000)
    assert server.host == "localhost"
    assert server.max_message_bytes == 262_144


def test_example_of_the_documentation_loads(tmp_path: Path) -> None:
    for name in ("key-1", "key-2"):
        (tmp_path / name).write_text("sk-from-a-file")
    file = written(
        tmp_path,
        f"""
profile: production
redis: {{url: "redis://store:6379/0", timeout_s: 0.05}}
providers:
  openai:
    kind: openai
    base_url: https://api.openai.com/v1
    key_files: [{tmp_path}/key-1, {tmp_path}/key-2]
    timeouts_s: {{connect: 5, first_token: 30, between_tokens: 30, total: 600}}
    limits: {{requests_per_minute: 500, tokens_per_minute: 200000, concurrency: 100}}
  vllm: {{kind: openai, base_url: "http://vllm:8000/v1"}}
models:
  gpt-4o-mini:
    routes: [{{provider: openai, model: gpt-4o-mini}}, {{provider: vllm, model: qwen}}]
    price_usd_per_million_tokens:
      {{input: 0.15, cached_input: 0.075, output: 0.60, as_of: 2026-11-01, source: "vendor's page"}}
  "team-a/*": {{routes: [{{provider: vllm}}]}}
auth:
  keys:
    alice: {{key: "sha256:{"ab" * 32}", models: ["*"], priority: interactive,
            limits: {{requests_per_minute: 60, request_burst: 60, tokens_per_minute: 40000, token_burst: 40000,
                     concurrency: 8, usd_per_day: 5}}}}
  default_limits: {{requests_per_minute: 600}}
  user_limits: {{requests_per_minute: 60}}
admission: {{shadow: false, queue_max: 1000, queue_wait_s: 10}}
readiness: {{mode: key, interval_s: 60, model: gpt-4o-mini}}
""",
    )
    settings = load({FILE: file})
    assert settings.auth.enabled is True
    assert [route.provider for route in settings.models["gpt-4o-mini"].routes] == ["openai", "vllm"]
    price = settings.models["gpt-4o-mini"].price_usd_per_million_tokens
    assert price is not None
    assert price.as_of == "2026-11-01"


def test_every_level_can_be_given_in_the_environment() -> None:
    settings = load(
        {
            "LLM_API_PROVIDERS__VLLM__KIND": "openai",
            "LLM_API_PROVIDERS__VLLM__BASE_URL": "http://vllm:8000/v1",
            "LLM_API_PROVIDERS__VLLM__KEYS": "key-one,key-two",
            "LLM_API_PROVIDERS__VLLM__TIMEOUTS_S__TOTAL": "12.5",
            "LLM_API_CORS__ORIGINS": "https://a.example, https://b.example",
        }
    )
    provider = settings.providers["vllm"]
    assert provider.kind is ProviderKind.OPENAI
    assert [key.get_secret_value() for key in provider.keys] == ["key-one", "key-two"]
    assert provider.timeouts_s.total == 12.5
    assert settings.cors.origins == ("https://a.example", "https://b.example")


def test_maps_can_be_json_in_the_environment_and_are_merged_with_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "providers: {one: {kind: simulator}, two: {kind: simulator, timeouts_s: {total: 7}}}")
    settings = load(
        {FILE: file, "LLM_API_PROVIDERS": '{"two": {"timeouts_s": {"connect": 3}}, "three": {"kind": "simulator"}}'}
    )
    assert list(settings.providers) == ["one", "two", "three"]
    assert settings.providers["two"].timeouts_s.total == 7
    assert settings.providers["two"].timeouts_s.connect == 3


@pytest.mark.parametrize(
    "text",
    [
        f"alice:alice-key-0123456789,bob:sha256:{'cd' * 32}",
        f'{{"alice": "alice-key-0123456789", "bob": {{"key": "sha256:{"CD" * 32}"}}}}',
    ],
)
def test_callers_keys_are_text_or_json(text: str) -> None:
    keys = load({"LLM_API_AUTH__KEYS": text}).auth.keys
    assert {name: key.key.get_secret_value() for name, key in keys.items()} == {
        "alice": "alice-key-0123456789",
        "bob": f"sha256:{'cd' * 32}",
    }


def test_a_key_from_the_environment_keeps_what_the_file_says_of_its_owner(tmp_path: Path) -> None:
    file = written(tmp_path, "auth: {keys: {alice: {key: the-old-key-0123456789, models: [gpt-4o]}}}")
    alice = load({FILE: file, "LLM_API_AUTH__KEYS": "alice:the-new-key-0123456789"}).auth.keys["alice"]
    assert alice.key.get_secret_value() == "the-new-key-0123456789"
    assert alice.models == ("gpt-4o",)


def test_conventional_names_make_providers_and_models() -> None:
    settings = load({"OPENAI_API_KEY": "sk-one", "ANTHROPIC_API_KEY": "sk-two", "REDIS_URL": "redis://store"})
    assert [key.get_secret_value() for key in settings.providers["openai"].keys] == ["sk-one"]
    assert {name: model.routes[0].provider for name, model in settings.models.items()} == {
        "gpt-4o-mini": "openai",
        "gpt-4o": "openai",
        "claude-3-haiku-20240307": "anthropic",
    }
    assert settings.redis.url is not None
    assert settings.redis.url.get_secret_value() == "redis://store"


def test_conventional_names_only_fill_gaps(tmp_path: Path) -> None:
    file = written(tmp_path, "providers: {openai: {kind: openai, keys: [sk-mine]}}\nredis: {url: redis://mine}")
    settings = load(
        {FILE: file, "OPENAI_API_KEY": "sk-theirs", "OPENAI_BASE_URL": "http://a/v1", "REDIS_URL": "redis://b"}
    )
    assert [key.get_secret_value() for key in settings.providers["openai"].keys] == ["sk-mine"]
    assert str(settings.providers["openai"].base_url) == "http://a/v1"
    assert settings.redis.url is not None
    assert settings.redis.url.get_secret_value() == "redis://mine"


def test_conventional_key_does_not_go_to_a_provider_of_another_kind(tmp_path: Path) -> None:
    file = written(tmp_path, "providers: {openai: {kind: simulator}}")
    assert load({FILE: file, "OPENAI_API_KEY": "sk-theirs"}).providers["openai"].keys == ()


def test_empty_variables_count_as_absent() -> None:
    settings = load({"OPENAI_API_KEY": "", "LLM_API_SERVER__PORT": "", "LLM_API_REDIS__URL": ""})
    assert settings.server.port == 8000
    assert list(settings.providers) == ["simulator"]


def test_variables_that_kubernetes_makes_for_services_are_no_settings() -> None:
    settings = load(
        {
            "LLM_API_PORT": "tcp://10.0.0.1:8000",
            "LLM_API_PORT_8000_TCP": "tcp://10.0.0.1:8000",
            "LLM_API_PORT_8000_TCP_ADDR": "10.0.0.1",
            "LLM_API_SERVICE_HOST": "10.0.0.1",
            "LLM_API_SERVICE_PORT": "8000",
            "LLM_API_SERVICE_PORT_HTTP": "8000",
            "LLM_API_METRICS_SERVICE_HOST": "10.0.0.2",
            "LLM_API_METRICS_PORT": "tcp://10.0.0.2:9090",
        }
    )
    assert settings.server.port == 8000


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("server: {port: 1\n", "line 2"),
        ("server: {port: 1}\nserver: {port: 2}\n", "a name that stands twice at line 1"),
        ("[1, 2]", "no map"),
    ],
)
def test_broken_file_is_named_with_the_place(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(ConfigError, match=place) as caught:
        load({FILE: written(tmp_path, text)})
    assert caught.value.problems[0].setting == FILE


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"LLM_API_CONFIG: got .*No such file"):
        load({FILE: str(tmp_path / "absent.yaml")})


def test_empty_file_is_fine(tmp_path: Path) -> None:
    assert load({FILE: written(tmp_path, "# nothing yet\n")}).server.port == 8000


def test_effective_settings_load_again(tmp_path: Path) -> None:
    settings = load({"OPENAI_API_KEY": "sk-one"})
    tree = settings.model_dump(mode="json")
    tree["providers"]["openai"]["keys"] = ["sk-one"]
    again = load({FILE: written(tmp_path, yaml.safe_dump(tree))})
    assert again == settings
