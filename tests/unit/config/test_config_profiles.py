"""What a profile fills in, and what production insists on."""

from typing import Any

import pytest

from service.config import ConfigError, Installed, Profile, ProviderKind, Settings, load_settings, unpriced
from service.config.profiles import is_loopback

ALL = Installed(embedded_model=True, embedded_store=True)
NOTHING = Installed(embedded_model=False, embedded_store=False)
PRODUCTION = {"LLM_API_PROFILE": "production", "LLM_API_AUTH__KEYS": "alice:alice-key-0123456789"}


def load(environ: dict[str, str], installed: Installed = NOTHING, **overrides: Any) -> Settings:
    return load_settings(overrides, environ, installed=installed)


@pytest.mark.parametrize(("installed", "kind"), [(ALL, ProviderKind.LOCAL), (NOTHING, ProviderKind.SIMULATOR)])
def test_development_serves_all_default_models_without_any_setting(installed: Installed, kind: ProviderKind) -> None:
    settings = load({}, installed)
    assert settings.profile is Profile.DEVELOPMENT
    assert {name: provider.kind for name, provider in settings.providers.items()} == {kind.value: kind}
    assert list(settings.models) == ["gpt-4o-mini", "gpt-4o", "claude-3-haiku-20240307"]
    assert {model.routes[0].provider for model in settings.models.values()} == {kind.value}
    assert settings.auth.enabled is False
    assert settings.server.playground is True
    assert settings.server.metrics_host == "127.0.0.1"


def test_development_offers_no_model_whose_vendor_is_not_configured() -> None:
    assert list(load({"OPENAI_API_KEY": "sk-one"}).models) == ["gpt-4o-mini", "gpt-4o"]
    assert list(load({"ANTHROPIC_API_KEY": "sk-one"}).models) == ["claude-3-haiku-20240307"]


def test_development_stand_in_serves_what_no_vendor_does() -> None:
    settings = load({"OPENAI_API_KEY": "sk-one", "LLM_API_PROVIDERS__SIM__KIND": "simulator"})
    assert {name: model.routes[0].provider for name, model in settings.models.items()} == {
        "gpt-4o-mini": "openai",
        "gpt-4o": "openai",
        "claude-3-haiku-20240307": "sim",
    }


def test_authentication_is_on_as_soon_as_there_are_keys() -> None:
    assert load({"LLM_API_AUTH__KEYS": "alice:alice-key-0123456789"}).auth.enabled is True


def test_production_names_everything_that_is_missing_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"LLM_API_PROFILE": "production", "LLM_API_SERVER__PORT": "x"}, ALL)
    assert [problem.setting for problem in caught.value.problems] == ["providers", "models", "auth.keys", "server.port"]


def test_production_with_conventional_key_offers_that_vendors_models() -> None:
    settings = load({**PRODUCTION, "OPENAI_API_KEY": "sk-one", "LLM_API_SERVER__HOST": "192.0.2.1"}, ALL)
    assert list(settings.providers) == ["openai"]
    assert list(settings.models) == ["gpt-4o-mini", "gpt-4o"]
    assert settings.auth.enabled is True
    assert settings.server.playground is False


def test_production_takes_simulator_only_with_explicit_models() -> None:
    provider = {"LLM_API_PROVIDERS__SIM__KIND": "simulator"}
    with pytest.raises(ConfigError) as caught:
        load({**PRODUCTION, **provider})
    assert [problem.setting for problem in caught.value.problems] == ["models"]
    models = {"LLM_API_MODELS": '{"m": {"routes": [{"provider": "sim"}]}}'}
    assert list(load({**PRODUCTION, **provider, **models}).models) == ["m"]


def test_production_without_authentication_is_refused_on_loopback_too() -> None:
    with pytest.raises(ConfigError) as caught:
        load({**PRODUCTION, "OPENAI_API_KEY": "sk-one", "LLM_API_AUTH__ENABLED": "false"})
    assert [problem.setting for problem in caught.value.problems] == ["auth.enabled"]


def test_production_cannot_be_opened_to_others_without_keys() -> None:
    environ = {
        "LLM_API_PROFILE": "production",
        "OPENAI_API_KEY": "sk-one",
        "LLM_API_AUTH__ENABLED": "false",
        "LLM_API_SERVER__HOST": "::",
    }
    with pytest.raises(ConfigError, match=r"auth\.enabled"):
        load(environ)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_is_what_only_this_machine_reaches(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["::", "192.0.2.1", "api.example", ""])
def test_everything_else_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_models_without_a_price_are_named_where_money_is_limited() -> None:
    models = (
        '{"a": {"routes": [{"provider": "sim"}], "price_usd_per_million_tokens": '
        '{"input": 1, "output": 2, "as_of": "2026-11-01", "source": "a page"}}, '
        '"b": {"routes": [{"provider": "sim"}]}}'
    )
    given = {"LLM_API_PROVIDERS__SIM__KIND": "simulator", "LLM_API_MODELS": models}
    assert unpriced(load(given)) == []
    assert unpriced(load({**given, "LLM_API_AUTH__DEFAULT_LIMITS__USD_PER_DAY": "5"})) == ["b"]
