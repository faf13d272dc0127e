"""What of a changed configuration a running process takes over, and how a change is noticed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from service.config import ConfigError, Settings
from service.config.reload import SettingsSource, changes, refuse_another_profile, with_addresses, with_reloaded
from service.domain.clock import SystemClock
from tests.support.files import write

BASE: dict[str, Any] = {
    "providers": {"openai": {"kind": "openai", "keys": ["sk-upstream-0123456789"]}},
    "models": {"gpt-4o": {"routes": [{"provider": "openai"}]}},
    "auth": {"keys": {"alice": "alice-key-0123456789"}},
}


def settings(**sections: Any) -> Settings:
    return Settings.model_validate({**BASE, **sections})


def test_the_same_settings_differ_in_nothing() -> None:
    assert changes(settings(), settings()) == ([], [])


@pytest.mark.parametrize(
    ("sections", "name"),
    [
        ({"models": {"gpt-4o": {"routes": [{"provider": "openai", "model": "x"}]}}}, "models.gpt-4o.routes"),
        ({"providers": {"openai": {"kind": "openai", "keys": ["sk-other"]}}}, "providers.openai.keys"),
        (
            {"providers": {"openai": {**BASE["providers"]["openai"], "timeouts_s": {"total": 5}}}},
            "providers.openai.timeouts_s.total",
        ),
        (
            {"providers": {"openai": {**BASE["providers"]["openai"], "limits": {"concurrency": 5}}}},
            "providers.openai.limits.concurrency",
        ),
        ({"auth": {"keys": {"alice": "alice-key-9876543210"}}}, "auth.keys.alice.key"),
        ({"auth": {**BASE["auth"], "default_limits": {"concurrency": 5}}}, "auth.default_limits.concurrency"),
        ({"auth": {**BASE["auth"], "user_limits": {"concurrency": 5}}}, "auth.user_limits.concurrency"),
        ({"auth": {**BASE["auth"], "keys_file": "/keys"}}, "auth.keys_file"),
        ({"admission": {"shadow": True}}, "admission.shadow"),
        ({"admission": {"replicas": 3}}, "admission.replicas"),
        ({"admission": {"money_without_store": "open"}}, "admission.money_without_store"),
        ({"admission": {"queue_wait_s": 3}}, "admission.queue_wait_s"),
        ({"resilience": {"attempts_max": 2}}, "resilience.attempts_max"),
        ({"resilience": {"hedging": {"enabled": True}}}, "resilience.hedging.enabled"),
        ({"readiness": {"mode": "strict"}}, "readiness.mode"),
        ({"admission": {"queue_max": 5}}, "admission.queue_max"),
    ],
)
def test_what_decides_about_requests_is_taken_over(sections: dict[str, Any], name: str) -> None:
    assert changes(settings(), settings(**sections)) == ([name], [])


@pytest.mark.parametrize(
    ("sections", "name"),
    [
        ({"server": {"port": 1}}, "server.port"),
        ({"redis": {"timeout_s": 1}}, "redis.timeout_s"),
        ({"redis": {"url": "redis://store:6379/0"}}, "redis.url"),
        ({"profile": "production"}, "profile"),
        ({"auth": {**BASE["auth"], "enabled": False}}, "auth.enabled"),
        ({"auth": {**BASE["auth"], "ticket_ttl_s": 5}}, "auth.ticket_ttl_s"),
    ],
)
def test_everything_else_needs_a_restart(sections: dict[str, Any], name: str) -> None:
    assert changes(settings(), settings(**sections)) == ([], [name])


def test_in_force_is_what_is_taken_over_and_else_what_the_process_was_started_with() -> None:
    new = settings(
        models={"gpt-5": {"routes": [{"provider": "openai"}]}},
        auth={"keys": {"bob": "bob-key-0123456789"}, "ticket_ttl_s": 5, "user_limits": {"concurrency": 2}},
        readiness={"mode": "off"},
        server={"port": 1},
    )
    running = settings()
    taken, kept = changes(running, new)
    in_force = with_reloaded(running, new)
    assert changes(running, in_force) == (taken, [])
    assert changes(in_force, new) == ([], kept)
    assert kept == ["auth.ticket_ttl_s", "server.port"]
    assert running == settings()


def test_another_profile_is_refused_while_the_process_runs() -> None:
    refuse_another_profile(settings(), settings())
    with pytest.raises(ConfigError, match=r"^profile \(LLM_API_PROFILE\): got 'development'; takes 'production'"):
        refuse_another_profile(settings(), settings(profile="production"))


def test_what_comes_and_goes_is_named_whole() -> None:
    reloaded, kept = changes(settings(), settings(auth={"keys": {"bob": "bob-key-0123456789"}}))
    assert kept == []
    assert {name.rpartition(".")[0] for name in reloaded} >= {"auth.keys.alice", "auth.keys.bob"}


def test_names_alone_are_given_and_no_secret() -> None:
    reloaded, _ = changes(settings(), settings(auth={"keys": {"alice": "alice-key-9876543210"}}))
    assert "9876543210" not in str(reloaded)


EMBEDDED = {
    "providers": {"local": {"kind": "local"}, "simulator": {"kind": "simulator"}},
    "models": {"m": {"routes": [{"provider": "local"}]}},
}


def test_the_addresses_of_what_was_started_are_kept() -> None:
    running = settings(
        providers={
            "local": {"kind": "local", "base_url": "http://127.0.0.1:1/v1"},
            "simulator": {"kind": "simulator", "base_url": "http://127.0.0.1:2/v1"},
        },
        models=EMBEDDED["models"],
    )
    completed = with_addresses(settings(**EMBEDDED), running)
    assert completed.providers == running.providers


def test_what_would_have_to_be_started_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^started only with the process: providers.local, providers.simulator$"):
        with_addresses(settings(**EMBEDDED), settings())


# The file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    put(path, yaml.safe_dump(BASE), age_s=1)
    return path


def put(path: Path, text: str, *, age_s: float = 0.0) -> None:
    write(path, text, SystemClock(), age_s=age_s)


@pytest.fixture
def source(file: Path) -> SettingsSource:
    return SettingsSource({}, {"LLM_API_CONFIG": str(file)})


def test_a_file_has_changed_from_its_writing_to_its_reading(source: SettingsSource, file: Path) -> None:
    source.load()
    assert not source.has_changed()
    put(file, yaml.safe_dump({**BASE, "drain": {"timeout_s": 7}}), age_s=0.6)
    assert source.has_changed()
    assert source.load().drain.timeout_s == 7
    assert not source.has_changed()


def test_a_file_that_is_being_written_has_not_changed_until_two_looks_find_the_same(
    source: SettingsSource, file: Path
) -> None:
    source.load()
    for half in ("", "profile: production\n", "profile: production\nauth: {}\n"):
        put(file, half, age_s=-60)
        assert not source.has_changed()
    assert source.has_changed()


def test_what_is_written_while_it_is_read_is_a_change(source: SettingsSource, file: Path) -> None:
    source.load()
    assert source.is_as_loaded()
    put(file, yaml.safe_dump({**BASE, "drain": {"timeout_s": 7}}), age_s=2)
    assert not source.is_as_loaded()
    assert source.has_changed()


@pytest.mark.parametrize("text", ["", "\n", "# to be written\n", "---\n"])
def test_a_file_without_a_setting_is_wrong_where_it_replaces_another(
    source: SettingsSource, file: Path, text: str
) -> None:
    source.load()
    put(file, text)
    with pytest.raises(ConfigError, match="in which no setting stands"):
        source.load()
    assert SettingsSource({}, {"LLM_API_CONFIG": str(file)}).load().models


def test_a_symbolic_link_that_was_moved_is_a_change(source: SettingsSource, file: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    file.rename(one)
    other.write_bytes(one.read_bytes())
    put(other, other.read_text(), age_s=1)
    file.symlink_to(one)
    source.load()
    assert not source.has_changed()
    link = tmp_path / "link"
    link.symlink_to(other)
    link.replace(file)
    assert source.has_changed()


def test_a_file_that_is_gone_for_a_moment_is_no_change(source: SettingsSource, file: Path) -> None:
    source.load()
    file.unlink()
    assert not source.has_changed()


def test_a_file_that_cannot_be_used_is_read_once(source: SettingsSource, file: Path) -> None:
    source.load()
    put(file, "server: {port: eighty}", age_s=0.6)
    assert source.has_changed()
    with pytest.raises(ConfigError, match=r"server\.port"):
        source.load()
    assert not source.has_changed()


def test_the_environment_and_the_command_line_stay_what_they_were(file: Path) -> None:
    environ = {"LLM_API_CONFIG": str(file), "LLM_API_DRAIN__TIMEOUT_S": "5"}
    source = SettingsSource({"server": {"port": 1234}}, environ)
    environ.clear()
    loaded = source.load()
    assert (loaded.server.port, loaded.drain.timeout_s) == (1234, 5)


def test_without_a_file_there_is_nothing_to_follow() -> None:
    source = SettingsSource({}, {"LLM_API_CONFIG": ""})
    assert not source.has_file
    source.load()
    assert not source.has_changed()
