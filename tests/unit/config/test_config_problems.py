"""What is said about settings that cannot be used."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from service.config import ConfigError, Installed, Problem, load_settings, read_keys_file

ALL = Installed(embedded_model=True, embedded_store=True)
NOTHING = Installed(embedded_model=False, embedded_store=False)
LIMITLESS = {"kind": "openai", "base_url": "http://v/v1"}
MODEL = {"routes": [{"provider": "local"}]}
KEYED = {"key": "a" * 16}
BURST = {"token_burst": 5}


def problems(environ: dict[str, str], installed: Installed = ALL) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load_settings({}, environ, installed=installed)
    return list(caught.value.problems)


def the_problem(environ: dict[str, str], installed: Installed = ALL) -> Problem:
    found = problems(environ, installed)
    assert len(found) == 1, found
    return found[0]


BROKEN = [
    ({"LLM_API_SERVER__PORT": "eighty"}, "server.port", "'eighty'", "a valid integer"),
    ({"LLM_API_AUTH__USER_LIMITS__USD_PER_DAY": "1000000"}, "auth.user_limits.usd_per_day", "'1000000'", "less than 1"),
    ({"LLM_API_SERVER__PORT": "70000"}, "server.port", "'70000'", "less than or equal to 65535"),
    ({"LLM_API_SERVER__PROT": "80"}, "server.prot", "a name that is no setting", "did you mean port?"),
    ({"LLM_API_SERVER_PORT": "80"}, "LLM_API_SERVER_PORT", "a variable", "did you mean LLM_API_SERVER__PORT?"),
    ({"LLM_API_PROFILE": "prod"}, "profile", "'prod'", "'development' or 'production'"),
    (
        {"LLM_API_PROVIDERS__V__KIND": "vllm"},
        "providers.v.kind",
        "'vllm'",
        "'openai', 'anthropic', 'local' or 'simulator'",
    ),
    ({"LLM_API_PROVIDERS__V__BASE_URL": "http://v"}, "providers.v.kind", "nothing", "'openai' or 'anthropic'"),
    ({"LLM_API_PROVIDERS__V__KIND": "openai"}, "providers.v.keys", "nothing", "at least one key, or key_files"),
    ({"LLM_API_PROVIDERS": "{broken"}, "providers", "not shown", "a map of settings; in the environment, valid JSON"),
    ({"LLM_API_AUTH__KEYS": "alice:short"}, "auth.keys.alice.key", "a text of 5 characters", "at least 16 visible"),
    ({"LLM_API_AUTH__KEYS": "alice:sha256:abc"}, "auth.keys.alice.key", "not shown", "sha256: and 64 hex digits"),
    ({"LLM_API_AUTH__KEYS": "just-a-key"}, "auth.keys", "not shown", "name:key or name:sha256:"),
    (
        {"LLM_API_AUTH__KEYS": f"a:{'k' * 16},b:{'k' * 16}"},
        "auth.keys.b.key",
        "the same key as a's",
        "a key of its own",
    ),
    ({"LLM_API_AUTH__KEYS": f"a:{'k' * 16},a:{'l' * 16}"}, "auth.keys", "not shown", "each name once"),
    ({"LLM_API_SERVER__HOST": "192.0.2.1"}, "auth.keys", "others can reach", "at least one key"),
    (
        {"LLM_API_SERVER__HOST": "192.0.2.1", "LLM_API_AUTH__ENABLED": "false"},
        "auth.enabled",
        "false while server.host is '192.0.2.1'",
        "false with server.host=127.0.0.1",
    ),
    ({"LLM_API_AUTH__ENABLED": "true"}, "auth.keys", "nothing", "at least one key"),
    ({"LLM_API_CORS__ORIGINS": "*", "LLM_API_CORS__CREDENTIALS": "true"}, "cors.credentials", "is *", "exact origins"),
    (
        {"LLM_API_CORS__ORIGINS": "https://a.example/path"},
        "cors.origins",
        "'https://a.example/path'",
        "origins such as https://",
    ),
    ({"LLM_API_READINESS__MODEL": "gpt-9"}, "readiness.model", "'gpt-9'", "gpt-4o-mini, gpt-4o"),
    (
        {"LLM_API_MODELS": '{"m": {"routes": [{"provider": "nobody"}]}}'},
        "models.m.routes.0.provider",
        "'nobody'",
        "the name of a configured provider: local",
    ),
    ({"LLM_API_MODELS": '{"m": {"routes": []}}'}, "models.m.routes", "a list of 0", "at least 1 item"),
    ({"LLM_API_REDIS__URL": "http://store"}, "redis.url", "not shown", "redis://, rediss:// or unix://"),
    ({"LLM_API_REDIS__URL": "redis://h:notaport"}, "redis.url", "not shown", "REDIS_URL) that has a host, and a port"),
    ({"LLM_API_SERVER__HOST": "not a host"}, "server.host", "'not a host'", "an IP address, or the name of a host"),
    ({"LLM_API_SERVER__METRICS_HOST": "300.1.1.1"}, "server.metrics_host", "'300.1.1.1'", "an IP address"),
    ({"LLM_API_EMBEDDED__CACHE_DIR": __file__}, "embedded.cache_dir", "which is no folder", "that can be written"),
    (
        {"LLM_API_EMBEDDED__CACHE_DIR": f"{__file__}/below"},
        "embedded.cache_dir",
        "test_config_problems.py', which is no folder",
        "that can be written",
    ),
    ({"LLM_API_REDIS__TIMEOUT_S": "0"}, "redis.timeout_s", "'0'", "greater than 0"),
    ({"LLM_API_SERVER__METRICS_PORT": "8000"}, "server.metrics_port", "the same as server.port", "another port"),
    ({"LLM_API_CONFIG": "/absent.yaml"}, "LLM_API_CONFIG", "'/absent.yaml' (No such file", "a YAML file"),
    (
        {"LLM_API_PROVIDERS__V__KIND": "openai", "LLM_API_PROVIDERS__V__KEY_FILES": "/absent"},
        "providers.v.key_files.0",
        "'/absent' (No such file",
        "a readable file with one key",
    ),
    ({"LLM_API_AUTH__KEYS_FILE": "/absent"}, "auth.keys_file", "'/absent' (No such file", "a line name:key"),
]


@pytest.mark.parametrize(("environ", "setting", "got", "takes"), BROKEN, ids=lambda value: str(value)[:48])
def test_wrong_setting_is_named_with_what_it_got_and_what_it_takes(
    environ: dict[str, str], setting: str, got: str, takes: str
) -> None:
    problem = the_problem(environ)
    assert problem.setting == setting
    assert got in problem.got
    assert takes in problem.takes


@pytest.mark.parametrize("day", ["soon", "2026-13-01", "1 November"])
def test_price_needs_the_day_on_which_it_was_read(day: str) -> None:
    price = {"input": 1, "output": 2, "source": "the vendor's page", "as_of": day}
    models = {"m": {"routes": [{"provider": "local"}], "price_usd_per_million_tokens": price}}
    problem = the_problem({"LLM_API_MODELS": json.dumps(models)})
    assert problem.setting == "models.m.price_usd_per_million_tokens.as_of"
    assert problem.takes == "a day such as 2026-11-01"


def test_several_workers_need_a_store_that_they_share() -> None:
    problem = the_problem({"LLM_API_SERVER__WORKERS": "4"}, NOTHING)
    assert problem.setting == "server.workers"
    assert "redis.url" in problem.takes
    assert load_settings({}, {"LLM_API_SERVER__WORKERS": "4"}, installed=ALL).server.workers == 4


def test_embedded_model_has_to_be_installed() -> None:
    assert "llm-api[local]" in the_problem({"LLM_API_PROVIDERS__L__KIND": "local"}, NOTHING).takes


def test_everything_wrong_is_named_at_once() -> None:
    found = problems({"LLM_API_SERVER__PORT": "x", "LLM_API_JOBS__CONCURRENCY": "0", "LLM_API_NONSENSE": "1"})
    assert {problem.setting for problem in found} == {"server.port", "jobs.concurrency", "LLM_API_NONSENSE"}


def test_a_problem_is_one_line_with_both_names() -> None:
    line = str(the_problem({"LLM_API_SERVER__PORT": "eighty"}))
    assert line == "server.port (LLM_API_SERVER__PORT): got 'eighty'; takes a valid integer"


def test_a_name_that_fits_no_variable_is_shortened_to_one_that_does() -> None:
    problem = the_problem({"LLM_API_MODELS": '{"gpt-4o": {"routes": [{"provider": "nobody"}]}}'})
    assert problem.variable == "LLM_API_MODELS"


def test_file_of_keys_is_checked_without_quoting_it(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nalice:alice-key-0123456789\nno-name-here-0123456789\n")
    problem = the_problem({"LLM_API_AUTH__KEYS_FILE": str(path)})
    assert problem.setting == "auth.keys_file"
    assert "entry 2" in problem.takes
    assert "no-name-here" not in str(problem)


@pytest.mark.parametrize("content", ["# ours\n", "\n ,\n"])
def test_file_of_keys_without_any_key_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    problem = the_problem({"LLM_API_AUTH__KEYS_FILE": str(path)})
    assert problem.setting == "auth.keys_file"
    assert "for at least one key" in problem.takes


@pytest.mark.parametrize("line", [f"carol:{'c' * 16}\nbob:{'c' * 16}", f"carol:{'a' * 16}"])
def test_key_with_two_names_is_refused_wherever_they_stand(tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"alice:{'a' * 16}\nbob:{'b' * 16}\n{line}\n")
    keys = {"LLM_API_AUTH__KEYS": f"alice:{'a' * 16}", "LLM_API_AUTH__KEYS_FILE": str(path)}
    problem = the_problem(keys)
    assert problem.setting == "auth.keys_file"
    number = 2 + len(line.splitlines())
    assert problem.takes == f"a key of its own for each name, which entry {number} has not"
    path.write_text(f"alice:{'a' * 16}\nalice:{'n' * 16}\nbob:{'b' * 16}\n")
    assert len(load_settings({}, keys, installed=ALL).auth.keys) == 1


BURSTS = [
    ({"providers": {"v": {**LIMITLESS, "limits": {"request_burst": 5}}}}, "providers.v.limits.request_burst"),
    ({"models": {"m": {**MODEL, "limits": {"token_burst": 5}}}}, "models.m.limits.token_burst"),
    ({"auth": {"user_limits": {"token_burst": 5, "requests_per_minute": 5}}}, "auth.user_limits.token_burst"),
    ({"auth": {"default_limits": {"request_burst": 5}}}, "auth.default_limits.request_burst"),
    ({"auth": {"keys": {"a": {**KEYED, "limits": {"token_burst": 5}}}}}, "auth.keys.a.limits.token_burst"),
    (
        {
            "auth": {
                "keys": {"a": {**KEYED, "limits": {"tokens_per_minute": 5}}, "b": "b" * 16},
                "default_limits": BURST,
            }
        },
        "auth.default_limits.token_burst",
    ),
]


@pytest.mark.parametrize(("sections", "name"), BURSTS)
def test_burst_that_limits_nothing_for_want_of_a_rate_is_refused(sections: dict[str, Any], name: str) -> None:
    environ = {f"LLM_API_{section.upper()}": json.dumps(value) for section, value in sections.items()}
    problem = the_problem(environ)
    assert problem.setting == name
    assert problem.takes == f"{'tokens' if 'token' in name else 'requests'}_per_minute beside it"


@pytest.mark.parametrize(
    "auth",
    [
        {"keys": {"a": {**KEYED, "limits": BURST}}, "default_limits": {"tokens_per_minute": 5}},
        {"keys": {"a": {**KEYED, "limits": {"tokens_per_minute": 5}}}, "default_limits": BURST},
    ],
)
def test_burst_and_rate_of_a_key_may_stand_in_different_places(auth: dict[str, Any]) -> None:
    load_settings({}, {"LLM_API_AUTH": json.dumps(auth)}, installed=ALL)


@pytest.mark.parametrize("content", ["", "\n", "# ours\n"])
def test_file_of_keys_that_was_emptied_is_an_error_for_who_reads_it_again(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(ValueError, match="for at least one key"):
        read_keys_file(path, {})


@pytest.mark.parametrize("content", ["sk-one\nsk-two\n", "sk-\x00one", "sk one", "sk-\u00e9"])
def test_provider_key_file_that_fits_no_header_is_refused_without_quoting_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content, "utf-8")
    problem = the_problem({"LLM_API_PROVIDERS__V__KIND": "openai", "LLM_API_PROVIDERS__V__KEY_FILES": str(path)})
    assert problem.setting == "providers.v.key_files.0"
    assert "one key of visible ASCII characters" in problem.takes
    assert "sk" not in str(problem).replace(str(path), "")


def test_provider_key_file_may_end_its_line(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-one\r\n")
    environ = {"LLM_API_PROVIDERS__V__KIND": "openai", "LLM_API_PROVIDERS__V__KEY_FILES": str(path)}
    assert load_settings({}, environ, installed=ALL).providers["v"].key_files == (path,)


def test_cache_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # To root everything is writable.
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    problem = the_problem({"LLM_API_EMBEDDED__CACHE_DIR": str(tmp_path / "new" / "deep")})
    assert problem.setting == "embedded.cache_dir"
    assert "which cannot be written" in problem.got


def test_cache_folder_need_not_be_there_yet(tmp_path: Path) -> None:
    settings = load_settings({}, {"LLM_API_EMBEDDED__CACHE_DIR": str(tmp_path / "new")}, installed=ALL)
    assert settings.embedded.cache_dir == tmp_path / "new"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("host", ["192.0.2.1", "::", "::1", "fe80::1%eth0", "localhost", "api_1.example.", "a-b.c"])
def test_hosts_that_may_be_this_machines_are_taken(host: str) -> None:
    environ = {"LLM_API_SERVER__HOST": host, "LLM_API_AUTH__KEYS": "alice:alice-key-0123456789"}
    assert load_settings({}, environ, installed=ALL).server.host == host


@pytest.mark.parametrize(
    "host", ["not a host", "-a", "a..b", "http://a", "1.2.3", "1.2.3.4.5", "[::1]", "::1::", "a:80"]
)
def test_hosts_that_can_be_nobodys_are_named(host: str) -> None:
    environ = {"LLM_API_SERVER__HOST": host, "LLM_API_AUTH__KEYS": "alice:alice-key-0123456789"}
    assert the_problem(environ).setting == "server.host"
